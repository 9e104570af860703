"""Moments and fingerprint kernels against their twins."""

import naive
import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from edge_monitor.fmri import densities
from edge_monitor.kernels.fingerprint import fingerprint
from edge_monitor.kernels.moments import N_COLUMNS, N_LANES, moments

INTERPRETED = numba.config.DISABLE_JIT
EXAMPLES = 15 if INTERPRETED else 150
EXTREMES = (np.nan, np.inf, -np.inf)


class Kernel:
    """The kernel over taps of the given (shape, grid), laid out one after the other with gaps."""

    def __init__(self, taps, gap=3):
        self.taps = taps
        self.table = np.empty((len(taps), N_COLUMNS), np.int64)
        offset = voxels = channels = 0
        for row, (shape, grid) in zip(self.table, taps, strict=True):
            row[:] = (offset, *shape, *grid, voxels, channels)
            offset += np.prod(shape) + gap
            voxels += np.prod(grid)
            channels += shape[0]
        self.buffer = np.full(offset, np.float32(1e30))  # what lies between the taps must not count
        self.lanes = np.full((N_LANES, max(shape[2] for shape, _ in taps)), 1e30)
        self.out = (
            np.full(len(taps), 7.0),
            np.full(len(taps), 7),
            np.full((voxels, 3), 7.0),
            np.full(channels, 7.0),
        )

    def __call__(self, activations):
        for row, a in zip(self.table, activations, strict=True):
            self.buffer[row[0] : row[0] + a.size] = a.ravel()
        moments(self.buffer, self.table, self.lanes, *self.out)
        return self.out


def check(results, activations, taps):
    expected = naive.moments([(a, grid) for a, (_, grid) in zip(activations, taps, strict=True)])
    for name, got, want in zip(
        ("signals", "nonfinite", "voxels", "channels"), results, expected, strict=True
    ):
        # sum a may cancel: its error is relative to sum |a|.
        scale = expected[2][:, :1] if name == "voxels" else 0.0
        error = np.abs(got - want)
        bound = 1e-13 * np.maximum(np.abs(want), scale)
        assert (np.isnan(got) == np.isnan(want)).all(), name
        assert not (error > bound).any(), (name, np.nanmax(error / np.maximum(bound, 1e-300)))


@st.composite
def tap(draw, side=19 if INTERPRETED else 40):
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, side), st.integers(1, side)))
    grid = draw(st.tuples(*(st.integers(1, min(4, n)) for n in shape)))
    return shape, grid


def draw_activations(rng, shape, mean=0.0):
    return (mean + rng.standard_normal(shape)).astype(np.float32)


@given(taps=st.lists(tap(), min_size=1, max_size=4), mean=st.floats(-1e4, 1e4), seed=st.integers(0, 2**32))
@settings(max_examples=EXAMPLES, deadline=None)
def test_equals_definition(taps, mean, seed):
    rng = np.random.default_rng(seed)
    activations = [draw_activations(rng, shape, mean) for shape, _ in taps]
    check(Kernel(taps)(activations), activations, taps)


@given(
    taps=st.lists(tap(), min_size=1, max_size=3),
    share=st.sampled_from((0.003, 0.1, 1.0)),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=EXAMPLES, deadline=None)
def test_nonfinite_is_left_out_and_counted(taps, share, seed):
    rng = np.random.default_rng(seed)
    activations = [draw_activations(rng, shape) for shape, _ in taps]
    for a in activations:
        a[rng.random(a.shape) < share] = rng.choice(EXTREMES)
    check(Kernel(taps)(activations), activations, taps)


@pytest.mark.parametrize("value", EXTREMES)
def test_one_bad_element_anywhere(value):
    taps = [((2, 5, 17), (2, 2, 3))]
    kernel = Kernel(taps)
    clean = draw_activations(np.random.default_rng(0), (2, 5, 17))
    for i in range(0, clean.size, 7 if INTERPRETED else 1):
        a = clean.copy()
        a.flat[i] = value
        results = kernel([a])
        assert results[1].tolist() == [1], i
        check(results, [a], taps)


def test_opposite_infinities_do_not_cancel():
    taps = [((1, 2, 16), (1, 1, 1))]
    a = np.ones((1, 2, 16), np.float32)
    a[0, 0, 0], a[0, 1, 0] = np.inf, -np.inf
    signals, nonfinite, voxels, channels = Kernel(taps)([a])
    assert (signals[0], nonfinite[0], channels[0]) == (1.0, 2, 30.0)
    assert_array_equal(voxels, [[30.0, 30.0, 30.0]])


