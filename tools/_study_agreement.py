"""Are sampled impact scores right? Against enumeration of all coalitions, and against another package."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import msgspec
import numpy as np
from _study_exact import exact
from _study_games import Network, remembered
from numpy.typing import NDArray

from edge_monitor.offline.ablation import whole_answers
from edge_monitor.offline.observe import Progress
from edge_monitor.offline.payoff import decision_probability
from edge_monitor.offline.shapley import Shapley, ShapleySampler, ShapleySettings, Value
from edge_monitor.types import TapSpec

PAIRS = 128
FLOOR = 1e-6
"""Differences up to this are rounding, however small the standard error is."""


class Agreement(msgspec.Struct, frozen=True):
    """Sampled against exact values of one tap.

    ``within_3``: share of voxels, over all runs, within max(3 standard errors, `FLOOR`); ``worst``: the
    largest difference in standard errors, ``worst_difference`` in units of the payoff, a probability.
    ``f_all_difference``: payoff with all voxels active against that of the uncut model.
    """

    network: str
    tap: str
    voxels: int
    images: int
    runs: int
    within_3: float
    worst: float
    worst_difference: float
    f_all_difference: float


class Correlation(msgspec.Struct, frozen=True):
    """Correlation with the permutation explainer of ``shap`` on the same payoff, ``pairs`` each.

    Both are estimates: with few pairs it is their own noise that keeps them apart.
    """

    network: str
    tap: str
    voxels: int
    images: int
    pairs: int
    correlation: float


def against_enumeration(net: Network, tap: TapSpec, runs: int, progress: Progress) -> Agreement:
    value, n = remembered(net, tap), tap.n_voxels
    phase = f"enumeration, {net.name} {tap.name}"
    progress(phase, 0, runs)
    truth = exact(value, n)
    whole = whole_answers(net.data, net.name, net.images)
    apart, errors, all_active = [], [], 0.0
    for seed in range(runs):
        found = sample(value, n, seed)
        all_active = found.f_all
        apart.append(np.abs(found.theta - truth))
        errors.append(np.maximum(found.stderr, FLOOR / 3))
        progress(phase, seed + 1, runs)
    ratio = np.array(apart) / np.array(errors)
    return Agreement(
        network=net.name,
        tap=tap.name,
        voxels=n,
        images=len(net.images),
        runs=runs,
        within_3=float(np.mean(ratio <= 3)),
        worst=float(ratio.max()),
        worst_difference=float(np.max(apart)),
        f_all_difference=abs(all_active - float(decision_probability(whole, whole).mean())),
    )


def against_shap(net: Network, tap: TapSpec, pairs: Sequence[int], progress: Progress) -> list[Correlation]:
    value, n = remembered(net, tap), tap.n_voxels
    found = []
    for done, number in enumerate(pairs):
        progress(f"shap, {net.name} {tap.name}", done, len(pairs))
        ours = sample(value, n, seed=0, pairs=number).theta
        theirs = permutation_explainer(value, n, number)
        correlation = float(np.corrcoef(ours, theirs)[0, 1])
        found.append(Correlation(net.name, tap.name, n, len(net.images), number, correlation))
    progress(f"shap, {net.name} {tap.name}", len(pairs), len(pairs))
    return found


def sample(value: Value, n_players: int, seed: int, pairs: int = PAIRS) -> Shapley:
    sampler = ShapleySampler(value, n_players, ShapleySettings(pairs=pairs, seed=seed))
    while sampler.step():
        pass
    return sampler.result()


def permutation_explainer(value: Value, n_players: int, pairs: int) -> NDArray[np.float64]:
    """Values of the same game by ``shap``, from as many pairs of permutations of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what its dependencies say at import
        import shap  # noqa: PLC0415 - seconds that the other parts need not wait for
    explainer = shap.PermutationExplainer(
        lambda rows: np.array([value(row > 0.5).mean() for row in rows]),
        lambda active, row: (active * row)[np.newaxis],
        seed=1,
    )
    everything = np.ones((1, n_players))
    return explainer(everything, max_evals=pairs * (2 * n_players + 1), silent=True).values[0]
