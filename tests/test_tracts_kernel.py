"""Live tracts and root cause: kernels against their slow twins, and graphs made by hand."""

import itertools

import msgspec
import naive
import numpy as np
import pytest
from five_taps import N_FEATURES, N_VOXELS, TAPS, block_of, draw, split, transitions
from maps import no_residual, no_tracts
from numpy.testing import assert_allclose, assert_array_equal

from edge_monitor.connectivity import ConnectivityTracker, strong_tracts
from edge_monitor.features import FeatureBank
from edge_monitor.kernels import tracts as kernel
from edge_monitor.offline.tract_baseline import watch_tracts
from edge_monitor.types import SpatialBlock, StatRow, TapSpec


def test_drives_equal_their_twin():
    rng = np.random.default_rng(2)
    counts = np.concatenate([tap.voxel_counts() for tap in TAPS])
    gate = rng.normal(0, 3, (counts.size, 2))
    gates = np.array([counts, *gate.T])
    activations = draw(rng, frames=3)
    out = np.full((2, counts.size), np.nan)
    kernel.drives(block_of(activations).voxels, 3.0, gates, out)
    elements = [
        a[(slice(None), *voxel)].reshape(3, -1)
        for a, tap in zip(activations, TAPS, strict=True)
        for voxel in naive.voxel_slices(tap.shape, tap.grid)
    ]
    expected = np.array([naive.drives(x, row) for x, row in zip(elements, gate, strict=True)])
    assert_allclose(out[kernel.SOURCE], expected[:, 0], rtol=1e-9, atol=1e-12)
    assert_allclose(1 / out[kernel.CLOSED], expected[:, 1], rtol=1e-9)


def test_drives_stay_within_what_log_and_exp_can_take():
    voxels = np.array([[4.0, -4.0, 8.0], [1e30, 1e30, 1e60], [1e30, -1e30, 1e60], [3.0, -3.0 - 1e-15, 3.0]])
    gates = np.array([[2.0] * 4, [0.0] * 4, [1.0] * 4])
    out = np.empty((2, 4))
    kernel.drives(voxels, 1.0, gates, out)
    assert_array_equal(out[kernel.SOURCE], [kernel.SILENT, 1e30, kernel.SILENT, kernel.SILENT])
    assert_allclose(out[kernel.CLOSED, 1:3], 1.0 + np.exp([-kernel.STEEPEST, kernel.STEEPEST]))


def test_root_cause_equals_its_twin():
    rng = np.random.default_rng(4)
    bank = FeatureBank(TAPS, np.ones(sum(N_FEATURES)), no_tracts(TAPS).gate)
    first = np.cumsum([0, *N_VOXELS])
    roots, explained = set(), set()
    for _ in range(200):
        residual = rng.choice([np.nan, 0.5, 1.0, 3.0], len(TAPS), p=[0.1, 0.3, 0.3, 0.3])
        smooth = rng.normal(0, 1, sum(N_FEATURES))
        limit = rng.uniform(0.5, 1, smooth.size) * rng.choice([1.0, 2.0, 5.0])
        strong = rng.random(sum(a * b for a, b in itertools.pairwise(N_VOXELS))) < rng.choice([0.0, 0.1, 0.9])
        got = np.ones((2, first[-1]), bool)
        root = kernel.root_cause(residual, smooth, bank.layout, bank.edges, limit, strong, got)
        alarming, under, expected = naive.root_cause(
            residual,
            [(tap.shape, tap.grid) for tap in TAPS],
            *(split(array, N_FEATURES) for array in (smooth, limit)),
            transitions(strong),
        )
        for row, places in zip(got, (alarming, under), strict=True):
            assert set(np.flatnonzero(row)) == {first[tap] + voxel for tap, voxel in places}
        explained.add(len(under))
        assert root == (-1 if expected is None else first[expected[0]] + expected[1])
        roots.add(None if expected is None else expected[0])
    assert roots == {None, 1, 2, 3, 4}
    assert len(explained) > 5


# Order of alarms on graphs made by hand: three taps of three voxels behind an input.

GRAPH = tuple(TapSpec(name, (3, 2, 2), (3, 1, 1)) for name in ("input", "a", "b", "c"))
A, B, C_ = 3, 6, 9


