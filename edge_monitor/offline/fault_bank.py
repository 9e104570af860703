"""The fault head's training: a bank of faults put into clean scenes, and a perceptron that learns them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray
from sklearn.neural_network import MLPClassifier

from edge_monitor.errors import InputError, ModelError
from edge_monitor.fault_head import gather, n_inputs
from edge_monitor.kernels.perceptron import KNEE
from edge_monitor.offline.faults import FAULTS, Stage
from edge_monitor.offline.injection import Injection, Injector, Range, fork, levels_of, warm
from edge_monitor.offline.observe import Observed, Progress, silent
from edge_monitor.offline.scene import Scene
from edge_monitor.pipeline import Monitor
from edge_monitor.region_map import FaultHead, RegionMap
from edge_monitor.types import FloatArray, HealthReport, StatRow

MILDEST, STRONGEST = 0.5, 3.0
"""Strength of the bank's faults, drawn at random."""
STRIDE, FIRST = 3, 2
"""Of a scene's frames every third from the third on is learned: neighbours teach nothing new."""
HIDDEN = 64
EPOCHS = 30
CLEAN_SHARE = 1.0
"""Clean samples for each faulty one."""
EXACT = frozenset({"frozen exact", "NaN/Inf", "frame reorder"})
"""Faults that a guard finds without fail; the head would only learn to guess them."""


CALLED = {"true freeze": "frozen with noise"}
"""Faults that go by the name of another: for whoever hears of it they are the same."""


class Bank(msgspec.Struct, frozen=True, eq=False):
    """Samples: inputs (n, n_inputs), class (n,) with 0 = clean, and the scene's number (n,)."""

    names: tuple[str, ...]
    inputs: FloatArray
    labels: NDArray[np.int64]
    scenes: NDArray[np.int64]


def head_faults() -> tuple[str, ...]:
    """Names of the faults that a head can learn."""
    return tuple(
        fault.name for fault in FAULTS if fault.name not in EXACT and fault.stage is not Stage.STREAM
    ) + ("true freeze",)


def train_head(
    observed: Observed, provisional: RegionMap, n_fit: int, progress: Progress = silent
) -> FaultHead | None:
    """Make a bank from the observed scenes and train on it; None without scenes to break."""
    if not observed.scenes:
        return None
    injector = Injector(
        observed.model_bytes, observed.taps, Range.of(observed.images.frames), observed.frame_rate_hz
    )
    bank = make_bank(injector, provisional, observed.scenes, seed=observed.seed, progress=progress)
    clean = gather_clean(provisional, observed.rows[:n_fit], progress)
    progress("head", 0, 1)
    head = fit_head(bank, clean, seed=observed.seed)
    progress("head", 1, 1)
    return head


def make_bank(
    injector: Injector,
    region_map: RegionMap,
    scenes: Sequence[Scene],
    names: tuple[str, ...] | None = None,
    variants: tuple[str, ...] = ("drill", "other"),
    seed: int = 0,
    progress: Progress = silent,
) -> Bank:
    """Put every fault into every scene, with random strength, seed and variant.

    Faults that the model or the source cannot have are left out.
    """
    names = head_faults() if names is None else names
    monitor = Monitor(region_map)
    rng = np.random.default_rng([seed, 4])
    inputs: list[FloatArray] = []
    labels: list[int] = []
    numbers: list[int] = []
    kinds = list(dict.fromkeys(CALLED.get(name, name) for name in names))
    possible = set(names)
    for number, scene in enumerate(scenes):
        warm(monitor, scene)
        for name in names:
            level, own_seed = rng.uniform(MILDEST, STRONGEST), int(rng.integers(2**31))
            variant = variants[int(rng.integers(len(variants)))]
            if name not in possible:
                continue
            injection = Injection(name, levels_of(level, scene.length), own_seed, variant)
            try:
                rows = injector.rows(scene, [injection])
            except (InputError, ModelError):
                possible.discard(name)
                continue
            samples = [gathered(report) for report in _step(fork(monitor), rows)]
            for sample in samples[FIRST::STRIDE]:
                if sample is not None:
                    inputs.append(sample)
                    labels.append(1 + kinds.index(CALLED.get(name, name)))
                    numbers.append(number)
        progress("bank", number + 1, len(scenes))
    n = n_inputs(region_map.taps)
    return Bank(
        tuple(kinds), np.stack(inputs) if inputs else np.empty((0, n)), np.array(labels), np.array(numbers)
    )


