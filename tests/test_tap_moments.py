"""Moments of taps in every layout and type, against their twin; programs of strips; the tap table."""

import naive
import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from edge_monitor.errors import InputError
from edge_monitor.fmri import densities
from edge_monitor.kernels import tap_moments as kernel
from edge_monitor.kernels.tap_moments import tap_moments
from edge_monitor.taps.strip_program import counts, strips
from edge_monitor.taps.tap_table import Layout, TapTable
from edge_monitor.types import TapSpec
from edge_monitor.vitals import ORDER

INTERPRETED = numba.config.DISABLE_JIT
EXAMPLES = 10 if INTERPRETED else 150
EXTREMES = (np.nan, np.inf, -np.inf)
BOUNDS = {"float32": 1e-5, "float16": 1e-5, "int8": 1e-14, "uint8": 1e-14}
RELU = "relu"


class Taps:
    """Tensors of the given (shape, grid, layout) in memory, between elements that must not count."""

    def __init__(self, taps):
        specs = tuple(TapSpec(f"tap{i}", shape, grid) for i, (shape, grid, _) in enumerate(taps))
        self.layouts = tuple(layout for *_, layout in taps)
        self.table = TapTable(specs, self.layouts)
        self.memory = []
        for i, layout in enumerate(self.layouts):
            n = self.table.n_bytes(i) // np.dtype(layout.dtype).itemsize
            self.memory.append(self.garbage(layout.dtype, n + 6))
            self.table.place(i, self.memory[i][3:].ctypes.data)
        self.specs = specs
        n_voxels, n_channels = sum(s.n_voxels for s in specs), sum(s.n_channels for s in specs)
        self.out = (
            np.empty(len(taps)),
            np.empty(len(taps), np.int64),
            np.empty((n_voxels, 3)),
            np.empty(n_channels),
        )

    @staticmethod
    def garbage(dtype, n):
        return np.full(n, np.nan if dtype.startswith("float") else 111).astype(dtype)

    def __call__(self, tensors):
        for memory, tensor, layout in zip(self.memory, tensors, self.layouts, strict=True):
            filling = self.garbage(layout.dtype, 1)[0]
            memory[3:-3] = naive.in_memory(tensor, layout.block, filling)
        for array in self.out:
            array[:] = 7
        tap_moments(self.table.taps, self.table.program, self.table.scales, *self.out)
        return self.out

    def expected(self, tensors):
        described = zip(tensors, self.specs, self.layouts, strict=True)
        return naive.tap_moments([(a, spec.grid, x.scale, x.zero_point) for a, spec, x in described])

    def check(self, tensors, bound=None):
        for i, (name, got, want) in enumerate(
            zip(
                ("signals", "nonfinite", "voxels", "channels"),
                self(tensors),
                self.expected(tensors),
                strict=True,
            )
        ):
            assert (np.isnan(got) == np.isnan(want)).all(), name
            # sum a may cancel: its error is relative to sum |a|.
            scale = np.maximum(np.abs(want), want[:, :1] if i == 2 else 0)
            limit = bound or max(BOUNDS[layout.dtype] for layout in self.layouts)
            assert not (np.abs(got - want) > limit * scale).any(), (name, got, want)


@st.composite
def tap(draw, dtypes=tuple(BOUNDS), side=7 if INTERPRETED else 40):
    channels = st.integers(1, 20 if INTERPRETED else 70)
    shape = draw(
        st.tuples(channels, st.integers(1, side), st.integers(1, side))
        | st.tuples(channels, *[st.just(1)] * 2)
    )
    grid = draw(st.tuples(*(st.integers(1, min(5, n)) for n in shape)))
    dtype = draw(st.sampled_from(dtypes))
    block = draw(st.sampled_from((1, shape[0], 16, 8, 4, 5)))
    if dtype.startswith("float"):
        return shape, grid, Layout(dtype, block)
    limits = np.iinfo(dtype)
    zero_point = draw(st.integers(limits.min, limits.max))
    return shape, grid, Layout(dtype, block, draw(st.floats(1e-4, 10)), zero_point)


def draw_tensor(rng, shape, dtype, mean=0.0):
    if dtype.startswith("float"):
        a = rng.standard_normal(shape) if mean != RELU else np.maximum(rng.standard_normal(shape), 0)
        return (a if mean == RELU else a + mean).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max + 1, shape).astype(dtype)


means = st.just(RELU) | st.sampled_from((0.0, 1.0, -3.0, 50.0))


@given(taps=st.lists(tap(), min_size=1, max_size=3), mean=means, seed=st.integers(0, 2**32))
@settings(max_examples=EXAMPLES, deadline=None)
def test_equals_definition(taps, mean, seed):
    rng = np.random.default_rng(seed)
    tensors = [draw_tensor(rng, shape, layout.dtype, mean) for shape, _, layout in taps]
    Taps(taps).check(tensors)


@given(
    taps=st.lists(tap(("float32", "float16")), min_size=1, max_size=3),
    mean=means,
    share=st.sampled_from((0.003, 0.1, 1.0)),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=EXAMPLES, deadline=None)