def ask(over, tracts=()):
    """Root, alarming voxels, and those under it.

    ``over``: how far over its limit a voxel is; ``tracts``: pairs of voxels.
    """
    bank = FeatureBank(GRAPH, np.ones(24), no_tracts(GRAPH).gate)
    smooth = np.zeros(24)
    for voxel, ratio in over.items():
        smooth[6 * (voxel // 3) + 3 + voxel % 3] = ratio
    residual = np.array([float(any(voxel // 3 == tap for voxel in over)) for tap in range(4)])
    strength = np.zeros((3, 3, 3))
    for source, target in tracts:
        strength[source // 3, source % 3, target % 3] = 1.0
    marked = np.ones((2, 12), bool)
    strong = strong_tracts(GRAPH, strength.ravel())
    root = kernel.root_cause(residual, smooth, bank.layout, bank.edges, np.ones(24), strong, marked)
    return root, *(set(np.flatnonzero(row).tolist()) for row in marked)


def test_nothing_alarms_in_a_quiet_graph():
    assert ask({}) == (-1, set(), set())


def test_chain():
    """However far off those are that follow."""
    found = ask({A: 2.0, B + 1: 5.0, C_ + 2: 9.0}, [(A, B + 1), (B + 1, C_ + 2)])
    assert found == (A, {A, B + 1, C_ + 2}, {B + 1, C_ + 2})


def test_a_broken_chain_explains_nothing_behind_it():
    """A voxel that is quiet, or a tract that is weak, carries no alarm."""
    tracts = [(A, B + 1), (B + 1, C_ + 2), (A, B)]
    assert ask({A: 2.0, C_ + 2: 9.0}, tracts) == (A, {A, C_ + 2}, set())
    assert ask({A: 2.0, B: 5.0, C_ + 2: 9.0}, tracts) == (A, {A, B, C_ + 2}, {B})


def test_fork():
    both = [(A + 1, B), (A + 1, B + 2)]
    assert ask({A + 1: 1.5, B: 4.0, B + 2: 3.0}, both) == (A + 1, {A + 1, B, B + 2}, {B, B + 2})


def test_two_independent_faults():
    """The earlier one is named, as long as it stands; then the other, which was never under it."""
    assert ask({A: 1.1, B + 2: 8.0}, [(A, B)]) == (A, {A, B + 2}, set())
    assert ask({B + 2: 8.0}, [(A, B)]) == (B + 2, {B + 2}, set())


def test_of_two_faults_in_one_tap_the_farther_is_named():
    found = ask({B: 2.0, B + 1: -7.0, B + 2: 3.0, C_: 9.0}, [(B, C_)])
    assert found == (B + 1, {B, B + 1, B + 2, C_}, {C_})


def test_when_no_feature_is_over_its_limit_the_nearest_stands_for_the_tap():
    assert ask({A: 0.3, A + 2: 0.6}) == (A + 2, {A + 2}, set())


def test_a_tap_without_a_residual_neither_alarms_nor_explains():
    bank = FeatureBank(GRAPH, np.ones(24), no_tracts(GRAPH).gate)
    marked = np.ones((2, 12), bool)
    strong = np.ones(27, bool)
    residual = np.array([np.nan, np.nan, 0.99, 1.0])
    smooth, limit = np.full(24, 9.0), np.ones(24)
    root = kernel.root_cause(residual, smooth, bank.layout, bank.edges, limit, strong, marked)
    assert root == C_
    assert_array_equal(np.flatnonzero(marked[kernel.ALARMING]), [C_, C_ + 1, C_ + 2])
    assert not marked[kernel.UNDER].any()


def test_strong_tracts_carry_half_of_their_targets_strongest():
    strength = np.array(
        [
            [[4.0, 0.0, 1.0], [2.0, 0.0, 0.49], [1.99, 0.0, 0.51]],
            np.full((3, 3), np.nan),
            [[0.0, 1e-9, 3.0], [0.0, 0.0, 3.0], [0.0, 0.0, 3.0]],
        ]
    )
    expected = [
        [[True, False, True], [True, False, False], [False, False, True]],
        [[True] * 3] * 3,  # not traced: every tract may carry an alarm
        [[False, True, True], [False, False, True], [False, False, True]],
    ]
    assert_array_equal(strong_tracts(GRAPH, strength.ravel()), np.ravel(expected))


# Live tracts.


def gated(rng, silent=()):
    """A row of GRAPH whose voxels are well active, but for the ``silent`` ones."""
    means = np.abs(rng.normal(2.0, 0.2, 12))
    means[list(silent)] = 0.0
    sums = 4 * means
    block = SpatialBlock(1, np.ones(4, bool), np.stack([sums, sums, sums**2], axis=1), sums.copy())
    return StatRow(0, 0, 0, np.ones(4), np.zeros(4, np.int64), 0, spatial=block)


@pytest.fixture(scope="module")
def watched():
    """Tracts of which those into voxel C_ are not watched."""
    rng = np.random.default_rng(21)
    gate = np.full((12, 2), np.nan)
    gate[3:] = (-4.0, 4.0)
    fidelity = np.ones((3, 3, 3))
    fidelity[2, :, 0] = 0.5
    traced = msgspec.structs.replace(
        no_tracts(GRAPH), strength=np.ones(27), fidelity=fidelity.ravel(), gate=gate, problems=("",) * 3
    )
    return watch_tracts(traced, GRAPH, [gated(rng) for _ in range(200)])


def live(watched, *silent):
    tracker = ConnectivityTracker(GRAPH, no_residual(GRAPH), watched)
    rng = np.random.default_rng(22)
    while True:  # at the first frame in which every other source is active
        block = gated(rng, silent).spatial
        drive = np.log(np.maximum(block.voxels[:, 0], 1e-30))
        speaks = np.setdiff1d(np.arange(12), silent)
        if (drive[speaks] >= watched.active[speaks]).all():
            return tracker.update(block, None, np.ones(4, bool))


def test_clean_tracts_are_near_their_baseline(watched):
    answer = live(watched)
    z = answer.tract_z.reshape(3, 3, 3)
    assert np.isnan(z[2, :, 0]).all()
    assert np.isfinite(np.delete(z.ravel(), [18, 21, 24])).all()
    assert np.nanmax(np.abs(z)) < 4
    assert answer.tract_score == -np.nanmin(z)


@pytest.mark.parametrize("target", [A, A + 2, B + 1, C_ + 2])
def test_an_active_source_with_a_silent_target_is_the_weakest_tract(watched, target):
    """The silent voxel is a source as well: of its own tracts nothing is said."""
    answer = live(watched, target)
    sources = target // 3 * 3 - 3 + np.arange(3)
    assert answer.weakest[0] in sources
    assert answer.weakest[1] == target
    assert answer.tract_score > 20
    z = answer.tract_z.reshape(3, 3, 3)
    assert z.ravel()[np.nanargmin(z)] == -answer.tract_score
    assert (z[target // 3 - 1, :, target % 3] < -20).all()
    if target < C_:
        assert np.isnan(z[target // 3, target % 3]).all()


def test_a_silent_source_has_no_tract(watched):
    sources = (0, 1, 2)
    z = live(watched, *sources).tract_z.reshape(3, 3, 3)
    assert np.isnan(z[0]).all()
    assert np.isfinite(z[1]).all()


def test_a_silent_network_has_no_weakest_tract(watched):
    answer = live(watched, *range(12))
    assert np.isnan(answer.tract_z).all()
    assert (answer.weakest, answer.tract_score) == (None, None)


def test_tracts_of_masked_taps_are_unknown(watched):
    tracker = ConnectivityTracker(GRAPH, no_residual(GRAPH), watched)
    block = gated(np.random.default_rng(23)).spatial
    z = tracker.update(block, None, np.array([True, True, False, True])).tract_z.reshape(3, 9)
    assert np.isfinite(z[0]).any()
    assert np.isnan(z[1:]).all()


def test_an_unwatched_tract_is_never_the_weakest(watched):
    answer = live(watched, C_)
    assert np.isnan(answer.tract_z.reshape(3, 3, 3)[2, :, 0]).all()
    assert answer.tract_score < 4
