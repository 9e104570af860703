"""Bank of faults put into clean scenes: what the fault head learns from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_monitor.errors import InputError, ModelError
from edge_monitor.fault_head import gather, n_inputs
from edge_monitor.offline.faults import FAULTS, Stage
from edge_monitor.offline.injection import Injection, Injector, fork, levels_of, warm
from edge_monitor.offline.observe import Progress, silent
from edge_monitor.offline.scene import Scene
from edge_monitor.pipeline import Monitor
from edge_monitor.region_map import RegionMap
from edge_monitor.reports import HealthReport
from edge_monitor.types import FloatArray, StatRow
from edge_monitor.vitals import MOVING_MPS

MILDEST, STRONGEST = 0.5, 3.0
"""Strength of the bank's faults, drawn at random."""
STRIDE, FIRST = 3, 2
"""Of a scene's frames every third from the third on is learned: neighbours teach nothing new."""
EXACT = frozenset({"frozen exact", "NaN/Inf", "frame reorder"})
"""Faults that a guard finds without fail; the head would only learn to guess them."""


HELD = frozenset({"frozen with noise", "true freeze"})
"""Faults under which only the motion of the scene is missing."""
CALLED = {"true freeze": "frozen with noise"}
"""Faults that go by the name of another: for whoever hears of it they are the same."""


class Bank(msgspec.Struct, frozen=True, eq=False):
    """Samples: inputs (n, n_inputs), class (n,) with 0 = clean, and the scene's number (n,).

    ``left_out``: why a fault could not be put in, of those without a sample.
    """

    names: tuple[str, ...]
    inputs: FloatArray
    labels: NDArray[np.int64]
    scenes: NDArray[np.int64]
    left_out: Mapping[str, str] = {}


def head_faults() -> tuple[str, ...]:
    """Names of the faults that a head can learn."""
    learned = (f.name for f in FAULTS if f.name not in EXACT and f.stage is not Stage.STREAM)
    return (*learned, "true freeze")


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

    What the model, the source or just this scene cannot have is left out: before a vehicle that stands, a
    held scene is no fault that anything could see.
    """
    names = head_faults() if names is None else names
    monitor = Monitor(region_map)
    rng = np.random.default_rng([seed, 4])
    inputs: list[FloatArray] = []
    labels: list[int] = []
    numbers: list[int] = []
    reasons: dict[str, str] = {}
    kinds = list(dict.fromkeys(CALLED.get(name, name) for name in names))
    for number, scene in enumerate(scenes):
        warm(monitor, scene)
        standing = any(c.get("speed_mps", np.inf) <= MOVING_MPS for c in scene.contexts)
        for name in names:
            level, own_seed = rng.uniform(MILDEST, STRONGEST), int(rng.integers(2**31))
            variant = variants[int(rng.integers(len(variants)))]
            if standing and name in HELD:
                continue
            injection = Injection(name, levels_of(level, scene.length), own_seed, variant)
            try:
                rows = injector.rows(scene, [injection])
            except (InputError, ModelError) as error:
                reasons.setdefault(CALLED.get(name, name), error.problem)
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
        tuple(kinds),
        np.stack(inputs) if inputs else np.empty((0, n)),
        np.array(labels),
        np.array(numbers),
        {kind: why for kind, why in reasons.items() if 1 + kinds.index(kind) not in labels},
    )


def gather_clean(region_map: RegionMap, rows: Sequence[StatRow], progress: Progress = silent) -> FloatArray:
    """Gather the inputs of clean rows, every `STRIDE`-th, (n, n_inputs)."""
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
    """Gather the inputs of the head from one report, None while they are not known."""
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


def _step(monitor: Monitor, rows: Sequence[StatRow]) -> list[HealthReport]:
    return [monitor.step(row) for row in rows]
