"""Connectivity kernels and their owner: residual, live tracts, root cause."""

import itertools

import msgspec
import naive
import numpy as np
import pytest
from maps import no_residual, no_tracts
from numpy.testing import assert_allclose, assert_array_equal

from edge_monitor.connectivity import ConnectivityTracker, FeatureBank, strong_tracts
from edge_monitor.errors import InputError, MapError
from edge_monitor.kernels import connectivity as kernel
from edge_monitor.offline.residual import fit_residual
from edge_monitor.offline.tract_baseline import watch_tracts
from edge_monitor.region_map import ResidualBaseline
from edge_monitor.types import SpatialBlock, StatRow, TapSpec

TAPS = (
    TapSpec("input", (3, 7, 5), (3, 2, 2), picture=(2, 2)),
    TapSpec("conv", (5, 9, 4), (4, 2, 2)),
    TapSpec("wide", (70, 3, 2), (4, 2, 1)),
    TapSpec("dense", (9, 1, 1), (4, 1, 1)),
    TapSpec("units", (40, 1, 1), (2, 1, 1)),
)
ALL = np.ones(len(TAPS), bool)
N_VOXELS = [tap.n_voxels for tap in TAPS]
N_FEATURES = [tap.n_features for tap in TAPS]
N_STATISTICS = TAPS[0].n_statistics
PICTURE = np.linspace(0.2, 0.9, TAPS[0].n_picture)


def split(array, sizes):
    """Parts of an array of all taps."""
    return np.split(array, np.cumsum(sizes)[:-1])


def transitions(flat, taps=TAPS):
    """One matrix (source, target) per transition."""
    shapes = [(a.n_voxels, b.n_voxels) for a, b in itertools.pairwise(taps)]
    return [part.reshape(s) for part, s in zip(split(flat, [a * b for a, b in shapes]), shapes, strict=True)]


def draw(rng, frames=1, taps=TAPS, scale=1.0):
    """Activations (frames, C, H, W) of every tap."""
    return [rng.normal(rng.normal(0, 1), scale, (frames, *tap.shape)) for tap in taps]


def block_of(activations, taps=TAPS, present=None):
    """What the probe makes of activations; the sums of absent taps are what happens to stand there."""
    present = np.ones(len(taps), bool) if present is None else np.array(present)
    frames = [
        naive.moments([(a[i], t.grid) for a, t in zip(activations, taps, strict=True)])
        for i in range(len(activations[0]))
    ]
    voxels, channels = (np.sum([frame[k] for frame in frames], axis=0) for k in (2, 3))
    voxels[~np.repeat(present, [tap.n_voxels for tap in taps])] = np.nan
    channels[~np.repeat(present, [tap.n_channels for tap in taps])] = np.inf
    return SpatialBlock(len(frames), present, voxels, channels)


def random_residual(rng):
    """Baseline of arbitrary numbers: bounds that many features leave, about half of the taps alarm."""
    n = sum(N_FEATURES)
    inputs = [1, *(2 * m + 1 for m in N_FEATURES)]
    sizes = [(m, k) for m, k in zip(inputs, N_FEATURES, strict=False)]
    return ResidualBaseline(
        floor=rng.uniform(0.01, 0.1, n),
        low=rng.uniform(-0.6, -0.2, n),
        high=rng.uniform(-0.1, 0.3, n),
        weights=np.concatenate([rng.normal(0, (2 * m) ** -0.5, m * k) for m, k in sizes]),
        whitening=np.concatenate([rng.normal(0, 1.5 / k, k * k) for k in N_FEATURES]),
        shift=rng.normal(0, 1.5 / N_FEATURES[0], N_FEATURES[0] ** 2),
        limit=rng.uniform(0.5, 3.0, n),
    )


