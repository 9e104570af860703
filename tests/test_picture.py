"""Statistics of the picture: parity with the definition, what each of them sees, and how NaN passes."""

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from edge_monitor.kernels import picture as kernel
from edge_monitor.kernels.displacement import LAG, THUMB
from edge_monitor.types import PICTURE, WHOLE_PICTURE

N = len(PICTURE)
SIZE = (3, 24, 20)


class Pictures:
    """The kernel with its state, for pictures of one shape."""

    def __init__(self, shape=SIZE, grid=(2, 2)):
        _, height, width = shape
        self.grid = grid
        self.light = np.zeros((3, height, width), np.float32)
        rows, columns = min(THUMB, height), min(THUMB, width)
        self.edges = np.arange(columns + 1) * width // columns
        self.thumbs = np.zeros((LAG + 1, rows * columns))
        self.profiles = np.zeros((2, height + width))
        self.count = np.zeros(1, np.int64)
        self.lanes = np.zeros((N, width), np.float32)
        self.work = np.zeros((2, max(height, width) // 4 + 1))

    def __call__(self, pixels):
        out = np.full(self.grid[0] * self.grid[1] * N + len(WHOLE_PICTURE), -7.0)
        state = (self.light, self.thumbs, self.profiles, self.count, self.lanes, self.work)
        kernel.statistics(np.ascontiguousarray(pixels, np.float32), *self.grid, self.edges, *state, out)
        return out


def after(frames, **options):
    """Statistics of the last frame."""
    pictures = Pictures(np.shape(frames)[1:], **options)
    return [pictures(frame) for frame in frames][-1]


def regions(statistics, name):
    """One statistic of every region."""
    return statistics[:-4].reshape(-1, N)[:, PICTURE.index(name)]


def test_order_of_the_statistics():
    assert tuple(map(PICTURE.index, PICTURE[:3])) == (kernel.ACROSS, kernel.DOWN, kernel.LAPLACIAN)
    assert tuple(map(PICTURE.index, PICTURE[3:])) == (
        *(kernel.CHANGE_1, kernel.CHANGE_2),
        *(kernel.SAME, kernel.FLAT),
    )
    assert (N, len(WHOLE_PICTURE)) == (kernel.N_STATISTICS, kernel.N_WHOLE)


@pytest.mark.parametrize(
    ("shape", "grid"),
    [
        (SIZE, (2, 2)),
        ((1, 9, 7), (2, 3)),
        ((4, 16, 33), (1, 1)),
        ((3, 3, 3), (2, 2)),
        ((2, 2, 5), (2, 2)),
        ((1, 1, 4), (1, 2)),
        ((20, 1, 1), (1, 1)),
    ],
)
def test_lock_step_with_the_definition(shape, grid):
    rng = np.random.default_rng(0)
    pictures, frames = Pictures(shape, grid), []
    for i in range(20):
        frame = rng.integers(0, 256, shape).astype(np.float32) if i % 3 else rng.random(shape, np.float32)
        if i % 4 == 2:  # parts that stand still
            frame[:, : shape[1] // 2 + 1] = frames[-1][:, : shape[1] // 2 + 1]
        frames.append(frame)
        assert_allclose(pictures(frame), naive.picture(frames, *grid), rtol=2e-5, atol=1e-6)


@given(
    st.integers(1, 4),
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(1, 19),
    st.sampled_from([1e-3, 1.0, 255.0]),
    st.integers(0, 2**32 - 1),
)
def test_any_shape_follows_the_definition(channels, height, width, n, scale, seed):
    shape, grid = (channels, height, width), (min(2, height), min(2, width))
    frames = (scale * np.random.default_rng(seed).random((n, *shape))).astype(np.float32)
    assert_allclose(after(frames, grid=grid), naive.picture(frames, *grid), rtol=5e-5, atol=1e-5 * scale)


def test_statistics_are_unknown_until_there_are_so_many_pictures():
    pictures, rng = Pictures(), np.random.default_rng(1)
    for i in range(18):
        statistics = pictures(rng.random(SIZE))
        for name, needed in (("across", 0), ("down", 0), ("laplacian", 0), ("change_1", 1), ("same", 1)):
            assert np.isnan(regions(statistics, name)).all() == (i < needed), name
        assert np.isnan(regions(statistics, "change_2")).all() == (i < 2)
        assert np.isnan(statistics[-3:]).tolist() == [i < 1, i < 16, i < 1]


# What each of them sees.


def drive(n, speed=1, noise=0.0, seed=2):
    """A smooth scene that moves ``speed`` pixels a frame, with fresh noise."""
    rng = np.random.default_rng(seed)
    x = np.arange(400)
    scene = sum(np.sin(2 * np.pi * x / w + rng.uniform(0, 7)) for w in (60, 90, 140))
    frames = np.stack([np.broadcast_to(scene[i * speed : i * speed + 20], SIZE) for i in range(n)])
    return 0.5 + 0.1 * frames + noise * rng.normal(size=frames.shape)


def test_a_still_scene_is_the_same_and_does_not_move():
    statistics = after(drive(20, speed=0))
    assert_array_equal(regions(statistics, "same"), 1.0)
    assert_array_equal(regions(statistics, "change_1"), 0.0)
    assert_array_equal(statistics[-3:], 0.0)


def test_motion_grows_with_the_frames_waited_and_noise_does_not():
    """The ratio of the two is what a stalled scene is known by."""
    moving, noise = after(drive(20, noise=0.002)), after(drive(20, speed=0, noise=0.05))
    assert moving[-2] > 5 * moving[-3]
    assert noise[-2] == pytest.approx(noise[-3], rel=0.3)


def test_stripes_have_a_slope_across_them_alone():
    """Lines of period 2 change at every point; the first point of a row has no neighbour before it."""
    stripes = np.zeros(SIZE)
    stripes[:, :, ::2] = 1.0
    statistics = after([stripes])
    assert_allclose(regions(statistics, "across"), [0.9, 1.0, 0.9, 1.0], rtol=1e-6)
    assert_array_equal(regions(statistics, "down"), 0.0)
    turned = after([np.ascontiguousarray(stripes.transpose(0, 2, 1))])
    assert_allclose(regions(turned, "down"), [0.9, 0.9, 1.0, 1.0], rtol=1e-6)


def test_a_ramp_is_not_sharp():
    ramp = np.broadcast_to(np.arange(20.0), SIZE)
    statistics = after([ramp])
    assert regions(statistics, "across").min() > 0.8
    assert_allclose(regions(statistics, "laplacian"), 0.0, atol=1e-5)


def test_every_second_frame_repeated_shows_over_one_frame_alone():
    frames = np.random.default_rng(3).random((9, *SIZE))
    statistics = after(np.repeat(frames, 2, axis=0)[:18])
    assert_array_equal(regions(statistics, "change_1"), 0.0)
    assert regions(statistics, "change_2").min() > 0.1


def test_a_fault_in_one_corner_is_seen_in_its_region():
    frames = np.full((3, *SIZE), 0.5)
    frames[2, :, 14:, 12:] = 0.9
    assert_array_equal(regions(after(frames), "change_1") > 0, [False, False, False, True])


# Rows that carry nothing.


def dead(picture):
    return after([np.broadcast_to(picture, SIZE)])[-4]


def test_dead_rows_are_counted_one_by_one():
    picture = np.random.default_rng(10).random(SIZE[1:])
    assert dead(picture) == 0
    picture[[3, 17]] = 0.0
    assert dead(picture) == 2
    picture[7] = picture[6]  # a stuck row counter
    assert dead(picture) == 3
    picture[9, :-1] = 0.4  # one live point is life
    assert dead(picture) == 3


def test_saturated_rows_are_not_dead():
    """A sky that is too bright has no noise either: rows as bright as any point are no evidence."""
    picture = 0.9 * np.random.default_rng(11).random(SIZE[1:])
    picture[:5] = 1.0
    assert dead(picture) == 0
    picture[20] = 0.95
    assert dead(picture) == 1
    assert dead(np.full(SIZE[1:], 0.3)) == 0  # nor is a picture that is flat altogether


def test_a_dead_row_beside_a_bad_pixel_still_counts():
    picture = np.random.default_rng(12).random(SIZE[1:])
    picture[4] = 0.2
    picture[0, 0] = np.nan
    assert dead(picture) == 1


# The jump.


def scene(height=48, width=40, seed=6):
    """A large drawing to look at through a window: smooth, and no part of it like another."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [(rng.normal(0, 0.4, 2), rng.uniform(0, 7)) for _ in range(40)]
    return 0.5 + 0.03 * sum(np.sin(a * y + b * x + phase) for (a, b), phase in waves)


def window(drawing, down, across, noise=0.0, seed=7):
    view = drawing[12 + down : 36 + down, 10 + across : 30 + across]
    return np.broadcast_to(view, SIZE) + noise * np.random.default_rng(seed + down).normal(size=SIZE)


@pytest.mark.parametrize(("down", "across"), [(2, 0), (0, 2), (-3, 1), (1, -2)])
def test_a_displaced_scene_jumps(down, across):
    drawing = scene()
    still, moved = (
        after([window(drawing, 0, 0, 0.002), window(drawing, *by, 0.002, seed=9)])[-1]
        for by in ((0, 0), (down, across))
    )
    assert moved > 1.5
    assert still < 0.5


def test_another_scene_does_not_jump_and_a_flash_neither():
    """A hard cut changes far more, but no displacement explains it; light changes everywhere alike."""
    drawing = scene()
    cut = after([window(drawing, 0, 0), window(scene(seed=60), 0, 0)])[-1]
    flash = after([window(drawing, 0, 0, 0.002), window(drawing, 0, 0, 0.002, seed=8) + 0.3])[-1]
    assert max(cut, flash) < 0.8 < 1.5 < after([window(drawing, 0, 0), window(drawing, 2, 1)])[-1]


# NaN.


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bad_pixel_is_unknown_in_its_region_and_comes_back(value):
    rng = np.random.default_rng(4)
    frames = rng.random((40, *SIZE))
    frames[20, 1, 3, 4] = value
    pictures, clean = Pictures(), Pictures()
    for i, frame in enumerate(frames):
        statistics = pictures(frame)
        expected = clean(np.where(np.isfinite(frame), frame, 0.5))
        bad = ~np.isfinite(statistics[:-4].reshape(4, N))
        if i < 2:
            continue
        assert not bad[1:].any()  # the other regions never notice
        if i == 20:
            assert_array_equal(bad[0], [True, True, True, True, True, False, False])
        assert bad[0, PICTURE.index("change_1")] == (i in {20, 21})
        assert bad[0, PICTURE.index("change_2")] == (i in {20, 22})
        assert np.isfinite(statistics[-3]) == np.isfinite(statistics[-1]) == (i not in {20, 21})
        if i > 36:
            assert_array_equal(statistics, expected)


def test_where_no_displacement_is_better_there_is_none():
    """Along a profile without any structure all are equally good; the other axis alone counts."""
    stripes = np.tile(np.sin(np.arange(24.0) * 0.9)[:, None], (1, 20))
    moved = np.tile(np.sin((np.arange(24.0) - 1) * 0.9)[:, None], (1, 20))
    by_one = after([np.broadcast_to(stripes, SIZE), np.broadcast_to(moved, SIZE)])[-1]
    assert by_one == pytest.approx(np.log(1000.0), rel=0.05)  # 1 of 24 rows has full size just so
    wide = [np.repeat(np.repeat(x, 2, axis=0), 2, axis=1) for x in (stripes, moved)]
    shape = (3, 48, 40)
    one_of_48 = after([np.broadcast_to(np.roll(wide[0], k, axis=0), shape) for k in (0, 1)])[-1]
    assert one_of_48 < 0.6 * by_one
