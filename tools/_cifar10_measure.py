"""Everything the study measures for one seed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
from _cifar10_stream import CONDITIONS, FRAME_RATE_HZ
from _cifar10_worlds import CALIBRATE, JUDGE, STREAM, World, frames
from _study_deletion import ORDERS, RANDOM_ORDERS, Deleter, Deletion, calibrated
from numpy.typing import NDArray

from edge_monitor.band_plan import WINDOWS
from edge_monitor.config import FrameSettings
from edge_monitor.eeg import log_powers, nearest_profile
from edge_monitor.errors import ModelError
from edge_monitor.kernels.consistency import DELAY
from edge_monitor.offline.baselines import PROFILE_S
from edge_monitor.offline.calibrate import calibrate
from edge_monitor.offline.impact import impact_scores
from edge_monitor.offline.observe import Progress, observe
from edge_monitor.offline.report_connectome import Transition, transitions_of
from edge_monitor.offline.shapley import ShapleySettings
from edge_monitor.offline.surgery import CutModel
from edge_monitor.pipeline import Monitor
from edge_monitor.probe import Probe
from edge_monitor.region_map import Impact, RegionMap
from edge_monitor.reports import STATES, HealthReport
from edge_monitor.taps.onnx import quiet_options
from edge_monitor.types import StatRow, TapSpec

WARM = max(WINDOWS)
"""Frames after which every band of a clip is known."""
SETTLED = WARM + 128 + DELAY
"""Frames after which the consistency window holds nothing but warm frames."""
WINDOW = int(PROFILE_S * FRAME_RATE_HZ)

TERMS = ("rho", "agreement", "coherence", "score")


class Effort(msgspec.Struct, frozen=True):
    """How much of everything one seed takes.

    ``clips`` are counted per condition and split; ``clip_frames`` must hold a 10 s window of warm frames.
    """

    stream_frames: int = 9000
    clips: int = 8
    clip_frames: int = 720
    pairs: int = 64
    impact_images: int = 128
    judged_images: int = 500


QUICK = Effort(stream_frames=1800, clips=2, pairs=8, impact_images=16, judged_images=100)


class Measured(msgspec.Struct, frozen=True, eq=False):
    """What one seed gave.

    ``log10_power`` (n_taps, n_bands): mean over judged clips of the moving camera. ``named`` (n_taps,):
    share of their 10 s windows whose nearest signature is that of the tap. ``mixes``: for each split
    (n_conditions, n_clips, n_taps, n_states), share of warm frames in each state. ``terms``
    (n_conditions, n_clips, n_terms): mean of the consistency and its terms over settled frames of judged
    clips, NaN where never valid.
    """

    seed: int
    taps: tuple[TapSpec, ...]
    log10_power: NDArray[np.float64]
    named: NDArray[np.float64]
    mixes: tuple[NDArray[np.float64], NDArray[np.float64]]
    terms: NDArray[np.float64]
    impact: Impact
    deletion: tuple[Deletion, ...]
    transitions: tuple[Transition, ...]


def measure(world: World, seed: int, effort: Effort, progress: Progress) -> Measured:
    """Calibrate on one split, measure on the other."""
    region_map = calibrated_map(world, seed, effort, progress)
    watcher = Watcher(world, region_map)
    clips = range(1, effort.clips + 1)
    total = 2 * len(CONDITIONS) * effort.clips
    watched = []
    for split in (CALIBRATE, JUDGE):
        for condition in CONDITIONS:
            for clip in clips:
                progress("clips", len(watched), total)
                watched.append(watcher.watch(frames(world, condition, split, seed, clip, effort.clip_frames)))
    progress("clips", total, total)
    taught, judged = watched[: total // 2], watched[total // 2 :]
    shape = (len(CONDITIONS), effort.clips)
    first = CONDITIONS.index("active") * effort.clips
    moving = judged[first : first + effort.clips]
    return Measured(
        seed=seed,
        taps=region_map.taps,
        log10_power=np.mean([clip.log_power.mean(axis=0) for clip in moving], axis=0) / np.log(10),
        named=named_windows(region_map, moving),
        mixes=tuple(
            np.reshape([c.mix for c in part], (*shape, -1, len(STATES))) for part in (taught, judged)
        ),
        terms=np.reshape([c.terms for c in judged], (*shape, len(TERMS))),
        impact=region_map.impact,
        deletion=tuple(deletion(world, region_map, effort, seed, progress)),
        transitions=tuple(transitions_of(region_map)),
    )


def calibrated_map(world: World, seed: int, effort: Effort, progress: Progress) -> RegionMap:
    """Region map from the moving camera, with impact scores."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "stream.npy"
        stream = frames(world, "active", CALIBRATE, seed, STREAM, effort.stream_frames)
        write_frames(file, stream, effort.stream_frames, progress)
        settings = FrameSettings(frames=str(file), frame_rate_hz=FRAME_RATE_HZ, realtime=False)
        observed = observe(world.model, settings, progress=progress)
    region_map = calibrate(observed, progress=progress)
    images, _ = world.stills(CALIBRATE, seed, effort.impact_images)
    settings = ShapleySettings(pairs=effort.pairs, seed=seed)
    impact = impact_scores(observed.model_bytes, observed.taps, images, settings=settings, progress=progress)
    return msgspec.structs.replace(region_map, impact=impact)