def random_tracts(rng):
    """Some tracts are not watched; the second transition was never traced."""
    base = no_tracts(TAPS)
    n = base.median.size
    gate = rng.normal(0, 2, (sum(N_VOXELS), 2))
    gate[: N_VOXELS[0]] = np.nan
    scale = np.where(rng.random(n) < 0.8, rng.uniform(0.1, 2, n), np.nan)
    strength = rng.uniform(0, 1, n) ** 3
    second = slice(N_VOXELS[0] * N_VOXELS[1], N_VOXELS[0] * N_VOXELS[1] + N_VOXELS[1] * N_VOXELS[2])
    strength[second] = scale[second] = np.nan
    gate[sum(N_VOXELS[:2]) : sum(N_VOXELS[:3])] = np.nan
    active = np.concatenate([np.log(rng.uniform(0.2, 1.0) * tap.voxel_counts() / 2) for tap in TAPS])
    return msgspec.structs.replace(
        base, strength=strength, gate=gate, median=rng.normal(2, 1, n), scale=scale, active=active
    )


def random_tracker(seed=0):
    rng = np.random.default_rng(seed)
    residual, tracts = random_residual(rng), random_tracts(rng)
    return ConnectivityTracker(TAPS, residual, tracts), residual, tracts


# Kernels against their twins.


def test_multiply_equals_its_twin():
    rng = np.random.default_rng(0)
    for m, n in ((1, 1), (1, 7), (9, 1), (31, 40)):
        vector, matrix = rng.normal(size=m).astype(np.float32), rng.normal(size=(m, n)).astype(np.float32)
        out = np.full(n, np.nan, np.float32)
        matrices = np.append(np.full(3, np.nan, np.float32), matrix)
        kernel.multiply(np.append(vector, np.float32(np.nan)), m, matrices, 3, n, out)
        assert_allclose(out, naive.multiply(vector, matrix), rtol=1e-5, atol=1e-5)


def test_bounds_equal_their_twin():
    """Whatever is beyond a bound predicts with the bound, in both of its parts; NaN stays NaN."""
    rng = np.random.default_rng(20)
    for outside in (0.0, 2.0):
        logs, table = rng.uniform(-1, 1, 12), np.zeros((5, 12))
        table[kernel.LOW], table[kernel.HIGH] = np.sort(rng.uniform(-1, 1, (2, 12)), axis=0)
        table[kernel.LOW] -= 2.0 - outside
        table[kernel.HIGH] += 2.0 - outside
        logs[5] = np.nan
        out = np.full(15, -7.0, np.float32)
        kernel.bound(np.exp(logs), logs, table, 3, 9, out)
        expected = naive.predictors(np.exp(logs[3:9]), table[kernel.LOW, 3:9], table[kernel.HIGH, 3:9])
        assert_allclose(out[:13], expected, rtol=1e-6)
        assert (out[13:] == -7.0).all()


def test_smoothing_equals_its_twin():
    rng = np.random.default_rng(21)
    history, state = rng.normal(0, 15, (30, 4)), np.zeros((3, 7))
    for logs in history:
        whole = np.append(np.full(3, np.nan), logs)
        kernel.smoothen(whole, np.zeros(4, np.float32), 3, 4, kernel.SMOOTHING, state, kernel.SMOOTH)
    assert_allclose(state[kernel.SMOOTH, 3:], naive.ewma_from_zero(np.clip(history, -20.0, 20.0)))
    one, logs = np.ones((3, 4)), np.array([np.nan, 1.0, -1e30, 1e30])
    kernel.smoothen(logs, np.zeros(4, np.float32), 0, 4, 0.5, one, kernel.SLOW_MEAN)
    assert_allclose(one, [[1.0] * 4, [1.0] * 4, [1.0, 1.0, -9.5, 10.5]])


def draw_picture(rng):
    """Statistics of a picture; now and then one of them, or only one of the whole picture's, is unknown."""
    picture = rng.uniform(0.1, 2.0, PICTURE.size)
    if rng.random() < 0.2:
        picture[rng.integers(0, picture.size)] = np.nan
    return picture


def statistics_of(taps, picture):
    """The part of every tap: the input's statistics, nothing for the others."""
    return [picture[: tap.n_statistics] for tap in taps]


