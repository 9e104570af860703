"""From activations to a row's numbers."""

import naive
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from tap_memory import held

from edge_monitor.errors import InputError
from edge_monitor.taps.reducer import TapReducer, input_spec, tap_spec
from edge_monitor.taps.tap_table import Layout


def some_taps():
    return (
        input_spec("image", (3, 9, 7)),
        tap_spec("conv", (6, 5, 17)),
        tap_spec("dense", (11,)),
        tap_spec("fine", (8, 4, 4), (4, 4, 4)),
    )


LAYOUTS = (Layout(block=4), Layout(), Layout("int8", 8, 0.25, -3))


class Filled(TapReducer):
    """A reducer of `some_taps` over tensors of its own: blocked, planar, and int8 with channels last."""

    def __init__(self, seed=0):
        super().__init__(some_taps(), LAYOUTS)
        sizes = [self._table.n_bytes(tap) for tap in (1, 2, 3)]
        self.tensors = [
            np.zeros(size, np.uint8).view(layout.dtype) for size, layout in zip(sizes, LAYOUTS, strict=True)
        ]
        self.place([tensor.ctypes.data for tensor in self.tensors])
        rng = np.random.default_rng(seed)
        self.input[...] = rng.standard_normal(self.input.shape)
        self.fill(rng)

    def fill(self, rng):
        for tensor in self.tensors:
            tensor[...] = 20 * rng.standard_normal(tensor.shape)


@pytest.mark.parametrize(
    ("shape", "sampled", "grid", "step"),
    [
        ((3, 32, 32), (3, 32, 32), (3, 4, 4), (1, 1)),
        ((3, 224, 224), (3, 56, 56), (3, 4, 4), (4, 4)),
        ((3, 65, 64), (3, 33, 64), (3, 4, 4), (2, 1)),
        ((1, 28, 1), (1, 28, 1), (1, 4, 1), (1, 1)),
        ((16, 8, 8), (16, 8, 8), (4, 4, 4), (1, 1)),
        ((640,), (640, 1, 1), (4, 1, 1), (1, 1)),
    ],
)
def test_input_spec(shape, sampled, grid, step):
    spec = input_spec("x", shape)
    assert (spec.name, spec.shape, spec.grid, spec.step) == ("x", sampled, grid, step)


@pytest.mark.parametrize(
    ("shape", "asked", "grid"),
    [
        ((16, 32, 32), (4, 2, 2), (4, 2, 2)),
        ((2, 1, 5), (4, 2, 8), (2, 1, 5)),
        ((3,), (4, 2, 2), (3, 1, 1)),
    ],
)
def test_tap_spec_clamps_its_grid(shape, asked, grid):
    spec = tap_spec("t", shape, asked)
    assert (spec.grid, spec.step) == (grid, (1, 1))
    assert spec.size == np.prod(shape)


@pytest.mark.parametrize("shape", [(), (3, 4), (1, 3, 4, 4), (3, 0, 4)])
def test_other_shapes_are_refused_by_name(shape):
    for make in (input_spec, tap_spec):
        with pytest.raises(InputError, match=r"^conv7: shape \("):
            make("conv7", shape)


def test_unusable_taps_are_refused():
    with pytest.raises(InputError, match=r"grid \(0, 2, 2\)"):
        tap_spec("t", (4, 4, 4), (0, 2, 2))
    with pytest.raises(InputError, match="none given"):
        TapReducer((), ())
    too_fine = type(tap_spec("t", (2, 2, 2)))("t", (2, 2, 2), (3, 1, 1))
    with pytest.raises(InputError, match=r"grid \(3, 1, 1\) does not fit shape \(2, 2, 2\)"):
        TapReducer((too_fine,), ())


def test_the_inputs_words_are_aligned():
    reducer = Filled()
    assert (reducer.input.shape, reducer.input.dtype, reducer.input.flags.carray) == (
        (3, 9, 7),
        np.float32,
        1,
    )
    assert reducer.input.ctypes.data % 64 == 0


def test_taps_must_be_placed():
    reducer = TapReducer(some_taps(), LAYOUTS)
    with pytest.raises(InputError, match="taps: not placed in memory"):
        reducer.reduce()
    with pytest.raises(ValueError, match="shorter"):
        reducer.place([64])
    with pytest.raises(InputError, match="not placed"):
        reducer.reduce()


@pytest.mark.parametrize("dtype", ["u1", "i1", "i8", "f2", "f4", "f8", ">f4", "?"])
@pytest.mark.parametrize("batch", [(), (1,)])
def test_load_input_casts_and_strides(dtype, batch):
    reducer = TapReducer((input_spec("image", (3, 130, 64)),), ())
    frame = np.random.default_rng(0).integers(0, 100, (*batch, 3, 130, 64)).astype(dtype)
    reducer.load_input(frame)
    assert_array_equal(reducer.input, frame.reshape(3, 130, 64)[:, ::3].astype(np.float32))


def test_load_input_reads_any_strides():
    reducer = TapReducer((input_spec("image", (3, 8, 6)),), ())
    channels_last = np.arange(144, dtype=np.float32).reshape(8, 6, 3)
    reducer.load_input(channels_last.transpose(2, 0, 1)[:, ::-1])
    assert reducer.input[1, 0, 2] == channels_last[7, 2, 1]


