"""Columns over time against a plain reduction of all values."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_monitor.offline.time_course import COLUMNS, TimeCourse, farthest, largest, smallest

WIDTH_NS = 1_000
TRACKS = {"high": (1, largest), "low": (1, smallest), "far": (1, farthest)}
numbers = st.floats(-1e3, 1e3) | st.just(np.nan)
steps = st.integers(0, 3 * WIDTH_NS) | st.integers(0, 300 * COLUMNS * WIDTH_NS)


def plain(values):
    """Largest, smallest, and farthest from 0 of the known values."""
    known = [value for value in values if not np.isnan(value)]
    if not known:
        return [np.nan] * 3
    return [max(known), min(known), max(known, key=abs)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(steps, numbers), min_size=1, max_size=40))
def test_columns_hold_the_reduction_of_all_that_fell_into_them(series):
    course, t_ns, seen = TimeCourse(TRACKS, WIDTH_NS), 10**12, []
    for step, value in series:
        t_ns += step
        course.move(t_ns)
        seen.append((t_ns, value))
        for track in TRACKS:
            course.add(track, np.array([value]))
    elapsed = t_ns - seen[0][0]
    width = WIDTH_NS
    while elapsed // width >= COLUMNS:
        width *= 2
    assert course.column_s == width / 1e9
    bins = [[] for _ in range(elapsed // width + 1)]
    for t, value in seen:
        bins[(t - seen[0][0]) // width].append(value)
    expected = np.array([plain(values) for values in bins])
    found = np.column_stack([course.columns(track)[:, 0] for track in TRACKS])
    np.testing.assert_array_equal(found[:, :2], expected[:, :2])
    np.testing.assert_array_equal(np.abs(found[:, 2]), np.abs(expected[:, 2]))  # of 3 and -3 either is right


def test_memory_does_not_grow_with_time():
    course = TimeCourse(TRACKS, WIDTH_NS)
    for i in range(10 * COLUMNS):
        course.move(i * WIDTH_NS)
        course.add("high", np.array([i == 4_321], float))
    columns = course.columns("high")
    assert COLUMNS / 2 <= len(columns) <= COLUMNS
    assert columns.sum() == 1.0  # the single peak is not lost, and not doubled
    assert columns.argmax() == int(4_321 * WIDTH_NS / 1e9 / course.column_s)


def test_a_clock_that_runs_back_moves_nothing_back():
    course = TimeCourse(TRACKS, WIDTH_NS)
    for t, value in ((0, 1.0), (5 * WIDTH_NS, 2.0), (-(10**18), 3.0)):
        course.move(t)
        course.add("high", np.array([value]))
    np.testing.assert_array_equal(course.columns("high")[:, 0], [1, np.nan, np.nan, np.nan, np.nan, 3])


def test_coarse_columns_are_few_and_lose_no_peak():
    course = TimeCourse({"z": (3, farthest)}, WIDTH_NS)
    for i in range(701):
        course.move(i * WIDTH_NS)
        course.add("z", np.array([0.0, -9.0 if i == 700 else 1.0, np.nan]))
    width_s, values = course.coarse("z", 300)
    assert values.size <= 300
    assert width_s * len(values) >= 701 * WIDTH_NS / 1e9
    assert values[-1, 1] == -9.0
    assert np.isnan(values[:, 2]).all()