def test_levels_equal_their_twin():
    rng = np.random.default_rng(1)
    floor = rng.uniform(0, 1, sum(N_FEATURES))
    bank = FeatureBank(TAPS, floor)
    for frames in (1, 2, 5):
        activations = draw(rng, frames)
        present = rng.random(len(TAPS)) < 0.7
        for picture in (draw_picture(rng), draw_picture(rng), PICTURE, None):
            usable = present.copy()
            usable[0] &= picture is not None and np.isfinite(picture[:N_STATISTICS]).all()
            known = PICTURE if picture is None else picture
            parts = zip(
                activations, TAPS, split(floor, N_FEATURES), usable, statistics_of(TAPS, known), strict=True
            )
            expected = [
                naive.levels(a, tap.grid, x) + f if there else np.full(tap.n_features, np.nan)
                for a, tap, f, there, x in parts
            ]
            found = present.copy()
            got = bank.update(block_of(activations, present=present), picture, found)
            assert_allclose(got, np.concatenate(expected), rtol=1e-12)
            assert_array_equal(found, usable)


def test_drives_equal_their_twin():
    rng = np.random.default_rng(2)
    counts = np.concatenate([tap.voxel_counts() for tap in TAPS])
    gate = rng.normal(0, 3, (counts.size, 2))
    nodes = np.array([counts, *gate.T, np.zeros(counts.size)])
    activations = draw(rng, frames=3)
    out = np.full((2, counts.size), np.nan)
    kernel.drives(block_of(activations).voxels, 3.0, nodes, out)
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
    nodes = np.array([[2.0] * 4, [0.0] * 4, [1.0] * 4, [0.0] * 4])
    out = np.empty((2, 4))
    kernel.drives(voxels, 1.0, nodes, out)
    assert_array_equal(out[kernel.SOURCE], [kernel.SILENT, 1e30, kernel.SILENT, kernel.SILENT])
    assert_allclose(out[kernel.CLOSED, 1:3], 1.0 + np.exp([-kernel.STEEPEST, kernel.STEEPEST]))


def test_root_cause_equals_its_twin():
    rng = np.random.default_rng(4)
    bank = FeatureBank(TAPS, np.ones(sum(N_FEATURES)))
    first = np.cumsum([0, *N_VOXELS])
    roots, explained = set(), set()
    for _ in range(200):
        residual = rng.choice([np.nan, 0.5, 1.0, 3.0], len(TAPS), p=[0.1, 0.3, 0.3, 0.3])
        smooth = rng.normal(0, 1, sum(N_FEATURES))
        bank.table[kernel.LIMIT] = limit = rng.uniform(0.5, 1, smooth.size) * rng.choice([1.0, 2.0, 5.0])
        strong = rng.random(sum(a * b for a, b in itertools.pairwise(N_VOXELS))) < rng.choice([0.0, 0.1, 0.9])
        got = np.ones((2, first[-1]), bool)
        root = kernel.root_cause(residual, smooth, bank.layout, bank.edges, bank.table, strong, got)
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


