"""The region map: what calibration learned about one model. Load, verify, save.

One ``.npz`` file: every array under its dotted name, everything else as JSON in ``meta``. It is
loaded without pickle, and verified before anything uses it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import zipfile
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar, get_origin

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_monitor.errors import MapError
from edge_monitor.types import BANDS, CHANNELS, STATES, FloatArray, TapSpec

FORMAT = 1


def _runtime_version() -> str:
    """Name and version of the installed ONNX Runtime, of which vendors ship builds under other names."""
    for name in ("onnxruntime", "onnxruntime-gpu"):
        with suppress(PackageNotFoundError):
            return f"{name} {version(name)}"
    return "onnxruntime, version unknown"


class Runtime(msgspec.Struct, frozen=True):
    """Versions that produced a part of the map."""

    runtime: str
    machine: str
    python: str
    numpy: str
    numba: str

    @classmethod
    def here(cls) -> Runtime:
        """Versions of this interpreter and machine; imports nothing heavy to learn them."""
        return cls(
            runtime=_runtime_version(),
            machine=platform.machine(),
            python=platform.python_version(),
            numpy=np.__version__,
            numba=version("numba"),
        )


class Provenance(msgspec.Struct, frozen=True):
    """Where the map comes from.

    ``workstation`` calibrated it; ``device`` recorded the rows its baselines come from (the same
    when calibration ran the model itself). ``frames_fit`` and ``frames_held_out`` are disjoint.
    """

    model: str
    model_sha256: str
    source: str
    seed: int
    frame_rate_hz: float
    frames_fit: int
    frames_held_out: int
    workstation: Runtime
    device: Runtime
    warnings: tuple[str, ...] = ()


class EegBaseline(msgspec.Struct, frozen=True, eq=False):
    """Clean band powers. All arrays (n_taps, n_bands) float64 unless said otherwise.

    ``floor`` is added before the logarithm (signal units squared); ``mean`` and ``scale`` are
    median and 1.4826 MAD of log(power + floor), NaN where the band is unobservable or dead.
    ``profile_mean`` and ``profile_covariance`` (n_taps, n_bands, n_bands): the layer's signature, mean
    and covariance over 10 s windows of log power. ``state_mix`` (n_taps, n_states): share of clean
    frames per state. ``profile_accuracy``: share of held-out 10 s windows whose nearest profile is the
    right layer, None when there was no such window.
    """

    scale_mode: str
    floor: FloatArray
    mean: FloatArray
    scale: FloatArray
    profile_mean: FloatArray
    profile_covariance: FloatArray
    state_mix: FloatArray
    profile_accuracy: float | None


class FmriBaseline(msgspec.Struct, frozen=True, eq=False):
    """Clean voxel densities: median and 1.4826 MAD, (n_voxels,) float64; impact ``theta`` (n_voxels,).

    A voxel that never varied in calibration has scale NaN: it yields no z. Until impact scores
    were computed theta is 1 everywhere and ``theta_known`` is false. ``floor`` (n_voxels,): NaN for a
    tap's voxels, which have the density of D2; for the input's, whose density is the log level
    ``log(mean|a| + floor)``, a small share of the clean level.
    """

    median: FloatArray
    scale: FloatArray
    theta: FloatArray
    theta_known: bool
    floor: FloatArray


class EvidenceNull(msgspec.Struct, frozen=True, eq=False):
    """Null distribution and threshold of every evidence channel.

    ``quantiles`` (n_channels, n_points): clean scores at the tail probabilities ``tail`` (n_points,)
    from 1 down to 0.005; ``excess`` (n_channels,): scale of the exponential beyond. ``threshold``
    (n_channels,): surprise in nats at which the channel alarms; NaN switches the channel off.
    ``held_out_alarms`` counts alarms on held-out clean frames, ``held_out_hours`` their length.
    """

    tail: FloatArray
    quantiles: FloatArray
    excess: FloatArray
    threshold: FloatArray
    alarms_per_hour: float
    held_out_alarms: int
    held_out_hours: float


class CrossmodalNull(msgspec.Struct, frozen=True):
    """Clean reference of the consistency score: mean coherence of clean data, and what is an error."""

    coherence_bias: float
    temporal_error: float
    spatial_error: float


class Golden(msgspec.Struct, frozen=True, eq=False):
    """Frames with known answers.

    ``frames`` (n, ...) in the model's input dtype, without the batch axis; ``outputs``
    (n, n_outputs) float64, all outputs flattened; ``signals`` (n, n_taps) float64: the signature.
    ``tolerance``: largest absolute difference of outputs that still counts as the same answer.
    """

    frames: NDArray[Any]
    outputs: FloatArray
    signals: FloatArray
    tolerance: float


class RegionMap(msgspec.Struct, frozen=True, eq=False):
    """Everything calibration knows; see the sections."""

    provenance: Provenance
    taps: tuple[TapSpec, ...]
    eeg: EegBaseline
    fmri: FmriBaseline
    evidence: EvidenceNull
    crossmodal: CrossmodalNull
    golden: Golden

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the model's input without the batch axis, before any stride."""
        return self.golden.frames.shape[1:]

    def require_model(self, data: bytes, name: str) -> None:
        """Refuse a model file that is not the calibrated one.

        Raises
        ------
        MapError
            The SHA-256 of ``data`` is another.
        """
        expected, found = self.provenance.model_sha256, hashlib.sha256(data).hexdigest()
        if found != expected:
            calibrated = f"{self.provenance.model} ({expected[:12]})"
            raise MapError("region map", f"belongs to model {calibrated}, {name} is {found[:12]}")

    def require_frame_rate(self, rate_hz: float) -> None:
        """Refuse a stream of another rate: bands, gaps and deadlines would all be wrong.

        Raises
        ------
        MapError
            The map was calibrated at another rate.
        """
        if rate_hz != self.provenance.frame_rate_hz:
            calibrated = f"{self.provenance.frame_rate_hz:g} Hz"
            raise MapError("frame_rate_hz", f"is {rate_hz:g}, the map was calibrated at {calibrated}")


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
    except Exception as error:  # damaged bytes make NumPy and zipfile raise a dozen kinds
        raise MapError(name, f"not a region map ({error})") from error
    if found != FORMAT:
        raise MapError(name, f"format is {found}, this version reads {FORMAT}")
    try:
        region_map = RegionMap(
            provenance=msgspec.convert(meta["provenance"], Provenance),
            taps=msgspec.convert(meta["taps"], tuple[TapSpec, ...]),
            eeg=_section(EegBaseline, "eeg", meta, arrays),
            fmri=_section(FmriBaseline, "fmri", meta, arrays),
            evidence=_section(EvidenceNull, "evidence", meta, arrays),
            crossmodal=msgspec.convert(meta["crossmodal"], CrossmodalNull),
            golden=_section(Golden, "golden", meta, arrays),
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
    n_points = region_map.evidence.tail.size
    n_golden = region_map.golden.frames.shape[0] if region_map.golden.frames.ndim else 0
    shapes: dict[str, tuple[int, ...]] = {
        "eeg.floor": bands,
        "eeg.mean": bands,
        "eeg.scale": bands,
        "eeg.profile_mean": bands,
        "eeg.profile_covariance": (*bands, _N_BANDS),
        "eeg.state_mix": (n_taps, _N_STATES),
        "fmri.median": (n_voxels,),
        "fmri.scale": (n_voxels,),
        "fmri.theta": (n_voxels,),
        "fmri.floor": (n_voxels,),
        "evidence.tail": (n_points,),
        "evidence.quantiles": (_N_CHANNELS, n_points),
        "evidence.excess": (_N_CHANNELS,),
        "evidence.threshold": (_N_CHANNELS,),
        "golden.outputs": (n_golden, *region_map.golden.outputs.shape[-1:]),
        "golden.signals": (n_golden, n_taps),
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
    _verify_values(region_map, name)


def _verify_values(region_map: RegionMap, name: str) -> None:
    """Refuse numbers that a kernel or a comparison could not work with."""
    tail, quantiles = region_map.evidence.tail, region_map.evidence.quantiles
    if tail.size < 2 or tail[0] > 1 or tail[-1] <= 0 or (np.diff(tail) >= 0).any():
        raise MapError(name, "evidence.tail must fall from 1 towards 0")
    if (np.diff(quantiles) < 0).any():
        raise MapError(name, "evidence.quantiles must rise")
    frames, tolerance = region_map.golden.frames, region_map.golden.tolerance
    if frames.size == 0 or frames.dtype.kind not in "buif" or not np.isfinite(frames).all():
        raise MapError(name, f"golden.frames must hold finite numbers, is {frames.dtype}{frames.shape}")
    if not 0 <= tolerance < np.inf:
        raise MapError(name, f"golden.tolerance is {tolerance}, must not be negative")
    if not 0 <= region_map.crossmodal.coherence_bias < 1:
        raise MapError(name, f"crossmodal.coherence_bias is {region_map.crossmodal.coherence_bias}")
    for key in ("temporal_error", "spatial_error"):  # infinite: nothing is an error
        if np.isnan(getattr(region_map.crossmodal, key)):
            raise MapError(name, f"crossmodal.{key} is nan")
    if not 0 < region_map.provenance.frame_rate_hz < np.inf:
        raise MapError(name, f"frame_rate_hz is {region_map.provenance.frame_rate_hz}, must be positive")


# NaN means "this band, voxel or channel has no baseline" in these fields, damage elsewhere.
_MAY_BE_MISSING = {
    "eeg.mean",
    "eeg.scale",
    "eeg.profile_mean",
    "eeg.profile_covariance",
    "fmri.scale",
    "fmri.floor",
    "evidence.quantiles",
    "evidence.excess",
    "evidence.threshold",
}

_POSITIVE = {
    "eeg.floor",
    "eeg.scale",
    "fmri.scale",
    "fmri.floor",
    "evidence.excess",
    "evidence.threshold",
}
