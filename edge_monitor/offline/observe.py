"""Run a model over clean frames and keep what the probe sees."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_monitor.config import FrameSettings
from edge_monitor.errors import InputError, ModelError, RecordingError, about
from edge_monitor.map_file import from_bytes
from edge_monitor.neutrality import certify_neutrality
from edge_monitor.offline.scene import BEFORE, Scene, SceneCutter
from edge_monitor.probe import Probe
from edge_monitor.region_map import Golden, Neutrality, RegionMap, Runtime
from edge_monitor.sources.frames import FrameSource
from edge_monitor.sources.recording import RecordingReader
from edge_monitor.taps.known_model import load_known_model
from edge_monitor.taps.model_file import load_model
from edge_monitor.types import FloatArray, IntArray, StatRow, TapSpec

FIT_SHARE = 0.4
"""Share of the rows that fits baselines and trains the fault head."""
N_SCENES, SCENE_FRAMES, SCENE_LEAD = 192, 90, 300
"""Stretches of the fitted part that the fault head's training breaks, their frames, and clean rows before
them."""
LEAST_FRAMES = ceil((SCENE_LEAD + BEFORE + 2 * SCENE_FRAMES) / FIT_SHARE)
"""Of which one scene can be cut."""
SCENE_BYTES = 2**30
"""Memory for them at most; large pictures have fewer."""
N_GOLDEN = 8
N_IMAGES = 256
"""Frames, evenly spaced, on which tracts are traced."""
GOLDEN_TOLERANCE = 1e-5
"""Outputs of the tapped and the untapped model may differ by this, relative to the largest output.