def test_lock_step_with_the_twins():
    """After every update, with taps that come and go and blocks of several frames."""
    tracker, residual, tracts = random_tracker()
    rng = np.random.default_rng(3)
    floor, low, high, limit = (
        split(array, N_FEATURES) for array in (residual.floor, residual.low, residual.high, residual.limit)
    )
    inputs = [1, *(2 * m + 1 for m in N_FEATURES[:-1])]
    weights = [
        w.reshape(m, n)
        for w, m, n in zip(
            split(residual.weights, np.multiply(inputs, N_FEATURES)), inputs, N_FEATURES, strict=True
        )
    ]
    whitening = [
        w.reshape(n, n)
        for w, n in zip(split(residual.whitening, np.square(N_FEATURES)), N_FEATURES, strict=True)
    ]
    gate, active = split(tracts.gate, N_VOXELS), split(tracts.active, N_VOXELS)
    median, scale = transitions(tracts.median), transitions(tracts.scale)
    strong = transitions(strong_tracts(TAPS, tracts.strength))
    first = np.cumsum([0, *N_VOXELS])
    history, last, roots = [], None, set()
    for frame in range(80):
        if frame % 7 == 6:
            assert tracker.update(None, PICTURE, ALL) is last
            continue
        present, good = rng.random((2, len(TAPS))) < 0.95
        activations = draw(
            rng, 1 + frame % 3, scale=rng.choice([0.0, 0.1, 1.0, 1e12], p=[0.05, 0.1, 0.8, 0.05])
        )
        block = block_of(activations, present=present)
        for k in np.flatnonzero(present & ~good):
            block.voxels[first[k] : first[k + 1]] = rng.choice([np.nan, np.inf, -np.inf])
        picture = draw_picture(rng)
        usable = present & good
        usable[0] &= np.isfinite(picture[:N_STATISTICS]).all()
        history.append(
            [
                naive.levels(a, tap.grid, x) + f if known else None
                for a, tap, f, known, x in zip(
                    activations, TAPS, floor, usable, statistics_of(TAPS, picture), strict=True
                )
            ]
        )
        last = tracker.update(block, picture, good)

        distance, smooth = naive.residuals(history, low, high, weights, whitening)
        assert_allclose(last.residual, distance, rtol=2e-4, atol=1e-5)
        assert_allclose(last.departure, np.concatenate(smooth), rtol=2e-4, atol=2e-4)
        known = [x for x in distance[1:] if not np.isnan(x)]
        assert last.residual_score == (pytest.approx(max(known), rel=2e-4) if known else None)

        nodes = [
            [
                naive.drives(a[(slice(None), *voxel)].reshape(len(a), -1), row)
                for voxel, row in zip(naive.voxel_slices(tap.shape, tap.grid), rows, strict=True)
            ]
            for a, tap, rows in zip(activations, TAPS, gate, strict=True)
        ]
        drive, openness = ([np.array(tap)[:, k] for tap in nodes] for k in (0, 1))
        z = [
            naive.tracts(drive[k], openness[k + 1], active[k], median[k], scale[k])
            if usable[k] and usable[k + 1]
            else np.full(median[k].shape, np.nan)
            for k in range(len(TAPS) - 1)
        ]
        flat = np.concatenate([matrix.ravel() for matrix in z])
        assert_allclose(last.tract_z, flat, rtol=1e-6, atol=1e-6)
        if np.isnan(flat).all():
            assert (last.weakest, last.tract_score) == (None, None)
        else:
            weakest = min(range(len(z)), key=lambda k: np.nanmin(z[k], initial=np.inf))
            g, h = np.argwhere(z[weakest] == np.nanmin(z[weakest]))[0]
            assert last.weakest == (first[weakest] + g, first[weakest + 1] + h)
            assert last.tract_score == pytest.approx(-np.nanmin(flat), rel=1e-6)

        shapes = [(tap.shape, tap.grid) for tap in TAPS]
        alarming, under, root = naive.root_cause(distance, shapes, smooth, limit, strong)
        assert set(np.flatnonzero(last.alarming)) == {first[tap] + voxel for tap, voxel in alarming}
        assert set(np.flatnonzero(last.under)) == {first[tap] + voxel for tap, voxel in under}
        assert last.root == (None if root is None else first[root[0]] + root[1])
        roots.add(root if root is None else root[0])
    assert len(roots) > 2
    assert None in roots


SMALL = (TapSpec("input", (2, 4, 3), (2, 1, 1), picture=(1, 1)), TapSpec("dense", (3, 1, 1), (1, 1, 1)))


def small_tracker(seed=0, **changes):
    """A tracker of few features that measures the input's shift."""
    rng, n = np.random.default_rng(seed), SMALL[0].n_features
    residual = msgspec.structs.replace(
        no_residual(SMALL), floor=np.full(n + SMALL[1].n_features, 0.05), shift=rng.normal(0, 1, n * n)
    )
    residual = msgspec.structs.replace(residual, **changes)
    return ConnectivityTracker(SMALL, residual, no_tracts(SMALL)), residual


def test_shift_in_lock_step_with_its_twin():
    """With frames in which the input is masked or has no statistics, through warm-up and beyond."""
    tracker, residual = small_tracker()
    rng, n = np.random.default_rng(30), SMALL[0].n_features
    history, seen = [], 0
    for frame in range(260):
        activations = draw(rng, taps=SMALL, scale=rng.choice([0.1, 1.0, 5.0]))
        picture = np.abs(rng.normal(1, 0.5, SMALL[0].n_picture))
        good = np.array([frame % 17 != 3, True])
        if frame % 23 == 5:
            picture[2] = np.nan
        answer = tracker.update(block_of(activations, SMALL), picture, good)
        known = good[0] and np.isfinite(picture).all()
        features = (
            naive.levels(activations[0], SMALL[0].grid, picture[: SMALL[0].n_statistics]) + 0.05
            if known
            else None
        )
        history.append([features])
        expected = naive.shift(history, np.zeros((1, n)), residual.shift.reshape(n, n))
        if expected is None:
            assert answer.shift_score is None
            assert np.isnan(answer.shift).all()
            continue
        seen += 1
        assert_allclose(answer.shift, np.r_[expected], rtol=1e-4, atol=1e-5)
        assert answer.shift_score == answer.shift[0]
    assert seen > 100


