"""A region map as a file: load, verify, save.

One ``.npz`` file: every array under its dotted name, everything else as JSON in ``meta``. It is
loaded without pickle, and verified before anything uses it.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, get_origin

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_monitor.errors import MapError
from edge_monitor.region_map import (
    CrossmodalNull,
    EegBaseline,
    EvidenceNull,
    FaultHead,
    FmriBaseline,
    Golden,
    Impact,
    Neutrality,
    Provenance,
    RegionMap,
    ResidualBaseline,
    TractBaseline,
)
from edge_monitor.reports import CHANNELS, STATES
from edge_monitor.types import BANDS, TapSpec

FORMAT = 5

_Section = TypeVar("_Section", bound=msgspec.Struct)
_N_BANDS, _N_STATES, _N_CHANNELS = len(BANDS), len(STATES), len(CHANNELS)


def to_bytes(region_map: RegionMap) -> bytes:
    """Serialise a map; equal maps give equal bytes."""
    meta: dict[str, Any] = {"format": FORMAT}
    arrays: dict[str, NDArray[Any]] = {}
    for section in msgspec.structs.fields(RegionMap):
        value = getattr(region_map, section.name)
        if not isinstance(value, msgspec.Struct):
            meta[section.name] = msgspec.to_builtins(value)
            continue
        plain = meta[section.name] = {}
        for field in msgspec.structs.fields(value):
            item = getattr(value, field.name)
            if isinstance(item, np.ndarray):
                arrays[f"{section.name}.{field.name}"] = np.ascontiguousarray(item)
            else:
                plain[field.name] = msgspec.to_builtins(item)
    buffer = io.BytesIO()
    # The standard library's JSON writes infinity, which an error level may be; msgspec's writes null.
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def from_bytes(data: bytes, name: str = "region map") -> RegionMap:
    """Read and verify a map.

    Raises
    ------
    MapError
        The bytes are no region map, a field is missing, misshapen or not finite where it must be.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            # Read in full, so that each checksum is compared: np.load alone stops where an array ends.
            members = {key.removesuffix(".npy"): archive.read(key) for key in archive.namelist()}
        arrays = {key: np.load(io.BytesIO(npy), allow_pickle=False) for key, npy in members.items()}
        meta = json.loads(arrays.pop("meta").tobytes())
        found = meta.get("format")
    except KeyError as error:
        raise MapError(name, f"not a region map (it has no {error})") from error
    except Exception as error:  # damaged bytes make NumPy and zipfile raise a dozen kinds
        raise MapError(name, f"not a region map ({error})") from error
    if found != FORMAT:
        raise MapError(name, f"format is {found}, this version reads {FORMAT}: calibrate again")
    try:
        region_map = RegionMap(
            provenance=msgspec.convert(meta["provenance"], Provenance),
            taps=msgspec.convert(meta["taps"], tuple[TapSpec, ...]),
            eeg=_section(EegBaseline, "eeg", meta, arrays),
            fmri=_section(FmriBaseline, "fmri", meta, arrays),
            tracts=_section(TractBaseline, "tracts", meta, arrays),
            residual=_section(ResidualBaseline, "residual", meta, arrays),
            evidence=_section(EvidenceNull, "evidence", meta, arrays),
            crossmodal=msgspec.convert(meta["crossmodal"], CrossmodalNull),
            golden=_section(Golden, "golden", meta, arrays),
            neutrality=msgspec.convert(meta["neutrality"], Neutrality),
            impact=None if meta["impact"] is None else _section(Impact, "impact", meta, arrays),
            faults=None if meta["faults"] is None else _section(FaultHead, "faults", meta, arrays),
        )
    except KeyError as error:
        raise MapError(name, f"{error.args[0]} is missing") from error
    except (TypeError, msgspec.ValidationError) as error:
        raise MapError(name, f"a field is missing or has the wrong type ({error})") from error
    _verify(region_map, name)
    return region_map