def test_nonfinite_is_left_out_and_counted(taps, mean, share, seed):
    rng = np.random.default_rng(seed)
    tensors = [draw_tensor(rng, shape, layout.dtype, mean) for shape, _, layout in taps]
    for a in tensors:
        a[rng.random(a.shape) < share] = rng.choice(EXTREMES)
    Taps(taps).check(tensors)


@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize("block", [1, 5, 16])
@pytest.mark.parametrize("value", EXTREMES)
def test_one_bad_element_anywhere(value, block, spatial):
    taps = Taps([((5, 4, 17), (2, 2, 3), Layout(block=block))])
    taps.table.choose(np.array([spatial]))
    clean = draw_tensor(np.random.default_rng(0), (5, 4, 17), "float32", RELU)
    for i in range(0, clean.size, 23 if INTERPRETED else 1):
        a = clean.copy()
        a.flat[i] = value
        signals, nonfinite, _, channels = taps([a])
        expected = taps.expected([a])
        assert nonfinite.tolist() == [1], i
        assert_allclose(signals, expected[0], rtol=1e-6)
        assert_allclose(channels, expected[3], rtol=1e-6)


def test_opposite_infinities_do_not_cancel():
    a = np.ones((1, 2, 16), np.float32)
    a[0, 0, 0], a[0, 1, 0] = np.inf, -np.inf
    signals, nonfinite, voxels, channels = Taps([((1, 2, 16), (1, 1, 1), Layout())])([a])
    assert (signals[0], nonfinite[0], channels[0]) == (1.0, 2, 30.0)
    assert_array_equal(voxels, [[30.0, 30.0, 30.0]])


def test_tap_without_finite_element_has_no_signal():
    taps = Taps([((4, 3, 20), (2, 1, 2), Layout(block=8)), ((5, 1, 1), (4, 1, 1), Layout())])
    tensors = [np.full((4, 3, 20), np.nan, np.float32), np.ones((5, 1, 1), np.float32)]
    signals, nonfinite, voxels, channels = taps(tensors)
    assert_array_equal(signals, [np.nan, 1.0])
    assert nonfinite.tolist() == [240, 0]
    assert not voxels[:4].any()
    assert not channels[:4].any()


def test_squares_beyond_float32():
    for value in (-3e38, 3e38):
        taps = Taps([((2, 4, 16), (1, 1, 1), Layout()), ((3, 1, 1), (1, 1, 1), Layout())])
        taps.check([np.full((2, 4, 16), value, np.float32), np.full((3, 1, 1), value, np.float32)], 1e-14)


def test_a_frame_leaves_nothing_behind():
    """Clean, negative and broken frames in turn."""
    described = [((3, 8, 16), (2, 2, 2)), ((7, 1, 1), (3, 1, 1)), ((4, 9, 11), (4, 4, 4))]
    taps = Taps(
        [(shape, grid, Layout(block=b)) for (shape, grid), b in zip(described, (1, 1, 4), strict=True)]
    )
    rng = np.random.default_rng(1)
    for frame in range(4 if INTERPRETED else 30):
        tensors = [draw_tensor(rng, shape, "float32", RELU if frame % 2 else -2.0) for shape, _ in described]
        if frame % 3 == 1:
            tensors[frame % 2][0] = rng.choice(EXTREMES)
        taps.check(tensors)