# The owner.


def updated(tracker, rng, n=1, good=ALL):
    """Last answer after ``n`` random frames."""
    for _ in range(n):
        last = tracker.update(block_of(draw(rng)), PICTURE, good)
    return last


def assert_unknown(answer):
    assert (answer.root, answer.residual_score) == (None, None)
    assert np.isnan(answer.residual).all()
    assert not answer.alarming.any()


def test_nothing_is_known_before_the_first_block():
    tracker = random_tracker()[0]
    answer = tracker.update(None, PICTURE, ALL)
    assert_unknown(answer)
    assert (answer.weakest, answer.tract_score) == (None, None)
    assert np.isnan(answer.tract_z).all()
    assert answer.tract_z.shape == (sum(a * b for a, b in itertools.pairwise(N_VOXELS)),)


def test_residuals_are_unknown_until_eight_frames_are_in():
    tracker, rng = random_tracker()[0], np.random.default_rng(5)
    for _ in range(kernel.WARM - 1):
        assert_unknown(updated(tracker, rng))
    answer = updated(tracker, rng)
    assert np.isfinite(answer.residual).all()
    assert answer.residual_score == answer.residual[1:].max()


def test_each_tap_warms_up_by_its_own_frames():
    """A masked tap says nothing, neither does the one after it, and both miss the frame."""
    tracker, rng = random_tracker()[0], np.random.default_rng(6)
    second = np.array([True, False, True, True, True])
    updated(tracker, rng, good=second)
    assert_array_equal(
        np.isnan(updated(tracker, rng, kernel.WARM - 1).residual), [False, True, True, False, False]
    )
    assert_array_equal(
        np.isnan(updated(tracker, rng, good=second).residual), [False, True, True, False, False]
    )
    assert np.isfinite(updated(tracker, rng).residual).all()


def test_a_fully_masked_frame_changes_nothing_but_is_unknown():
    tracker, twin = random_tracker()[0], random_tracker()[0]
    updated(tracker, np.random.default_rng(7), 12)
    updated(twin, np.random.default_rng(7), 12)
    for junk in (np.nan, np.inf, -np.inf, 1e300):
        block = block_of(draw(np.random.default_rng(8)))
        block.voxels[:], block.channels[:] = junk, junk
        answer = tracker.update(block, PICTURE, ~ALL)
        assert_unknown(answer)
        assert (answer.weakest, answer.tract_score) == (None, None)
    same(updated(tracker, np.random.default_rng(9)), updated(twin, np.random.default_rng(9)))


def test_one_nan_does_not_stay():
    """Sums that are no numbers although their tap counts no such element: bad, but not for good."""
    tracker, rng = random_tracker()[0], np.random.default_rng(10)
    updated(tracker, rng, 10)
    block = block_of(draw(rng))
    block.voxels[:], block.channels[:] = np.nan, np.nan
    tracker.update(block, PICTURE, ALL)
    assert np.isfinite(updated(tracker, rng).residual).all()


@pytest.mark.parametrize("broken", [None, 0, N_STATISTICS - 1])
def test_a_picture_that_is_not_known_masks_the_input_alone(broken):
    """NaN is a statistic of too few pictures or of a bad pixel; it neither enters a mean nor stays."""
    tracker, twin = random_tracker()[0], random_tracker()[0]
    updated(tracker, np.random.default_rng(7), 12)
    updated(twin, np.random.default_rng(7), 12)
    picture = None if broken is None else np.where(np.arange(PICTURE.size) == broken, np.nan, PICTURE)
    block = block_of(draw(np.random.default_rng(8)))
    masked = ALL & (np.arange(len(TAPS)) > 0)
    same(tracker.update(block, picture, ALL), twin.update(block, PICTURE, masked))
    assert_array_equal(np.isnan(tracker.update(block, picture, ALL).residual[:3]), [True, True, False])
    twin.update(block, PICTURE, masked)
    same(updated(tracker, np.random.default_rng(9)), updated(twin, np.random.default_rng(9)))


