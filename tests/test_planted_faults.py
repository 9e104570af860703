"""Faults planted in a chain of two layers behind an input: which tap and voxel is named as their root."""

import itertools

import numpy as np
import pytest
from maps import no_tracts

from edge_monitor.connectivity import ConnectivityTracker
from edge_monitor.kernels.residual import WARM
from edge_monitor.offline.residual import fit_residual
from edge_monitor.types import SpatialBlock, StatRow, TapSpec

CHAIN = (
    TapSpec("input", (3, 4, 4), (3, 2, 2)),
    TapSpec("first", (8, 4, 4), (4, 2, 2)),
    TapSpec("second", (6, 1, 1), (3, 1, 1)),
)
CHAIN_FIRST = np.cumsum([0, *(tap.n_voxels for tap in CHAIN)])
CHAIN_GOOD = np.ones(len(CHAIN), bool)


def chain_row(logs):
    """A row whose features are exp(logs), one array per tap."""
    parts = [np.exp(x) * count for x, count in zip(logs, CHAIN_COUNTS, strict=True)]
    channels = np.concatenate([x[: tap.n_channels] for x, tap in zip(parts, CHAIN, strict=True)])
    sums = np.concatenate([x[tap.n_channels :] for x, tap in zip(parts, CHAIN, strict=True)])
    block = SpatialBlock(1, CHAIN_GOOD, np.stack([sums, sums, sums**2], axis=1), channels)
    return StatRow(0, 0, 0, np.ones(len(CHAIN)), np.zeros(len(CHAIN), np.int64), 0, spatial=block)


CHAIN_COUNTS = [
    np.concatenate([np.full(tap.n_channels, tap.size // tap.n_channels), tap.voxel_counts()]) for tap in CHAIN
]


class Chain:
    """Features that follow from those of the tap before by a linear law in logs, under changing scenes."""

    def __init__(self, seed):
        rng = self.rng = np.random.default_rng(seed)
        sizes = [tap.n_features for tap in CHAIN]
        self.laws = [rng.normal(0, m**-0.5, (m, n)) for m, n in itertools.pairwise([4, *sizes])]

    def row(self, tap=None, feature=0, change=0.0):
        """Next row; feature ``feature`` of ``tap`` is broken, and everything behind it follows."""
        logs, x = [], self.rng.uniform(-1, 1, 4)
        for k, law in enumerate(self.laws):
            x = x @ law + 0.03 * self.rng.normal(size=law.shape[1])
            if k == tap:
                x[feature] += change
            logs.append(x)
        return chain_row(logs)


@pytest.fixture(scope="module")
def fitted():
    chain = Chain(0)
    return chain, fit_residual(CHAIN, [chain.row() for _ in range(900)])


def after(tracker, chain, n=24, **fault):
    """Answer after ``n`` frames or more: the first in which no tap before the broken one is out of range."""
    earlier = slice(fault.get("tap", 0))
    answers = (tracker.update(chain.row(**fault).spatial, None, CHAIN_GOOD) for _ in itertools.count())
    return next(a for a in itertools.islice(answers, n - 1, None) if not (a.residual[earlier] >= 1).any())


def test_clean_features_stay_in_range(fitted):
    chain, residual = fitted
    tracker = ConnectivityTracker(CHAIN, residual, no_tracts(CHAIN))
    answers = [after(tracker, chain, 1) for _ in range(200)]
    scores = np.array([answer.residual for answer in answers[WARM:]])
    assert np.mean(scores < 1) > 0.98
    assert scores.max() < 1.2
    assert np.median(scores) > 0.1  # a whitening that sees nothing would be clean as well


@pytest.mark.parametrize("tap", [1, 2])
def test_root_lies_in_the_tap_that_broke_although_the_next_one_follows(fitted, tap):
    chain, residual = fitted
    behind = []
    for feature in range(0, CHAIN[tap].n_features, 2):
        for change in (-1.5, 1.5):
            tracker = ConnectivityTracker(CHAIN, residual, no_tracts(CHAIN))
            after(tracker, chain)
            answer = after(tracker, chain, tap=tap, feature=feature, change=change)
            assert answer.residual[tap] > 1.5
            assert answer.residual_score >= answer.residual[tap]
            assert CHAIN_FIRST[tap] <= answer.root < CHAIN_FIRST[tap + 1]
            assert answer.alarming[answer.root]
            behind.append(answer.residual[tap + 1 :].max(initial=0.0))
    assert tap == 2 or max(behind) > 1.0  # the tap behind may alarm as well, and is not taken for the root


def test_a_broken_voxel_is_the_root_itself(fitted):
    chain, residual = fitted
    for voxel in range(CHAIN[1].n_voxels):
        tracker = ConnectivityTracker(CHAIN, residual, no_tracts(CHAIN))
        answer = after(tracker, chain, tap=1, feature=CHAIN[1].n_channels + voxel, change=1.0)
        assert answer.root == CHAIN_FIRST[1] + voxel


def test_a_broken_channel_alarms_in_the_voxels_it_reaches(fitted):
    chain, residual = fitted
    for channel in range(CHAIN[1].n_channels):
        tracker = ConnectivityTracker(CHAIN, residual, no_tracts(CHAIN))
        answer = after(tracker, chain, tap=1, feature=channel, change=-1.0)
        group = channel // 2  # eight channels in four groups of four cells
        reached = CHAIN_FIRST[1] + 4 * group + np.arange(4)
        assert np.isin(reached, np.flatnonzero(answer.alarming)).all()
        assert answer.root in reached


def test_a_broken_scene_alarms_and_is_no_root(fitted):
    """Score and root are those of the network's own taps."""
    chain, residual = fitted
    tracker = ConnectivityTracker(CHAIN, residual, no_tracts(CHAIN))
    answer = after(tracker, chain, tap=0, feature=1, change=6.0)
    assert answer.residual[0] > 1
    assert answer.alarming[: CHAIN_FIRST[1]].any()
    assert answer.root is None or answer.root >= CHAIN_FIRST[1]
    assert answer.residual_score == answer.residual[1:].max()


def test_a_fault_that_heals_is_forgotten(fitted):
    chain, residual = fitted
    tracker = ConnectivityTracker(CHAIN, residual, no_tracts(CHAIN))
    assert after(tracker, chain, tap=1, feature=3, change=-2.0).root is not None
    answer = after(tracker, chain, 40)
    assert answer.root is None
    assert not answer.alarming.any()