Float32 kernels fused in another order differ by about 1e-6; a real change is far larger.
"""

Progress = Callable[[str, int, int | None], None]
"""Told (phase, done, total) now and then; total is None when it is not known."""


def silent(phase: str, done: int, total: int | None) -> None:
    """Progress for callers who want none."""


class Images(msgspec.Struct, frozen=True, eq=False):
    """Some clean frames: model inputs (n, ...) without batch axis, and their voxel sums (n, n_voxels, 3)."""

    frames: NDArray[np.float32]
    voxels: FloatArray


class Observed(msgspec.Struct, frozen=True, eq=False):
    """Clean rows of one model with what identifies it; ``seed`` of the demo road, else 0.

    Rows that a device recorded come with no ``images`` and ``scenes``, but with the ``workstation`` map
    that the device used: what only images can tell is taken from there.
    """

    model: str
    model_sha256: str
    source: str
    seed: int
    frame_rate_hz: float
    taps: tuple[TapSpec, ...]
    rows: list[StatRow]
    golden: Golden
    device: Runtime
    model_bytes: bytes
    images: Images
    neutrality: Neutrality
    scenes: tuple[Scene, ...] = ()
    workstation: RegionMap | None = None


def observe(
    model: Path,
    settings: FrameSettings,
    tap_names: Sequence[str] | None = None,
    progress: Progress = silent,
) -> Observed:
    """Run the model over clean frames and keep the rows.

    Raises
    ------
    ModelError
        The model cannot be tapped, its answers change when it is, or it has several inputs.
    InputError
        There are no frames, or one that gives NaN or Inf.
    """
    data, _ = load_model(model)
    rows: list[StatRow] = []
    with about(model):
        probe = Probe.open(model, taps=tap_names, on_row=rows.append)
    if not probe.attached:
        raise ModelError(model, f"the probe does not attach: {probe.detach_reason}")
    inputs, shape = probe.input_names, probe.frame_shape
    if len(inputs) != 1:
        raise ModelError(model, f"has {len(inputs)} inputs ({', '.join(inputs)}), frames can feed one")
    frames = FrameSource(settings, shape)
    total = frames.length
    golden_places, image_places = (_spread(n, total or 10_000) for n in (N_GOLDEN, N_IMAGES))
    images: list[tuple[NDArray[np.float32], FloatArray]] = []
    golden: list[tuple[NDArray[np.float32], FloatArray, FloatArray]] = []
    cutter = SceneCutter(scene_onsets(total, int(np.prod(shape))), SCENE_FRAMES)
    for i, frame in enumerate(frames):
        cutter.add(i, frame, frames.again)
        probe.note(t_capture_ns=frame.t_capture_ns, **frame.context)
        outputs = probe.feed(frame.array)
        if not probe.attached:
            raise ModelError(model, f"the probe detached at frame {i}: {probe.detach_reason}")
        require_finite(rows[-1], settings.frames)
        if i in golden_places:
            flat = np.concatenate([np.ravel(output).astype(np.float64) for output in outputs])
            golden.append((frame.array[0], flat, rows[-1].signals))
        block = rows[-1].spatial
        if i in image_places and block is not None:
            images.append((frame.array[0], block.voxels / block.frames))
        if i % 100 == 0:
            progress("observe", i, total)
    progress("observe", len(rows), len(rows))
    if not rows:
        raise InputError(settings.frames, "holds no frames")
    golden_frames, answers, signals = (np.stack(column) for column in zip(*golden, strict=True))
    taps = probe.taps
    neutrality = certify_neutrality(
        data, taps=[tap.name for tap in taps[1:]], choose_frames=lambda _: golden_frames
    )
    if len(neutrality.taps) < len(taps) - 1:
        raise ModelError(model, f"cannot be certified: {'; '.join(neutrality.problems)}")
    return Observed(
        model=model.name,
        model_sha256=hashlib.sha256(data).hexdigest(),
        source=settings.frames,
        seed=frames.road_seed or 0,
        frame_rate_hz=settings.frame_rate_hz,
        taps=taps,
        rows=rows,
        golden=Golden(
            golden_frames, answers, signals, GOLDEN_TOLERANCE * max(1.0, float(np.abs(answers).max()))
        ),
        device=Runtime.here(probe.runtime),
        model_bytes=data,
        images=Images(*(np.stack(column) for column in zip(*images, strict=True))),
        neutrality=neutrality,
        scenes=cutter.scenes(rows, SCENE_LEAD),
    )


def require_finite(row: StatRow, source: str) -> None:
    """Refuse a frame that is not clean.

    Raises
    ------
    InputError
        It gives NaN or Inf, in the network or in its answer.
    """
    if row.nonfinite.any() or (row.output is not None and row.output.nonfinite):
        raise InputError(source, f"frame {row.frame} gives NaN or Inf; clean frames are needed")


def scene_onsets(total: int | None, size: int) -> list[int]:
    """Say where the scenes begin, evenly spaced over the part of ``total`` frames that is fitted.

    ``size``: numbers of a frame; large frames have fewer scenes.
    """
    if total is None:
        return []
    most = SCENE_BYTES // (4 * size * (BEFORE + 2 * SCENE_FRAMES))
    first, last = SCENE_LEAD + BEFORE, int(total * FIT_SHARE) - SCENE_FRAMES
    n = max(0, min(N_SCENES, most, (last - first) // SCENE_FRAMES))
    return [first + k * (last - first) // n for k in range(n)]


def observe_recording(model: Path, recording: Path) -> Observed:
    """Take the rows that a device recorded, with the taps and golden frames of the map it used.

    Raises
    ------
    RecordingError
        The recording is missing, damaged or empty.
    MapError
        The recording is of another model.
    """
    reader = RecordingReader(recording)
    try:
        device = msgspec.convert(reader.metadata, Runtime)
    except msgspec.ValidationError as error:
        raise RecordingError(recording, f"does not say which versions made it ({error})") from error
    region_map = from_bytes(reader.region_map_bytes(), f"{recording}: region map")
    data, _ = load_known_model(model, region_map)
    origin = region_map.provenance
    return Observed(
        model=model.name,
        model_sha256=origin.model_sha256,
        source=str(recording),
        seed=origin.seed,
        frame_rate_hz=origin.frame_rate_hz,
        taps=region_map.taps,
        rows=[item for item, _ in reader.items() if isinstance(item, StatRow)],
        golden=region_map.golden,
        device=device,
        model_bytes=data,
        images=Images(region_map.golden.frames[:0], np.empty((0, 0, 3))),
        neutrality=region_map.neutrality,
        workstation=region_map,
    )


def pick_frames(
    settings: FrameSettings, shape: tuple[int, ...], n: int, progress: Progress = silent
) -> tuple[NDArray[np.float32], IntArray]:
    """Return ``n`` frames of a source, evenly spaced, (n, ...) float32, and their places (n,).

    A source with fewer frames gives all it has.

    Raises
    ------
    InputError
        ``n`` is below 1, a frame holds NaN or Inf, or there are none of the model's input ``shape``.
    """
    if n < 1:
        raise InputError("images", f"{n} is below 1")
    source = FrameSource(settings, shape)
    total = source.length if source.length is not None else n
    wanted = _spread(n, total)
    picked: list[NDArray[np.float32]] = []
    for i, frame in enumerate(source):
        if i in wanted:
            if not np.isfinite(frame.array).all():
                raise InputError(settings.frames, f"frame {i} holds NaN or Inf; clean frames are needed")
            picked.append(frame.array[0])
        if i % 100 == 0:
            progress("frames", i, total)
        if len(picked) == len(wanted):
            break
    progress("frames", total, total)
    return np.stack(picked), np.array(sorted(wanted), np.int64)


def _spread(n: int, total: int) -> set[int]:
    """At most ``n`` places, evenly spaced over ``total``."""
    n = min(n, total)
    return set((np.arange(n) * total // n).tolist())


def read_labels(path: Path, places: IntArray) -> IntArray:
    """Classes of the frames at ``places`` (n,), from an ``.npy`` file or from ``labels`` in an ``.npz``.

    Raises
    ------
    InputError
        The file cannot be read, or holds no row of integers, or none for some of the places.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        labels = loaded if isinstance(loaded, np.ndarray) else loaded["labels"]
    except Exception as error:  # damaged files make NumPy and zipfile raise a dozen kinds
        raise InputError(path, f"holds no labels ({error})") from error
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(path, f"holds {labels.dtype}{labels.shape}, not a row of integers")
    if len(labels) <= places.max():
        raise InputError(path, f"holds {len(labels)} labels, none for frame {places.max()}")
    return labels[places].astype(np.int64)
