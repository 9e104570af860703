"""All seeds together: means with their 95 % interval over seeds, and what can be told apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from _cifar10_measure import TERMS, Effort, Measured
from _cifar10_results import (
    Curve,
    DeletionMean,
    Interval,
    Mix,
    Signature,
    Study,
    Telling,
    TermLevel,
    TractSummary,
    VoxelImpact,
)
from _cifar10_stream import CONDITIONS, CORRUPTIONS
from _cifar10_worlds import CALIBRATE, JUDGE
from _study_deletion import ORDERS
from numpy.typing import NDArray
from scipy.special import stdtrit

from edge_monitor.offline.page import place_of
from edge_monitor.reports import STATES
from edge_monitor.types import BANDS

STRONGEST = 0.1
"""Share of a transition's tracts that count as its strongest."""
ENOUGH_SEEDS = 3
"""Areas of few clips take few values, so that two seeds often agree by chance."""
KINDS = {name: "corrupted" if name in CORRUPTIONS else name for name in CONDITIONS}


def summarise(world: str, effort: Effort, results: Sequence[Measured]) -> Study:
    return Study(
        world=world,
        seeds=tuple(result.seed for result in results),
        effort=effort,
        taps=results[0].taps,
        signatures=tuple(signatures(results)),
        states=tuple(states(results)),
        telling=tell_conditions(results),
        impact=tuple(impact(results)),
        deletion=tuple(deletion(results)),
        deletion_means=tuple(deletion_means(results)),
        tracts=tuple(tracts(results)),
        crossmodal=tuple(crossmodal(results)),
    )


def interval(values: Iterable[float]) -> Interval:
    """Mean and 95 % interval over the seeds that have a value."""
    seeds = tuple(float(value) for value in values)
    known = np.array([value for value in seeds if np.isfinite(value)])
    half = float("nan")
    if known.size >= 2:
        half = float(stdtrit(known.size - 1, 0.975) * known.std(ddof=1) / np.sqrt(known.size))
    return Interval(float(known.mean()) if known.size else float("nan"), half, seeds)


def signatures(results: Sequence[Measured]) -> Iterable[Signature]:
    for i, tap in enumerate(results[0].taps):
        powers = {band: interval(r.log10_power[i, b] for r in results) for b, band in enumerate(BANDS)}
        yield Signature(tap.name, powers, interval(r.named[i] for r in results))


def states(results: Sequence[Measured]) -> Iterable[Mix]:
    for c, condition in enumerate(CONDITIONS):
        for i, tap in enumerate(results[0].taps):
            mixes = [r.mixes[JUDGE][c, :, i].mean(axis=0) for r in results]
            shares = {name: interval(mix[s] for mix in mixes) for s, name in enumerate(STATES)}
            yield Mix(condition, tap.name, shares)


def tell_conditions(results: Sequence[Measured]) -> Telling:
    """Give each judged clip the condition whose typical mix of states, taught by other seeds, is nearest."""
    n = len(CONDITIONS)
    kinds = np.array(list(KINDS.values()))
    counts = np.zeros((n, n), np.int64)
    right, right_kind = [], []
    for result in results:
        teachers = [other for other in results if other is not result] or [result]
        typical = np.mean([r.mixes[CALIBRATE].mean(axis=1) for r in teachers], axis=0)
        apart = result.mixes[JUDGE][:, :, None] - typical  # condition, clip, said condition, tap, state
        said = np.sum(apart**2, axis=(3, 4)).argmin(axis=2)
        truth = np.broadcast_to(np.arange(n)[:, None], said.shape)
        np.add.at(counts, (truth, said), 1)
        right.append(np.mean(said == truth))
        right_kind.append(np.mean(kinds[said] == kinds[truth]))
    rows = tuple(tuple(row) for row in counts.tolist())
    return Telling(rows, interval(right), interval(right_kind), own_seed=len(results) == 1)