def test_motion_that_is_not_known_masks_nothing():
    """The thumbnail's motion is no feature: it needs 16 pictures."""
    picture = PICTURE.copy()
    picture[N_STATISTICS:] = np.nan
    tracker = random_tracker()[0]
    block = block_of(draw(np.random.default_rng(8)))
    for _ in range(kernel.WARM):
        answer = tracker.update(block, picture, ALL)
    assert np.isfinite(answer.residual).all()


def test_a_sudden_change_of_the_picture_is_a_shift_for_seconds_and_a_slow_one_is_none():
    n = SMALL[0].n_features
    tracker, _ = small_tracker(shift=np.eye(n).ravel())
    rng = np.random.default_rng(31)
    block = block_of([np.ones((1, *tap.shape)) for tap in SMALL], SMALL)
    picture = np.full(SMALL[0].n_picture, 0.5)

    def shifts(factors):
        noise = 0.01 * rng.normal(size=(len(factors), picture.size))
        return [
            tracker.update(block, picture * f * np.exp(x), np.ones(2, bool)).shift_score
            for f, x in zip(factors, noise, strict=True)
        ]

    quiet = shifts(np.ones(200))
    assert quiet[: kernel.WARM_SLOW - 1] == [None] * (kernel.WARM_SLOW - 1)
    assert max(quiet[kernel.WARM_SLOW - 1 :]) < 0.05
    assert max(shifts(np.geomspace(1, 2, 1500))) < 0.3
    after = shifts(np.full(400, 4.0))
    assert max(after[:12]) > 1.0
    assert after[-1] < 0.05


def test_a_residual_that_overflows_hides_no_other():
    """Infinity less infinity in the last tap's whitening."""
    _, residual, tracts = random_tracker()
    last = residual.whitening[-(N_FEATURES[-1] ** 2) :]
    last[:] = np.where(np.arange(last.size) // N_FEATURES[-1] % 2, 3e38, -3e38)
    tracker, rng = ConnectivityTracker(TAPS, residual, tracts), np.random.default_rng(12)
    answer = updated(tracker, rng, kernel.WARM)
    assert np.isnan(answer.residual[-1])
    assert answer.residual_score == answer.residual[1:-1].max()


def same(first, second):
    for name in ("residual", "departure", "shift", "tract_z", "alarming"):
        assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)
    for name in ("root", "weakest", "residual_score", "shift_score", "tract_score"):
        assert getattr(first, name) == getattr(second, name), name


def test_frames_without_a_block_repeat_and_do_not_smooth():
    tracker, twin, rng = random_tracker()[0], random_tracker()[0], np.random.default_rng(13)
    blocks = [block_of(draw(rng)) for _ in range(12)]
    for block in blocks:
        last = tracker.update(block, PICTURE, ALL)
        assert tracker.update(None, PICTURE, ALL) is last
        assert tracker.update(None, PICTURE, ~ALL) is last
        same(last, twin.update(block, PICTURE, ALL))


def test_reset_is_fresh():
    tracker, fresh = random_tracker()[0], random_tracker()[0]
    updated(tracker, np.random.default_rng(14), 12)
    tracker.reset()
    assert_unknown(tracker.update(None, PICTURE, ALL))
    for frame in range(10):
        activations = draw(np.random.default_rng(100 + frame))
        same(
            tracker.update(block_of(activations), PICTURE, ALL),
            fresh.update(block_of(activations), PICTURE, ALL),
        )


def test_trackers_share_nothing():
    residual, tracts = random_tracker()[1:]
    first, second, alone = (ConnectivityTracker(TAPS, residual, tracts) for _ in range(3))
    for frame in range(10):
        block = block_of(draw(np.random.default_rng(frame)))
        updated(second, np.random.default_rng(1000 + frame))
        same(first.update(block, PICTURE, ALL), alone.update(block, PICTURE, ALL))