def load_region_map(path: str | Path) -> RegionMap:
    """Load and verify the map at ``path``; see `from_bytes` for what is refused."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise MapError(path, error.strerror or str(error)) from error
    return from_bytes(data, str(path))


def save_region_map(region_map: RegionMap, path: str | Path) -> None:
    """Verify and write a map; a reader sees the old file or the whole new one, never half of it."""
    _verify(region_map, str(path))
    target = Path(path)
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        scratch.write_bytes(to_bytes(region_map))
        scratch.replace(target)
    except OSError as error:
        with suppress(OSError):
            scratch.unlink()
        raise MapError(path, f"cannot be written ({error.strerror})") from error


def _section(
    cls: type[_Section], name: str, meta: dict[str, Any], arrays: dict[str, NDArray[Any]]
) -> _Section:
    """Build one section: arrays from their dotted names, everything else from ``meta``."""
    values = {}
    for field in msgspec.structs.fields(cls):
        key = f"{name}.{field.name}"
        # From NumPy 2.5 on NDArray is an alias of its own, no longer ndarray under another name.
        if get_origin(field.type) in {np.ndarray, NDArray}:
            values[field.name] = np.ascontiguousarray(arrays[key])
        else:
            values[field.name] = msgspec.convert(meta[name][field.name], field.type)
    return cls(**values)


def _verify(region_map: RegionMap, name: str) -> None:
    """Refuse a map whose parts do not fit together; the first misfit is named."""
    if len(region_map.taps) < 2:
        raise MapError(name, f"needs the input and at least one tap, has {len(region_map.taps)} in all")
    for tap in region_map.taps:
        if not all(1 <= cells <= size for cells, size in zip(tap.grid, tap.shape, strict=True)):
            raise MapError(name, f"{tap.name} has grid {tap.grid} over shape {tap.shape}")
    n_taps = len(region_map.taps)
    n_voxels = sum(tap.n_voxels for tap in region_map.taps)
    bands = (n_taps, _N_BANDS)
    n_features = [tap.n_features for tap in region_map.taps]
    n_tracts = sum(a.n_voxels * b.n_voxels for a, b in itertools.pairwise(region_map.taps))
    # Tap 0 is predicted by a constant, every other tap from two features for each of the tap before and one.
    n_weights = n_features[0] + sum((2 * m + 1) * n for m, n in itertools.pairwise(n_features))
    n_points = region_map.evidence.tail.size
    n_golden = region_map.golden.frames.shape[0] if region_map.golden.frames.ndim else 0
    shapes: dict[str, tuple[int, ...]] = {
        "eeg.floor": bands,
        "eeg.mean": bands,
        "eeg.scale": bands,
        "eeg.profile_mean": bands,
        "eeg.profile_covariance": (*bands, _N_BANDS),
        "eeg.state_mix": (n_taps, _N_STATES),
        "eeg.line_level": (n_taps, *region_map.eeg.line_level.shape[-1:]),
        "eeg.line": (n_taps, 3),
        "fmri.median": (n_voxels,),
        "fmri.scale": (n_voxels,),
        "fmri.floor": (n_voxels,),
        "fmri.bright": (n_voxels,),
        "tracts.strength": (n_tracts,),
        "tracts.fidelity": (n_tracts,),
        "tracts.gate": (n_voxels, 2),
        "tracts.median": (n_tracts,),
        "tracts.scale": (n_tracts,),
        "tracts.active": (n_voxels,),
        "residual.floor": (sum(n_features),),
        "residual.low": (sum(n_features),),
        "residual.high": (sum(n_features),),
        "residual.weights": (n_weights,),
        "residual.whitening": (sum(n * n for n in n_features),),
        "residual.shift": (n_features[0] ** 2,),
        "residual.limit": (sum(n_features),),
        "evidence.tail": (n_points,),
        "evidence.quantiles": (_N_CHANNELS, n_points),
        "evidence.excess": (_N_CHANNELS,),
        "evidence.threshold": (_N_CHANNELS, 2),
        "golden.outputs": (n_golden, *region_map.golden.outputs.shape[-1:]),
        "golden.signals": (n_golden, n_taps),
    }
    if region_map.impact is not None:
        n_history = region_map.impact.history_pairs.size
        shapes |= {
            "impact.theta": (n_voxels,),
            "impact.stderr": (n_voxels,),
            "impact.image_stderr": (n_voxels,),
            "impact.f_all": (n_taps - 1,),
            "impact.f_none": (n_taps - 1,),
            "impact.pairs": (n_taps - 1,),
            "impact.history_pairs": (n_history,),
            "impact.history_theta": (n_history, n_voxels),
        }
    if region_map.faults is not None:
        # The head names how many inputs it takes; whether these are the taps' own is seen where it runs.
        n_inputs, n_hidden = region_map.faults.mean.size, region_map.faults.hidden.shape[-1]
        shapes |= {
            "faults.mean": (n_inputs,),
            "faults.scale": (n_inputs,),
            "faults.hidden": (n_inputs + 1, n_hidden),
            "faults.output": (n_hidden + 1, 1 + len(region_map.faults.names)),
        }
    for key, shape in shapes.items():
        section, field = key.split(".")
        array = getattr(getattr(region_map, section), field)
        if array.shape != shape or array.dtype != np.float64:
            raise MapError(name, f"{key} is {array.dtype}{array.shape}, not float64{shape}")
        bad = np.isinf(array) if key in _MAY_BE_MISSING else ~np.isfinite(array)
        if bad.any():
            index = tuple(int(i) for i in np.argwhere(bad)[0])
            raise MapError(name, f"{key}{list(index)} is {array[index]}")
        if key in _POSITIVE and (array <= 0).any():
            raise MapError(name, f"{key} must be positive, has {np.nanmin(array)}")
    certified = [tap.name for tap in region_map.neutrality.taps]
    if certified != [tap.name for tap in region_map.taps[1:]]:
        raise MapError(name, f"neutrality.taps are {', '.join(certified) or 'none'}, not the map's")
    _verify_values(region_map, name)


def _verify_values(region_map: RegionMap, name: str) -> None:
    """Refuse numbers that a kernel or a comparison could not work with."""
    tail, quantiles = region_map.evidence.tail, region_map.evidence.quantiles
    n_transitions = len(region_map.taps) - 1
    if tail.size < 2 or tail[0] > 1 or tail[-1] <= 0 or (np.diff(tail) >= 0).any():
        raise MapError(name, "evidence.tail must fall from 1 towards 0")
    if (np.diff(quantiles) < 0).any():
        raise MapError(name, "evidence.quantiles must rise")
    frames, tolerance = region_map.golden.frames, region_map.golden.tolerance
    if frames.size == 0 or frames.dtype.kind not in "buif" or not np.isfinite(frames).all():
        raise MapError(name, f"golden.frames must hold finite numbers, is {frames.dtype}{frames.shape}")
    if not 0 <= tolerance < np.inf:
        raise MapError(name, f"golden.tolerance is {tolerance}, must not be negative")
    if region_map.fmri.dead_rows < 0:
        raise MapError(name, f"fmri.dead_rows is {region_map.fmri.dead_rows}, must not be negative")
    if not 0 <= region_map.crossmodal.coherence_bias < 1:
        raise MapError(name, f"crossmodal.coherence_bias is {region_map.crossmodal.coherence_bias}")
    for key in ("temporal_error", "spatial_error", "least_agreement"):  # infinite: nothing is an error
        if np.isnan(getattr(region_map.crossmodal, key)):
            raise MapError(name, f"crossmodal.{key} is nan")
    if len(region_map.tracts.problems) != n_transitions:
        raise MapError(
            name, f"tracts.problems has {len(region_map.tracts.problems)} lines, not {n_transitions}"
        )
    _verify_residual(region_map.residual, name)
    if region_map.faults is not None:
        _verify_head(region_map.faults, name)
    first = region_map.taps[0].n_voxels
    if region_map.impact is not None and np.isnan(region_map.impact.theta[first:]).any():
        raise MapError(name, "impact.theta is nan for a voxel behind the input")
    if not 0 < region_map.provenance.frame_rate_hz < np.inf:
        raise MapError(name, f"frame_rate_hz is {region_map.provenance.frame_rate_hz}, must be positive")


def _verify_residual(residual: ResidualBaseline, name: str) -> None:
    """Refuse bounds that cross, and numbers that overflow in the precision of the device."""
    if (residual.low > residual.high).any():
        raise MapError(name, "residual.low lies above residual.high")
    _verify_single_precision(residual, "residual", ("weights", "whitening", "shift"), name)


def _verify_head(head: FaultHead, name: str) -> None:
    if not head.names:
        raise MapError(name, "faults.names is empty")
    _verify_single_precision(head, "faults", ("hidden", "output"), name)


def _verify_single_precision(part: msgspec.Struct, section: str, keys: tuple[str, ...], name: str) -> None:
    for key in keys:
        array = getattr(part, key)
        if (np.abs(array) > np.finfo(np.float32).max).any():
            raise MapError(name, f"{section}.{key} has {np.abs(array).max()}: beyond single precision")


# NaN means "this band, voxel or channel has no baseline" in these fields, damage elsewhere.
_MAY_BE_MISSING = {
    "eeg.mean",
    "eeg.scale",
    "eeg.profile_mean",
    "eeg.profile_covariance",
    "eeg.line_level",
    "eeg.line",
    "fmri.scale",
    "fmri.floor",
    "fmri.bright",
    "tracts.strength",
    "tracts.fidelity",
    "tracts.gate",
    "tracts.median",
    "tracts.scale",
    "tracts.active",
    "impact.theta",
    "impact.stderr",
    "impact.image_stderr",
    "impact.history_theta",
    "evidence.quantiles",
    "evidence.excess",
    "evidence.threshold",
}

_POSITIVE = {
    "eeg.floor",
    "eeg.scale",
    "fmri.scale",
    "fmri.floor",
    "tracts.scale",
    "residual.floor",
    "residual.limit",
    "faults.scale",
    "evidence.excess",
    "evidence.threshold",
}
