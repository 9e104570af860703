"""Frames for a model of our own: a directory, a NumPy file, or the demo road."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_monitor.config import FrameSettings
from edge_monitor.errors import InputError
from edge_monitor.sources.scenes import Road

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
ARCHIVE_KEYS = ("images", "frames", "arr_0")
ROADS = {"demo": 0, "demo-b": 1}  # name of a road to the number of its world


class Frame(msgspec.Struct, frozen=True, eq=False):
    """One input of the model, (1, C, H, W) or (1, N) float32, its capture time and context."""

    array: NDArray[np.float32]
    t_capture_ns: int
    context: dict[str, float] = {}


class FrameSource:
    """Frames of one source, in order, shaped for one model input.

    Parameters
    ----------
    settings : FrameSettings
        Where the frames come from and how pixels become model input.
    shape : tuple of int
        The model's input without the batch axis, (C, H, W) or (N,).

    Raises
    ------
    InputError
        The source does not exist, holds no frame, or holds frames that do not fit the model.
    """

    def __init__(self, settings: FrameSettings, shape: tuple[int, ...]) -> None:
        self._settings = settings
        self._shape = shape
        self._period_ns = 1e9 / settings.frame_rate_hz
        affine = (1, -1) + (1,) * (len(shape) - 1) if len(shape) == 3 else (1, -1)
        channels = shape[0] if len(shape) == 3 else 1
        mean, std = _per_channel(settings, "mean", channels), _per_channel(settings, "std", channels)
        self._gain = (settings.scale / std).astype(np.float32).reshape(affine)
        self._offset = (-mean / std).astype(np.float32).reshape(affine)
        where = settings.frames
        self.road_seed: int | None = None
        self._road: Road | None = None
        self._read: Callable[[int], NDArray[Any]]
        road, colon, seed = where.partition(":")
        if colon and road in ROADS:
            self.length: int | None = settings.limit
            self.road_seed = _seed(where, seed)
            self._world = ROADS[road]
            return
        path = Path(where)
        try:
            if not path.exists():
                raise InputError(where, "no such file or directory")
            if path.is_dir():
                count, self._read = _open_directory(path, "L" if channels == 1 else "RGB")
            else:
                count, self._read = _open_array(path)
        except OSError as error:  # no right to look, a name too long
            raise InputError(where, error.strerror or str(error)) from error
        if count == 0:
            raise InputError(where, "holds no frames (images, .npy files, or an array of them)")
        if not settings.loop:
            self.length = count if settings.limit is None else min(count, settings.limit)
        else:
            self.length = settings.limit
        self._count = count

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames, ``length`` of them, without end when it is None."""
        frames = self._from_files() if self.road_seed is None else self._from_road(self.road_seed)
        return islice(frames, self.length)

    def _from_files(self) -> Iterator[Frame]:
        index = 0
        while True:
            for i in range(self._count):
                array = self._shaped(self._read(i), f"{self._settings.frames}, frame {i}")
                yield Frame(array, int(index * self._period_ns))
                index += 1

    def again(self) -> NDArray[np.float32] | None:
        """Give the last frame's scene once more with fresh noise; None where the source cannot."""
        if self._road is None:
            return None
        return self._shaped(self._road.render_again().image, self._settings.frames)

    def _from_road(self, seed: int) -> Iterator[Frame]:
        self._road = Road(seed, self._world)
        for scene in self._road:
            context = {"speed_mps": scene.speed_mps, "exposure": scene.exposure}
            yield Frame(
                self._shaped(scene.image, self._settings.frames), int(scene.index * self._period_ns), context
            )

    def _shaped(self, raw: NDArray[Any], name: str) -> NDArray[np.float32]:
        """Pixels to model input: channels first, one batch axis, ``(x * scale - mean) / std``."""
        if raw.dtype.kind not in "buif":
            raise InputError(name, f"holds {raw.dtype}, not numbers")
        array = raw
        if len(self._shape) == 3:
            if array.ndim == 2:
                array = array[None]
            elif array.ndim == 3 and array.shape != self._shape:
                array = array.transpose(2, 0, 1)
        if array.shape != self._shape:
            raise InputError(name, f"has shape {raw.shape}, the model takes {self._shape}")
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is counted further on
            return np.ascontiguousarray(array[None].astype(np.float32) * self._gain + self._offset)


def _per_channel(settings: FrameSettings, key: str, channels: int) -> NDArray[np.float64]:
    """``mean`` or ``std`` as one number per channel."""
    values = np.asarray(getattr(settings, key), np.float64)
    if values.size not in {1, channels}:
        raise InputError(key, f"has {values.size} values, the model's input has {channels} channels")
    return np.broadcast_to(values, (channels,))


def _seed(where: str, text: str) -> int:
    if not text.isdecimal():
        raise InputError(where, f"the seed must be a number, is {text!r}")
    return int(text)


def _open_directory(path: Path, mode: str) -> tuple[int, Callable[[int], NDArray[Any]]]:
    # By number, for frame10 comes after frame9; hidden files are other programs' notes.
    names = (p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES | {".npy"})
    files = sorted((p for p in names if p.is_file() and not p.name.startswith(".")), key=_by_number)
    return len(files), lambda i: _read_file(files[i], mode)


def _by_number(path: Path) -> list[tuple[int, str]]:
    """Sort key that takes each run of digits in a name as a number."""
    parts = re.split(r"([0-9]+)", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _open_array(path: Path) -> tuple[int, Callable[[int], NDArray[Any]]]:
    try:
        with path.open("rb") as file:
            array = np.load(file, allow_pickle=False)
            if not isinstance(array, np.ndarray):
                array = next((array[key] for key in ARCHIVE_KEYS if key in array.files), None)
    except Exception as error:  # damaged files make NumPy and zipfile raise a dozen kinds
        raise InputError(path, f"not a NumPy file ({error})") from error
    if not isinstance(array, np.ndarray):
        raise InputError(path, f"has none of the arrays {', '.join(ARCHIVE_KEYS)}")
    if array.ndim < 2:
        raise InputError(path, f"has shape {array.shape}; the first axis must count frames")
    return len(array), lambda i: np.asarray(array[i])


def _read_file(path: Path, mode: str) -> NDArray[Any]:
    if path.suffix.lower() == ".npy":
        try:
            with path.open("rb") as file:
                return np.asarray(np.load(file, allow_pickle=False))
        except Exception as error:  # damaged files make NumPy and zipfile raise a dozen kinds
            raise InputError(path, f"not a NumPy array ({error})") from error
    try:
        from PIL import Image  # noqa: PLC0415  only image files need it
    except ImportError as error:
        raise InputError(path, "reading images needs pillow: pip install '.[offline]'") from error
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert(mode))
    except Exception as error:  # and so do Pillow's decoders
        raise InputError(path, f"not a readable image ({error})") from error