def write_frames(file: Path, stream: Iterable[NDArray[np.float32]], n: int, progress: Progress) -> None:
    """Write ``n`` model inputs as one array."""
    array = None
    for i, frame in enumerate(stream):
        if array is None:
            array = np.lib.format.open_memmap(file, "w+", np.float32, (n, *frame.shape[1:]))
        array[i] = frame[0]
        if i % 100 == 0:
            progress("stream", i, n)


class Watched(msgspec.Struct, frozen=True, eq=False):
    """One clip: log power (n_warm, n_taps, n_bands), state mix (n_taps, n_states), terms (n_terms,)."""

    log_power: NDArray[np.float64]
    mix: NDArray[np.float64]
    terms: NDArray[np.float64]


class Watcher:
    """Runs the model and its monitor over clips; each clip starts from nothing."""

    def __init__(self, world: World, region_map: RegionMap) -> None:
        self._map, self._monitor = region_map, Monitor(region_map)
        self._rows: list[StatRow] = []
        self._probe = Probe.onnx(
            world.model, region_map=region_map, on_row=self._rows.append, sess_options=quiet_options()
        )
        self._input = self._probe.get_inputs()[0].name

    def watch(self, clip: Iterable[NDArray[np.float32]]) -> Watched:
        """Summarise one clip."""
        self._rows.clear()
        self._monitor.reset()
        for i, frame in enumerate(clip):
            self._probe.note(t_capture_ns=int(i * 1e9 / FRAME_RATE_HZ))
            self._probe.run(None, {self._input: frame})
            if len(self._rows) != i + 1:
                raise ModelError("probe", f"frame {i} was not observed: {self._probe.detach_reason}")
        reports = [self._monitor.step(row) for row in self._rows]
        warm = reports[WARM:]
        states = np.array([report.bands.state for report in warm])
        return Watched(
            log_power=np.array([log_powers(report.bands.power, self._map.eeg.floor) for report in warm]),
            mix=np.stack([(states == state).mean(axis=0) for state in range(len(STATES))], axis=1),
            terms=np.array([mean_term(reports[SETTLED:], term) for term in TERMS]),
        )


def mean_term(reports: list[HealthReport], term: str) -> float:
    """Mean over the frames in which it is valid, NaN when it never is."""
    values = [getattr(report.consistency, term) for report in reports]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else np.nan


def named_windows(region_map: RegionMap, clips: list[Watched]) -> NDArray[np.float64]:
    """Share of 10 s windows of each tap, (n_taps,), whose nearest signature is its own."""
    eeg = region_map.eeg
    windows = [
        clip.log_power[start : start + WINDOW].mean(axis=0)
        for clip in clips
        for start in range(0, len(clip.log_power) - WINDOW + 1, WINDOW)
    ]
    return np.mean(
        [
            [
                nearest_profile(profile, eeg.profile_mean, eeg.profile_covariance) == tap
                for tap, profile in enumerate(window)
            ]
            for window in windows
        ],
        axis=0,
    )


def mean_curve(deleter: Deleter, worths: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Accuracy with 0, 1, 2 ... voxels deleted, the most worth first, mean over several kinds of worth."""
    orders = [np.argsort(-worth, kind="stable") for worth in worths]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return np.mean(list(pool.map(lambda order: list(deleter.accuracies(order)), orders)), axis=0)


def deletion(
    world: World, region_map: RegionMap, effort: Effort, seed: int, progress: Progress
) -> list[Deletion]:
    """Accuracy on judged images while voxels are deleted, for every tap and order."""
    data = world.model.read_bytes()
    images, _ = world.stills(CALIBRATE, seed, effort.impact_images)
    judged, labels = world.stills(JUDGE, seed, effort.judged_images)
    rng = np.random.default_rng(seed)
    found = []
    first = region_map.taps[0].n_voxels
    for tap in region_map.taps[1:]:
        theta = region_map.theta[first : first + tap.n_voxels]
        first += tap.n_voxels
        cut = CutModel(data, tap.name)
        mean, level, density = calibrated(cut, tap, images)
        deleter = Deleter(cut, tap, mean, judged, labels)
        worth = {"theta": [theta], "mean activation": [level], "density": [density]}
        worth["random"] = [rng.random(tap.n_voxels) for _ in range(RANDOM_ORDERS)]
        for done, name in enumerate(ORDERS):
            progress(f"deletion in {tap.name}", done, len(ORDERS))
            curve = mean_curve(deleter, worth[name])
            area = float(np.mean((curve[1:] + curve[:-1]) / 2))
            found.append(Deletion(seed, tap.name, name, area, tuple(curve.tolist())))
        progress(f"deletion in {tap.name}", len(ORDERS), len(ORDERS))
    return found
