"""Tracker of residual, live tracts and root cause: lock-step with the slow twins, odd frames, refusals."""

import itertools

import msgspec
import naive
import numpy as np
import pytest
from five_taps import (
    ALL,
    N_FEATURES,
    N_STATISTICS,
    N_VOXELS,
    PICTURE,
    TAPS,
    block_of,
    draw,
    draw_picture,
    split,
    statistics_of,
    transitions,
)
from maps import no_residual, no_tracts
from numpy.testing import assert_allclose, assert_array_equal

from edge_monitor.connectivity import ConnectivityTracker, strong_tracts
from edge_monitor.errors import InputError, MapError
from edge_monitor.kernels.residual import WARM, WARM_SLOW
from edge_monitor.region_map import ResidualBaseline
from edge_monitor.types import SpatialBlock, TapSpec


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
    for _ in range(WARM - 1):
        assert_unknown(updated(tracker, rng))
    answer = updated(tracker, rng)
    assert np.isfinite(answer.residual).all()
    assert answer.residual_score == answer.residual[1:].max()


def test_each_tap_warms_up_by_its_own_frames():
    """A masked tap says nothing, neither does the one after it, and both miss the frame."""
    tracker, rng = random_tracker()[0], np.random.default_rng(6)
    second = np.array([True, False, True, True, True])
    updated(tracker, rng, good=second)
    assert_array_equal(np.isnan(updated(tracker, rng, WARM - 1).residual), [False, True, True, False, False])
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
    for _ in range(WARM):
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
    assert quiet[: WARM_SLOW - 1] == [None] * (WARM_SLOW - 1)
    assert max(quiet[WARM_SLOW - 1 :]) < 0.05
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
    answer = updated(tracker, rng, WARM)
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
    assert updated(tracker, np.random.default_rng(17), WARM_SLOW).shift_score == 0.0
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
