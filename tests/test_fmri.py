"""Densities and region scores."""

import msgspec
import naive
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from edge_monitor.errors import InputError, MapError
from edge_monitor.fmri import FmriTracker, densities
from edge_monitor.region_map import FmriBaseline
from edge_monitor.types import SpatialBlock, TapSpec

TAPS = (
    TapSpec("input", (3, 7, 5), (3, 2, 2)),
    TapSpec("conv", (5, 9, 4), (4, 2, 2)),
    TapSpec("one", (2, 1, 1), (1, 1, 1)),
    TapSpec("dense", (9, 1, 1), (4, 1, 1)),
)
TAP_OF_VOXEL = np.repeat(range(len(TAPS)), [tap.n_voxels for tap in TAPS])
COUNTS = np.concatenate([tap.voxel_counts() for tap in TAPS])
N = len(COUNTS)
FLOOR = np.where(TAP_OF_VOXEL == 0, 0.05, np.nan)
BRIGHT = np.where(TAP_OF_VOXEL == 0, np.linspace(-3, 3, N), np.nan)
ALL = np.ones(len(TAPS), bool)


def block_of(rng, frames=1, taps=ALL):
    """A block and the density of each voxel's elements by definition."""
    mean = rng.normal(0, 3, N)
    elements = [rng.normal(m, 1, n * frames) for m, n in zip(mean, COUNTS, strict=True)]
    voxels = np.array([(np.abs(x).sum(), x.sum(), (x**2).sum()) for x in elements])
    density = [
        naive.density(x) if np.isnan(floor) else naive.log_level(x, floor)
        for x, floor in zip(elements, FLOOR, strict=True)
    ]
    first = TAPS[0].n_voxels
    bright = naive.bright_share(elements[:first], BRIGHT[:first])
    return SpatialBlock(frames, np.array(taps), voxels, np.zeros(19)), density, bright


def baseline(seed=0):
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0.5, 2, N)
    scale[[2, 14]] = np.nan
    scale[TAP_OF_VOXEL == 2] = np.nan  # a tap none of whose voxels ever varied
    return FmriBaseline(rng.normal(3, 1, N), scale, FLOOR, BRIGHT, 0)


THETA = np.random.default_rng(9).normal(0, 1, N)


def same(scores, expected):
    for name, want in expected.items():
        got = getattr(scores, name)
        if want is None or isinstance(want, int):
            assert got == want, name
        else:
            assert_allclose(got, want, rtol=1e-9, atol=1e-12, err_msg=name)


def test_density_equals_definition():
    block, expected, _ = block_of(np.random.default_rng(0), frames=3)
    assert_allclose(densities(block.voxels, COUNTS * 3, FLOOR), expected, rtol=1e-12)


def test_log_level():
    """From dusk (10) to darkness (0) is further than from day (100) to dusk."""
    sums = np.array([[100.0, 100.0, 1e4], [10.0, 10.0, 100.0], [0.0, 0.0, 0.0]])
    day, dusk, dark = densities(sums, np.ones(3), np.full(3, 1.0))
    assert_allclose([day, dusk, dark], np.log([101.0, 11.0, 1.0]))
    assert dusk - dark > day - dusk


def test_densities_refuses_floors_that_do_not_fit():
    with pytest.raises(InputError, match=r"floor: shape \(4,\), expected \(5,\)"):
        densities(np.ones((5, 3)), np.ones(5), np.ones(4))


def test_variance_below_zero_is_clipped():
    rounded_down = np.array([[30.0, -30.0, 299.999]])
    assert_allclose(densities(rounded_down, np.array([3]), np.array([np.nan])), 10 + 0.1 * np.log(1e-6))


def test_densities_refuses_shapes_that_do_not_fit():
    with pytest.raises(InputError, match=r"voxels: shape \(4, 3\), expected \(5, 3\)"):
        densities(np.ones((4, 3)), np.ones(5), np.ones(5))


def test_lock_step_with_definition():
    base = baseline()
    tracker = FmriTracker(TAPS, base, THETA)
    rng = np.random.default_rng(1)
    last, shares = None, set()
    for frame in range(60):
        if frame % 4 == 3:
            assert tracker.update(None, ALL) is last
            continue
        present, good = rng.random((2, len(TAPS))) < 0.8
        block, density, bright = block_of(rng, frames=1 + frame % 3, taps=present)
        last = tracker.update(block, good)
        same(
            last,
            naive.region_scores(
                np.array(density), base.median, base.scale, THETA, TAP_OF_VOXEL, present & good
            ),
        )
        assert last.bright == (bright if present[0] and good[0] else None)
        shares.add(last.bright)
    assert len(shares) > 4


def test_nothing_is_known_before_the_first_block():
    scores = FmriTracker(TAPS, baseline(), THETA).update(None, ALL)
    assert np.isnan(scores.density).all()
    assert np.isnan(scores.z).all()
    assert np.isnan(scores.tap_score).all()
    assert (scores.worst, scores.severity, scores.score, scores.input_score, scores.bright) == (None,) * 5