def gather_clean(region_map: RegionMap, rows: Sequence[StatRow], progress: Progress = silent) -> FloatArray:
    """Inputs of clean rows, every `STRIDE`-th, (n, n_inputs)."""
    monitor = Monitor(region_map)
    inputs = []
    for i, row in enumerate(rows):
        report = monitor.step(row)
        sample = gathered(report) if i % STRIDE == 0 else None
        if sample is not None:
            inputs.append(sample)
        if i % 1000 == 0:
            progress("clean", i, len(rows))
    progress("clean", len(rows), len(rows))
    return np.stack(inputs) if inputs else np.empty((0, n_inputs(region_map.taps)))


def gathered(report: HealthReport) -> FloatArray | None:
    """Inputs of the head in one report, None while they are not known."""
    if report.connectivity is None or report.bands is None or report.connectivity.shift_score is None:
        return None
    out = np.empty(
        report.connectivity.departure.size
        + report.connectivity.shift.size
        - 1
        + report.bands.z.size
        + report.bands.line.size
        + report.bands.structure.size
        + 3
    )
    gather(report.connectivity, report.bands, report.vitals, out)
    return out


def fit_head(bank: Bank, clean: FloatArray, seed: int = 0) -> FaultHead | None:
    """Train on a bank and clean samples; None when either is empty.

    A tenth of the scenes is kept back to see how many faults are named right.
    """
    if not len(bank.labels) or not len(clean):
        return None
    rng = np.random.default_rng([seed, 5])
    kept_back = bank.scenes % 10 == 9
    mean = np.nanmean(np.where(np.isfinite(clean).any(axis=0), clean, 0.0), axis=0)
    scale = np.nanstd(np.where(np.isfinite(clean).any(axis=0), clean, 0.0), axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    n_clean = min(len(clean), int(CLEAN_SHARE * len(bank.labels)))
    chosen = rng.permutation(len(clean))[:n_clean]
    x = np.concatenate([bank.inputs[~kept_back], clean[chosen]])
    y = np.concatenate([bank.labels[~kept_back], np.zeros(n_clean, np.int64)])
    network = MLPClassifier(
        (HIDDEN,), alpha=1e-4, batch_size=512, learning_rate_init=2e-3, max_iter=EPOCHS, random_state=seed
    )
    for _ in range(EPOCHS):
        network.partial_fit(squashed(x, mean, scale), y, classes=np.arange(len(bank.names) + 1))
    accuracy = None
    if kept_back.any():
        probability = network.predict_proba(squashed(bank.inputs[kept_back], mean, scale))
        accuracy = float(np.mean(1 + probability[:, 1:].argmax(axis=1) == bank.labels[kept_back]))
    weights = [np.vstack([w, b]) for w, b in zip(network.coefs_, network.intercepts_, strict=True)]
    hidden, output = (w.astype(np.float64) for w in weights)
    return FaultHead(bank.names, mean, scale, hidden, output, accuracy)


def squashed(x: FloatArray, mean: FloatArray, scale: FloatArray) -> NDArray[np.float32]:
    """Inputs as the device's kernel bounds them (`kernels.perceptron.squash`)."""
    u = np.nan_to_num((x - mean) / scale, nan=0.0, posinf=1e6, neginf=-1e6)
    return (u / (1.0 + np.abs(u) / KNEE)).astype(np.float32)


def _step(monitor: Monitor, rows: Sequence[StatRow]) -> list[HealthReport]:
    return [monitor.step(row) for row in rows]