def test_answers_are_never_overwritten():
    tracker, rng = random_tracker()[0], np.random.default_rng(15)
    answers = [tracker.update(None, PICTURE, ALL)] + [updated(tracker, rng) for _ in range(20)]
    arrays = [(a.residual, a.departure, a.shift, a.tract_z, a.alarming) for a in answers]
    copies = [[array.copy() for array in one] for one in arrays]
    updated(tracker, rng, 20)
    tracker.reset()
    updated(tracker, rng, 9)
    for one, copy in zip(arrays, copies, strict=True):
        for array, kept in zip(one, copy, strict=True):
            assert_array_equal(array, kept)
    assert any(answer.alarming.any() for answer in answers)


def test_the_block_and_the_map_are_only_read():
    tracker, residual, tracts = random_tracker()
    block = block_of(draw(np.random.default_rng(16)))
    kept = [array.copy() for array in (block.voxels, block.channels, block.taps)]
    arrays = [
        getattr(part, name)
        for part in (residual, tracts)
        for name in part.__struct_fields__
        if isinstance(getattr(part, name), np.ndarray)
    ]
    calibrated = [array.copy() for array in arrays]
    for _ in range(10):
        tracker.update(block, PICTURE, ALL)
    for array, copy in zip(
        (block.voxels, block.channels, block.taps, *arrays), kept + calibrated, strict=True
    ):
        assert_array_equal(array, copy)


def test_the_mean_over_several_frames_is_all_that_counts():
    first, second = random_tracker()[0], random_tracker()[0]
    for frame in range(10):
        block = block_of(draw(np.random.default_rng(frame)))
        tripled = SpatialBlock(3, block.taps, 3 * block.voxels, 3 * block.channels)
        a, b = first.update(block, PICTURE, ALL), second.update(tripled, PICTURE, ALL)
        assert_allclose(a.residual, b.residual, rtol=1e-4)
        assert_allclose(a.tract_z, b.tract_z, rtol=1e-6, atol=1e-9)


def test_a_neutral_map_alarms_at_nothing():
    tracker = ConnectivityTracker(TAPS, no_residual(TAPS), no_tracts(TAPS))
    answer = updated(tracker, np.random.default_rng(17), 20)
    assert (answer.residual_score, answer.tract_score, answer.root, answer.weakest) == (0.0, None, None, None)
    assert updated(tracker, np.random.default_rng(17), kernel.WARM_SLOW).shift_score == 0.0
    assert not answer.alarming.any()


# Refusals.


def read_only(array):
    array.flags.writeable = False
    return array


V, C = sum(N_VOXELS), sum(tap.n_channels for tap in TAPS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"voxels": np.ones((V - 1, 3))},
            rf"spatial.voxels: float64\({V - 1}, 3\), expected float64\({V}, 3\)",
        ),
        ({"voxels": np.ones((V, 3), np.float32)}, "spatial.voxels: float32"),
        ({"voxels": np.ones((V, 3), ">f8")}, "spatial.voxels: >f8"),
        ({"voxels": np.ones((3, V)).T}, r"spatial.voxels: .*strided"),
        ({"channels": np.ones(C + 1)}, rf"spatial.channels: float64\({C + 1},\), expected float64\({C},\)"),
        ({"channels": np.ones(C, int)}, "spatial.channels: int64"),
        ({"channels": np.ones(2 * C)[::2]}, r"spatial.channels: .*strided"),
        ({"channels": read_only(np.ones(C))}, r"spatial.channels: .*read-only"),
        ({"taps": np.ones(4, bool)}, r"spatial.taps: bool\(4,\), expected bool\(5,\)"),
        ({"taps": np.ones(5)}, r"spatial.taps: float64\(5,\)"),
        ({"frames": 0}, "spatial.frames: 0 is below 1"),
        ({"frames": -3}, "spatial.frames: -3 is below 1"),
    ],
)
def test_unusable_block_is_refused_by_name_and_changes_nothing(changes, message):
    tracker, fresh = random_tracker()[0], random_tracker()[0]
    good = block_of(draw(np.random.default_rng(18)))
    last = tracker.update(good, PICTURE, ALL)
    fresh.update(good, PICTURE, ALL)
    with pytest.raises(InputError, match=message):
        tracker.update(msgspec.structs.replace(good, **changes), PICTURE, ALL)
    assert tracker.update(None, PICTURE, ALL) is last
    same(updated(tracker, np.random.default_rng(19), 9), updated(fresh, np.random.default_rng(19), 9))


