"""The state of a long computation in one file, so that an interrupt costs seconds."""

from __future__ import annotations

import io
import json
import os
import time
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_monitor.errors import InputError

EVERY_S = 10.0
"""Time between two writes."""

FORMAT = 1

Arrays = Mapping[str, NDArray[Any]]


class Checkpoint:
    """Arrays of several parts of a run, in one ``.npz`` that is replaced as a whole.

    Parameters
    ----------
    path : Path or None
        None: nothing is read or written.
    identity : mapping
        What the run depends on, each under a name for messages. The file of another run is refused and
        left as it is.

    Attributes
    ----------
    states : dict
        Part -> arrays as last saved; empty when there is no file.

    Raises
    ------
    InputError
        The file is no checkpoint, damaged, or of another run.
    """

    def __init__(self, path: Path | None, identity: Mapping[str, str]) -> None:
        self._path, self._identity = path, dict(identity)
        self._written_s = -np.inf
        self.states: dict[str, Arrays] = {}
        if path is not None and path.exists():
            self.states = self._read(path)

    def save_if_due(self, part: str, arrays: Callable[[], Arrays]) -> None:
        """Save when the last write was `EVERY_S` ago; the first call saves, so a bad path shows early."""
        if time.monotonic() - self._written_s >= EVERY_S:
            self.save(part, arrays())

    def save(self, part: str, arrays: Arrays) -> None:
        """Save the arrays of one part, and of all parts before it.

        Raises
        ------
        InputError
            The file cannot be written.
        """
        self.states[part] = arrays
        if self._path is None:
            return
        meta = {"format": FORMAT, "identity": self._identity, "parts": list(self.states)}
        members: dict[str, NDArray[Any]] = {
            f"{place}.{name}": array
            for place, state in enumerate(self.states.values())
            for name, array in state.items()
        }
        members["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
        scratch = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            with scratch.open("wb") as file:
                np.savez(file, allow_pickle=False, **members)
            scratch.replace(self._path)
        except OSError as error:
            raise InputError(self._path, f"cannot be written ({error.strerror or error})") from error
        finally:
            with suppress(OSError):
                scratch.unlink()
        self._written_s = time.monotonic()

    def _read(self, path: Path) -> dict[str, Arrays]:
        states: dict[str, Arrays] = {}
        try:
            with zipfile.ZipFile(path) as archive:
                # Read in full, so that each checksum is compared: np.load alone stops where an array ends.
                members = {key.removesuffix(".npy"): archive.read(key) for key in archive.namelist()}
            arrays = {key: np.load(io.BytesIO(npy), allow_pickle=False) for key, npy in members.items()}
            meta = json.loads(arrays.pop("meta").tobytes())
            found, identity = meta["format"], meta["identity"]
            for place, part in enumerate(meta["parts"]):
                prefix = f"{place}."
                states[part] = {
                    key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)
                }
        except Exception as error:  # damaged bytes make NumPy and zipfile raise a dozen kinds
            raise InputError(path, f"no checkpoint, or a damaged one ({error})") from error
        if found != FORMAT:
            raise InputError(path, f"checkpoint has format {found}, this version reads {FORMAT}")
        other = [name for name, value in self._identity.items() if identity.get(name) != value]
        if other:
            raise InputError(
                path, f"checkpoint of another run (other {', '.join(other)}); remove it to start anew"
            )
        return states