@pytest.mark.parametrize("shape", [(5,), (1, 5)])
def test_load_dense_input(shape):
    reducer = TapReducer((input_spec("features", (5,)),), ())
    reducer.load_input(np.arange(5.0).reshape(shape))
    assert reducer.input.ravel().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "shape", [(3, 9, 6), (2, 3, 9, 7), (9, 7, 3), (189,), (1, 189), (), (3, 9, 7, 1), (1, 1, 3, 9, 7)]
)
def test_wrong_shape_is_named(shape):
    reducer = TapReducer(some_taps(), LAYOUTS)
    with pytest.raises(InputError) as caught:
        reducer.load_input(np.zeros(shape, np.float32))
    assert str(caught.value).startswith(f"image: frame of shape {shape}, expected (3, 9, 7)")


@pytest.mark.parametrize("dtype", ["c8", "O", "U1"])
def test_what_is_no_real_number_is_refused(dtype):
    with pytest.raises(InputError, match=r"^image: frame of dtype"):
        TapReducer(some_taps(), LAYOUTS).load_input(np.zeros((3, 9, 7), dtype))


def test_input_beyond_float32_counts_as_nonfinite():
    reducer = Filled()
    frame = np.ones((3, 9, 7))
    frame[0, 0, :2] = 1e300, np.nan
    with np.errstate(over="raise"):
        reducer.load_input(frame)
    assert reducer.reduce().nonfinite.tolist() == [2, 0, 0, 0]


def test_reduce_equals_definition_frame_by_frame():
    reducer = Filled()
    grids = [tap.grid for tap in some_taps()]
    rng = np.random.default_rng(1)
    for frame in range(8):
        reducer.load_input(rng.standard_normal((3, 9, 7)))
        reducer.fill(rng)
        reducer.tensors[frame % 2][frame] = (1.0, np.nan, np.inf)[frame % 3]
        reduction = reducer.reduce()
        expected = naive.moments(list(zip(held(reducer), grids, strict=True)))
        signals, nonfinite, voxels, channels = expected
        assert_allclose(reduction.signals, signals, rtol=1e-6)
        assert_array_equal(reduction.nonfinite, nonfinite)
        assert nonfinite.sum() == (frame % 3 > 0)
        assert_allclose(reduction.spatial.voxels, voxels, rtol=1e-6, atol=1e-4)
        assert_allclose(reduction.spatial.channels, channels, rtol=1e-6)
        assert (reduction.spatial.frames, reduction.spatial.taps.tolist()) == (1, [True] * 4)
        data = reducer.input.tobytes()
        assert reduction.fingerprint == naive.fingerprint(data + bytes(-len(data) % 64))


def test_results_are_fresh():
    reducer = Filled()
    first = reducer.reduce()
    arrays = (first.signals, first.nonfinite, first.spatial.voxels, first.spatial.channels)
    before = [array.copy() for array in arrays]
    reducer.input[...] = 5.0
    reducer.fill(np.random.default_rng(1))
    reducer.reduce()
    for array, copy in zip(arrays, before, strict=True):
        assert_array_equal(array, copy)


def test_fingerprint_is_of_the_whole_input_and_of_nothing_else():
    reducer = Filled()
    clean = reducer.reduce().fingerprint
    for tensor in reducer.tensors:
        tensor[...] = 0
    assert reducer.reduce().fingerprint == clean
    seen = {clean}
    for i in range(reducer.input.size):
        reducer.input.flat[i] = -reducer.input.flat[i]
        seen.add(reducer.reduce().fingerprint)
    assert len(seen) == reducer.input.size + 1


# The picture.


@pytest.mark.parametrize(
    ("shape", "regions"),
    [((3, 32, 32), (3, 3)), ((1, 2, 40), (2, 3)), ((640,), (1, 1)), ((3, 224, 224), (3, 3))],
)
def test_the_input_has_statistics_for_each_of_its_regions(shape, regions):
    spec = input_spec("x", shape)
    assert spec.picture == regions
    assert spec.n_statistics == 7 * regions[0] * regions[1]
    assert spec.n_features == min(spec.n_channels, 32) + spec.n_voxels + spec.n_statistics
    assert tap_spec("t", shape).n_statistics == 0


def test_statistics_are_those_of_the_sampled_input():
    """A stride of 4 in a picture of 224 x 224: in lock step with their twin, on what is looked at."""
    reducer, rng = TapReducer((input_spec("image", (3, 224, 224)),), ()), np.random.default_rng(20)
    frames = []
    for _ in range(18):
        frame = rng.random((1, 3, 224, 224), dtype=np.float32)
        frames.append(frame[0, :, ::4, ::4])
        reducer.load_input(frame)
        found = reducer.reduce().picture
        assert_allclose(found, naive.picture(frames, 3, 3), rtol=2e-5, atol=1e-6)
    assert np.isfinite(found).all()


def test_after_a_restart_no_picture_is_remembered():
    used, fresh = Filled(), Filled()
    for seed in range(20):
        used.input[...] = np.random.default_rng(seed).random(used.input.shape)
        used.reduce()
    used.restart()
    for seed in range(18):
        for reducer in (used, fresh):
            reducer.input[...] = np.random.default_rng(100 + seed).random(used.input.shape)
        assert_array_equal(used.reduce().picture, fresh.reduce().picture)


def test_statistics_of_a_kept_reduction_do_not_change():
    reducer = Filled()
    kept = reducer.reduce().picture
    before = kept.copy()
    reducer.input[...] += 1.0
    reducer.reduce()
    assert_array_equal(kept, before)