def impact(results: Sequence[Measured]) -> Iterable[VoxelImpact]:
    taps = results[0].taps
    for voxel in range(taps[0].n_voxels, sum(tap.n_voxels for tap in taps)):
        sampling = np.mean([r.impact.stderr[voxel] for r in results])
        images = np.mean([r.impact.image_stderr[voxel] for r in results])
        theta = interval(r.impact.theta[voxel] for r in results)
        yield VoxelImpact(*place_of(taps, voxel), theta, float(sampling), float(images))


def deletion(results: Sequence[Measured]) -> Iterable[Curve]:
    for tap in results[0].taps[1:]:
        for order in ORDERS:
            found = [d for r in results for d in r.deletion if (d.tap, d.order) == (tap.name, order)]
            steps = zip(*(d.curve for d in found), strict=True)
            yield Curve(tap.name, order, interval(d.area for d in found), tuple(map(interval, steps)))


def deletion_means(results: Sequence[Measured]) -> Iterable[DeletionMean]:
    means = {o: [np.mean([d.area for d in r.deletion if d.order == o]) for r in results] for o in ORDERS}
    for order, areas in means.items():
        less = interval(np.subtract(means["theta"], areas))
        yield DeletionMean(order, interval(areas), less)


def tracts(results: Sequence[Measured]) -> Iterable[TractSummary]:
    for transitions in zip(*(r.transitions for r in results), strict=True):
        strengths = np.array([t.strength for t in transitions])
        fidelities = np.array([t.fidelity for t in transitions])
        yield TractSummary(
            transition=transitions[0].name,
            problem=transitions[0].problem,
            tracts=transitions[0].strength.size,
            strongest_share=interval(map(strongest_share, strengths)),
            same_seeds=agreement_of_seeds(strengths),
            fidelity=interval(median_known(f) for f in fidelities),
            reliable=interval(np.mean(t.reliable) if not t.problem else np.nan for t in transitions),
            strength=as_rows(strengths.mean(axis=0)),
            tract_fidelity=as_rows(fidelities.mean(axis=0)),
        )


def strongest_share(strength: NDArray[np.float64]) -> float:
    """Share of the sum that the strongest tenth of the tracts carries."""
    ordered = np.sort(strength.ravel())[::-1]
    total = ordered.sum()
    return float(ordered[: round(STRONGEST * ordered.size)].sum() / total) if total > 0 else float("nan")


def agreement_of_seeds(strengths: NDArray[np.float64]) -> float:
    """Mean correlation between the strengths of two seeds, NaN with one seed."""
    flat = strengths.reshape(len(strengths), -1)
    if len(flat) < 2 or not np.isfinite(flat).all():
        return float("nan")
    return float(np.corrcoef(flat)[np.triu_indices(len(flat), 1)].mean())


def median_known(values: NDArray[np.float64]) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else float("nan")


def as_rows(matrix: NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in matrix.tolist())


def crossmodal(results: Sequence[Measured]) -> Iterable[TermLevel]:
    clean = CONDITIONS.index("active")
    for c, condition in enumerate(CONDITIONS):
        for t, term in enumerate(TERMS):
            level = interval(mean_known(r.terms[c, :, t]) for r in results)
            area = interval(
                roc_area(r.terms[clean, :, t], r.terms[c, :, t]) if c != clean else np.nan for r in results
            )
            known = sum(np.isfinite(area.seeds))
            separates = bool(abs(area.mean - 0.5) > area.half) if known >= ENOUGH_SEEDS else None
            yield TermLevel(condition, term, level, area, separates)


def mean_known(values: NDArray[np.float64]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")


def roc_area(clean: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Probability that a clean value exceeds another one, ties counting half; NaN without values."""
    a, b = clean[np.isfinite(clean)], other[np.isfinite(other)]
    if not (a.size and b.size):
        return float("nan")
    return float(np.mean((a[:, None] > b) + 0.5 * (a[:, None] == b)))