@pytest.mark.parametrize(
    "picture",
    [PICTURE[:-1], PICTURE[:-2], PICTURE.astype(np.float32), np.r_[PICTURE, PICTURE][::2], PICTURE[None]],
)
def test_unusable_statistics_are_refused_by_name_and_change_nothing(picture):
    tracker, fresh = random_tracker()[0], random_tracker()[0]
    good = block_of(draw(np.random.default_rng(18)))
    expected = rf"picture: \w+\(.*\), expected float64\({PICTURE.size},\)|picture: .*strided"
    with pytest.raises(InputError, match=expected):
        tracker.update(good, picture, ALL)
    same(updated(tracker, np.random.default_rng(19), 9), updated(fresh, np.random.default_rng(19), 9))


@pytest.mark.parametrize("good", [np.ones(4, bool), np.ones((5, 1), bool), np.ones(5), np.ones(5, np.int8)])
def test_unusable_mask_is_refused_by_name(good):
    with pytest.raises(InputError, match=r"good: \w+\(.*\), expected bool\(5,\)"):
        random_tracker()[0].update(block_of(draw(np.random.default_rng(20))), PICTURE, good)


@pytest.mark.parametrize("name", ["floor", "low", "high", "weights", "whitening", "shift", "limit"])
def test_residual_baseline_of_other_taps_is_refused_by_name(name):
    residual = no_residual(TAPS)
    short = msgspec.structs.replace(residual, **{name: getattr(residual, name)[:-1]})
    size = getattr(residual, name).size
    with pytest.raises(MapError, match=rf"residual.{name}: shape \({size - 1},\), expected \({size},\)"):
        ConnectivityTracker(TAPS, short, no_tracts(TAPS))


@pytest.mark.parametrize("name", ["strength", "gate", "median", "scale", "active"])
def test_tract_baseline_of_other_taps_is_refused_by_name(name):
    tracts = no_tracts(TAPS)
    short = msgspec.structs.replace(tracts, **{name: getattr(tracts, name)[:-1]})
    with pytest.raises(MapError, match=rf"tracts.{name}: shape \(.*\), expected \(.*\)"):
        ConnectivityTracker(TAPS, no_residual(TAPS), short)


# Planted faults in a chain of two layers behind an input.

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
    scores = np.array([answer.residual for answer in answers[kernel.WARM :]])
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


# Order of alarms on graphs made by hand: three taps of three voxels behind an input.

GRAPH = tuple(TapSpec(name, (3, 2, 2), (3, 1, 1)) for name in ("input", "a", "b", "c"))
A, B, C_ = 3, 6, 9


def ask(over, tracts=()):
    """Root, alarming voxels, and those under it.

    ``over``: how far over its limit a voxel is; ``tracts``: pairs of voxels.
    """
    bank = FeatureBank(GRAPH, np.ones(24))
    bank.table[kernel.LIMIT] = 1.0
    smooth = np.zeros(24)
    for voxel, ratio in over.items():
        smooth[6 * (voxel // 3) + 3 + voxel % 3] = ratio
    residual = np.array([float(any(voxel // 3 == tap for voxel in over)) for tap in range(4)])
    strength = np.zeros((3, 3, 3))
    for source, target in tracts:
        strength[source // 3, source % 3, target % 3] = 1.0
    marked = np.ones((2, 12), bool)
    strong = strong_tracts(GRAPH, strength.ravel())
    root = kernel.root_cause(residual, smooth, bank.layout, bank.edges, bank.table, strong, marked)
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
    bank = FeatureBank(GRAPH, np.ones(24))
    bank.table[kernel.LIMIT] = 1.0
    marked = np.ones((2, 12), bool)
    strong = np.ones(27, bool)
    residual = np.array([np.nan, np.nan, 0.99, 1.0])
    root = kernel.root_cause(residual, np.full(24, 9.0), bank.layout, bank.edges, bank.table, strong, marked)
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