def test_masked_frame_knows_nothing_either():
    tracker = FmriTracker(TAPS, baseline(), THETA)
    block, _, _ = block_of(np.random.default_rng(2))
    assert tracker.update(block, ALL).score is not None
    scores = tracker.update(block, ~ALL)
    assert np.isnan(scores.density).all()
    assert (scores.worst, scores.severity, scores.score, scores.input_score, scores.bright) == (None,) * 5


def test_reset_is_fresh():
    tracker = FmriTracker(TAPS, baseline(), THETA)
    block, _, _ = block_of(np.random.default_rng(3))
    tracker.update(block, ALL)
    tracker.reset()
    assert tracker.update(None, ALL).score is None


def off_by(z):
    """A tracker and block where voxel g is exactly ``z[g]`` scales off its median."""
    block, density, _ = block_of(np.random.default_rng(4))
    return block, np.array(density) - np.asarray(z)


def test_score_is_the_worst_tap_and_worst_the_heaviest_voxel():
    z = np.zeros(N)
    z[0] = 100.0  # the input has its own score and is never the worst voxel
    z[12], z[27] = -3.0, 8.0  # in taps 1 and 1
    z[-1] = 6.0  # in tap 3, with four voxels
    theta = np.ones(N)
    theta[12] = -4.0
    block, median = off_by(z)
    scores = FmriTracker(TAPS, FmriBaseline(median, np.ones(N), FLOOR, BRIGHT, 0), theta).update(block, ALL)
    assert (scores.worst, scores.severity) == (12, pytest.approx(12.0))
    assert_allclose(scores.tap_score, [100 / np.sqrt(12), np.sqrt(73 / 16), 0.0, 3.0], atol=1e-6)
    assert scores.score == pytest.approx(3.0)
    assert scores.input_score == pytest.approx(100 / np.sqrt(12))


def test_a_region_is_bright_from_its_limit_on():
    """Twelve regions of the input, each with the limit of its colour; the layers have none."""
    limit = np.where(TAP_OF_VOXEL == 0, 0.955, np.nan)
    tracker = FmriTracker(TAPS, msgspec.structs.replace(baseline(), bright=limit), THETA)
    for bright in range(13):
        means = np.where(np.arange(N) < bright, 0.955, 0.954)
        sums = 2 * COUNTS * means
        block = SpatialBlock(2, ALL, np.stack([sums, sums, sums], axis=1), np.zeros(19))
        assert tracker.update(block, ALL).bright == pytest.approx(bright / 12)
    no_limit = FmriTracker(TAPS, msgspec.structs.replace(baseline(), bright=limit * np.nan), THETA)
    assert no_limit.update(block, ALL).bright == 0.0


def test_results_are_fresh():
    tracker = FmriTracker(TAPS, baseline(), THETA)
    rng = np.random.default_rng(5)
    first = tracker.update(block_of(rng)[0], ALL)
    before = first.density.copy(), first.z.copy(), first.tap_score.copy()
    tracker.update(block_of(rng)[0], ALL)
    for array, copy in zip((first.density, first.z, first.tap_score), before, strict=True):
        assert_array_equal(array, copy)


def spoiled(**fields):
    good = block_of(np.random.default_rng(6))[0]
    arrays = {"taps": good.taps, "voxels": good.voxels, "channels": good.channels} | fields
    return SpatialBlock(1, **arrays)


def read_only(array):
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (spoiled(voxels=np.ones((N - 1, 3))), rf"spatial.voxels: float64\({N - 1}, 3\)"),
        (spoiled(voxels=np.ones((N, 3), np.float32)), "spatial.voxels: float32"),
        (spoiled(voxels=np.ones((3, N)).T), "spatial.voxels: .*strided"),
        (spoiled(voxels=read_only(np.ones((N, 3)))), "spatial.voxels: .*read-only"),
        (spoiled(taps=np.ones(3, bool)), r"spatial.taps: bool\(3,\)"),
    ],
)
def test_unusable_block_is_refused_by_name(block, message):
    with pytest.raises(InputError, match=message):
        FmriTracker(TAPS, baseline(), THETA).update(block, ALL)


def test_a_block_of_no_frames_is_refused():
    block = msgspec.structs.replace(spoiled(), frames=0)
    with pytest.raises(InputError, match=r"spatial.frames: 0 is below 1"):
        FmriTracker(TAPS, baseline(), THETA).update(block, ALL)


def test_unusable_mask_and_baseline_are_refused_by_name():
    with pytest.raises(InputError, match=r"good: bool\(3,\)"):
        FmriTracker(TAPS, baseline(), THETA).update(spoiled(), ALL[:3])
    clean = baseline()
    with pytest.raises(MapError, match=rf"fmri.theta: shape \(3,\), expected \({N},\)"):
        FmriTracker(TAPS, clean, np.ones(3))