@given(one=tap(), mean=means, seed=st.integers(0, 2**32))
@settings(max_examples=EXAMPLES, deadline=None)
def test_without_voxels_the_rest_is_the_same(one, mean, seed):
    """And the signal so nearly that what repeats is known, whatever is scanned of it."""
    taps = Taps([one, one])
    a = draw_tensor(np.random.default_rng(seed), one[0], one[2].dtype, mean)
    taps.table.choose(np.array([False, True]))
    signals, nonfinite, voxels, channels = taps([a, a])
    assert_allclose(signals[0], signals[1], rtol=ORDER)
    half = len(channels) // 2
    assert_allclose(channels[:half], channels[half:], rtol=BOUNDS[one[2].dtype])
    assert (voxels[: len(voxels) // 2] == 7).all()  # as they were
    assert not nonfinite.any()


@given(one=tap(("float32",)), ratio=st.floats(-10, 10), log_std=st.floats(-4, 4), seed=st.integers(0, 2**32))
@settings(max_examples=EXAMPLES, deadline=None)
def test_density_precision(one, ratio, log_std, seed):
    shape, grid, _ = one
    a = (10.0**log_std * (ratio + np.random.default_rng(seed).standard_normal(shape))).astype(np.float32)
    got = densities(Taps([one])([a])[2], np.array(counts(shape, grid)), np.full(np.prod(grid), np.nan))
    for found, voxel in zip(got, naive.voxel_slices(shape, grid), strict=True):
        x = np.asarray(a[voxel], np.float64)
        bound = 1e-5 * (np.mean(np.abs(x)) + 0.1 * (1 + abs(np.log(np.var(x) + 1e-6))))
        assert abs(found - naive.density(x)) <= bound  # design D2


@pytest.mark.parametrize("block", [1, 4, 16])
@pytest.mark.parametrize("mean", [4.0, 1e2, -1e3, 1e4])
def test_density_precision_beyond_ten_deviations(mean, block):
    """The variance does not lose digits to the mean: the density's error is that of mean |a| alone."""
    shape, grid = (4, 8, 32), (2, 2, 2)
    a = draw_tensor(np.random.default_rng(2), shape, "float32", mean)
    size, total, square = Taps([(shape, grid, Layout(block=block))])([a])[2].T / 128
    elements = [np.asarray(a[voxel], np.float64) for voxel in naive.voxel_slices(shape, grid)]
    assert_allclose(square - total**2, [np.var(x) for x in elements], rtol=1e-6)
    assert_allclose(size, [np.mean(np.abs(x)) for x in elements], rtol=1e-6)


def test_a_constant_has_no_variance():
    """Far from zero as it can be: what a float32 sum rounds off would show."""
    a = np.full((8, 40, 40), 0.1, np.float32)
    _, total, square = Taps([((8, 40, 40), (1, 1, 1), Layout())])([a])[2][0] / a.size
    assert square - total**2 == pytest.approx(0, abs=1e-13)


@given(one=tap(side=12))
@settings(max_examples=EXAMPLES, deadline=None)
def test_a_program_reads_every_element_once(one):
    shape, grid, layout = one
    numbers = np.arange(np.prod(shape)).reshape(shape)
    memory = naive.in_memory(numbers, layout.block, -1)
    voxel_of = np.empty(shape, int)
    for voxel, where in enumerate(naive.voxel_slices(shape, grid)):
        voxel_of[where] = voxel
    assert_array_equal(counts(shape, grid), np.bincount(voxel_of.ravel()))
    for wanted in (grid, None):
        read = list(naive.walk(*strips(shape, layout.block, wanted)))
        elements = memory[[index for index, _, _ in read]]
        assert sorted(elements) == list(range(numbers.size))
        assert [channel for _, channel, _ in read] == (elements // np.prod(shape[1:])).tolist()
        into = [[voxel] for voxel in voxel_of.ravel()[elements]] if wanted else [[]] * numbers.size
        assert [voxels for *_, voxels in read] == into


def test_large_tensors_are_cut_into_strips_that_fit():
    """More than 128 vectors in an accumulator would be too much for 16 bits, and for the stated error."""
    for shape, block in (
        ((3, 700, 40), 1),
        ((2, 3, 9000), 2),
        ((64, 300, 2), 1),
        ((1, 5000, 3), 1),
        ((40, 400, 300), 40),
    ):
        for grid in (None, (1, 1, 1)):
            integers, n_strips = strips(shape, block, grid)
            for _ in range(n_strips):
                _, n_outer, _, n_inner, _, _, tail, *_, n_folds = integers[:11]
                del integers[: 11 + 3 * n_folds]
                assert n_outer * max((n_inner + 1) // 2, n_inner // 2 + (tail > 0)) <= 128


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (Layout("float64"), "conv: dtype float64, expected one of float32, float16, int8, uint8"),
        (Layout(block=0), "conv: block 0, expected at least 1"),
        (Layout("int8", scale=0.0), "conv: scale 0.0, expected a positive number"),
        (Layout("int8", scale=np.nan), "conv: scale nan, expected a positive number"),
        (Layout("uint8", zero_point=-1), "conv: zero point -1, outside of uint8"),
        (Layout("int8", zero_point=128), "conv: zero point 128, outside of int8"),
        (Layout("float16", scale=0.5), "conv: float16 with a scale or a zero point"),
    ],
)
def test_bad_layouts_are_refused(layout, message):
    with pytest.raises(InputError) as refused:
        TapTable((TapSpec("conv", (4, 2, 2), (1, 1, 1)),), (layout,))
    assert str(refused.value) == message


def test_a_tap_moves():
    """A runtime that allocates anew: the next frame is read from the new place."""
    taps = Taps([((4, 2, 2), (1, 1, 1), Layout())])
    other = np.full((4, 2, 2), 2.0, np.float32)
    assert taps([np.ones((4, 2, 2), np.float32)])[0] == 1.0
    taps.table.place(0, other.ctypes.data)
    assert taps([np.ones((4, 2, 2), np.float32)])[0] == 2.0
    assert taps.table.taps[0, kernel.END] - taps.table.taps[0, kernel.ADDRESS] == other.nbytes


@pytest.mark.skipif(INTERPRETED, reason="only the compiled kernel has a signature")
@pytest.mark.parametrize("spoil", [lambda x: x.astype(np.float64), lambda x: np.repeat(x, 2, axis=1)[:, ::2]])
def test_other_dtype_or_layout_refused(spoil):
    taps = Taps([((2, 4, 16), (1, 1, 1), Layout())])
    with pytest.raises(TypeError, match="No matching definition"):
        tap_moments(spoil(taps.table.taps), taps.table.program, taps.table.scales, *taps.out)