def test_tap_without_finite_element_has_no_signal():
    taps = [((4, 3, 20), (2, 1, 2)), ((5, 1, 1), (4, 1, 1))]
    activations = [np.full((4, 3, 20), np.nan, np.float32), np.ones((5, 1, 1), np.float32)]
    signals, nonfinite, voxels, channels = Kernel(taps)(activations)
    assert_array_equal(signals, [np.nan, 1.0])
    assert nonfinite.tolist() == [240, 0]
    assert not voxels[:4].any()
    assert not channels[:4].any()


def test_a_frame_leaves_nothing_behind():
    """Lock-step over frames, bad ones between clean ones."""
    taps = [((3, 8, 16), (2, 2, 2)), ((7, 1, 1), (3, 1, 1)), ((4, 9, 21), (4, 4, 4))]
    kernel = Kernel(taps)
    rng = np.random.default_rng(1)
    for frame in range(4 if INTERPRETED else 30):
        activations = [draw_activations(rng, shape) for shape, _ in taps]
        if frame % 3 == 1:
            activations[frame % 2][0] = rng.choice(EXTREMES)
        check(kernel(activations), activations, taps)


def test_squares_beyond_float32():
    taps = [((2, 4, 16), (1, 1, 1)), ((3, 1, 1), (1, 1, 1))]
    activations = [np.full(shape, -3e38, np.float32) for shape, _ in taps]
    results = Kernel(taps)(activations)
    assert np.isfinite(results[2]).all()
    check(results, activations, taps)


def densities_of(a, grid):
    taps = [(a.shape, grid)]
    counts = np.array([a[voxel].size for voxel in naive.voxel_slices(a.shape, grid)])
    got = densities(Kernel(taps)([a])[2], counts, np.full(len(counts), np.nan))
    return got, [np.asarray(a[voxel], np.float64) for voxel in naive.voxel_slices(a.shape, grid)]


@given(one=tap(), ratio=st.floats(-10, 10), log_std=st.floats(-4, 4), seed=st.integers(0, 2**32))
@settings(max_examples=EXAMPLES, deadline=None)
def test_density_precision(one, ratio, log_std, seed):
    shape, grid = one
    a = (10.0**log_std * (ratio + np.random.default_rng(seed).standard_normal(shape))).astype(np.float32)
    for got, x in zip(*densities_of(a, grid), strict=True):
        bound = 1e-5 * (np.mean(np.abs(x)) + 0.1 * (1 + abs(np.log(np.var(x) + 1e-6))))
        assert abs(got - naive.density(x)) <= bound  # design D2


@pytest.mark.parametrize("mean", [1e2, -1e3, 1e4])
def test_density_precision_beyond_ten_deviations(mean):
    a = draw_activations(np.random.default_rng(2), (4, 8, 32), mean)
    got, elements = densities_of(a, (2, 2, 2))
    assert_allclose(got, [naive.density(x) for x in elements], rtol=0, atol=1e-7)


@pytest.mark.skipif(INTERPRETED, reason="only the compiled kernel has a signature")
@pytest.mark.parametrize("spoil", [lambda x: x.astype(np.float64), lambda x: np.repeat(x, 2)[::2]])
def test_other_dtype_or_layout_refused(spoil):
    kernel = Kernel([((2, 4, 16), (1, 1, 1))])
    with pytest.raises(TypeError, match="No matching definition"):
        moments(spoil(kernel.buffer), kernel.table, kernel.lanes, *kernel.out)


@given(st.binary(max_size=640).map(lambda data: data[: len(data) // 32 * 32]))
@settings(max_examples=EXAMPLES, deadline=None)
def test_fingerprint_equals_definition(data):
    assert int(fingerprint(np.frombuffer(bytearray(data), np.uint64))) == naive.fingerprint(data)


def flipped(words, *bits):
    other = words.copy()
    for bit in bits:
        other[bit // 64] ^= np.uint64(1 << bit % 64)
    return int(fingerprint(other))


def test_every_bit_counts():
    words = np.random.default_rng(3).integers(0, 2**64, 8, np.uint64)
    clean = int(fingerprint(words))
    changes = [(flipped(words, bit) ^ clean).bit_count() for bit in range(512)]
    assert min(changes) >= 12  # 0 would be a bit that does not count; 32 +- 4 is a perfect hash
    assert np.mean(changes) == pytest.approx(32, abs=1)


def test_two_changes_do_not_cancel():
    """Top bits are the weak spot of multiplication: a float's sign is one."""
    words = np.zeros(16, np.uint64)
    tops = [64 * i + 63 for i in range(16)]
    seen = {flipped(words, a, b) for a in tops for b in tops if a < b} | {int(fingerprint(words))}
    assert len(seen) == 16 * 15 // 2 + 1


def test_order_and_length_count():
    words = np.arange(12, dtype=np.uint64)
    swapped = words.reshape(3, 4)[::-1].ravel()  # the same words in every lane
    longer = np.append(words, np.zeros(4, np.uint64))
    assert len({int(fingerprint(w)) for w in (words, swapped, longer)}) == 3
