"""Faults put into clean scenes: nothing else changes, and what is composed is all there."""

import copy
import itertools

import msgspec
import numpy as np
import pytest
import small_world
from hypothesis import given, settings
from hypothesis import strategies as st
from small_world import injector, same_picture, scene

from edge_monitor.digest import report_digest
from edge_monitor.errors import InputError
from edge_monitor.kernels.displacement import LAG
from edge_monitor.offline.delivery import plan_of, seen_by_camera
from edge_monitor.offline.faults import EXTRAS, FAULTS, Stage
from edge_monitor.offline.injection import (
    Injection,
    Range,
    decisions,
    fork,
    levels_of,
    ramp,
    warm,
)
from edge_monitor.offline.scene import BEFORE
from edge_monitor.offline.stream_faults import deliveries
from edge_monitor.pipeline import Monitor

N = 300
PERIOD_NS = 1e9 / 30.0


def put(*faults, on=scene):
    """Rows of the scene with (fault, level or levels) put in."""
    injections = [
        Injection(fault, levels if isinstance(levels, tuple) else levels_of(levels, N), seed=3)
        for fault, levels in faults
    ]
    return injector().rows(on(), injections)


@pytest.fixture(scope="module")
def clean():
    return put()


def all_same(a, b):
    return len(a) == len(b) and all(same_picture(x, y) for x, y in zip(a, b, strict=True))


def test_without_a_fault_the_rows_are_those_of_the_clean_stream(clean):
    """As the probe saw the same frames in one run, to the bit: 18 frames are all the past that a row has."""
    from edge_monitor.config import FrameSettings  # noqa: PLC0415
    from edge_monitor.offline.observe import observe  # noqa: PLC0415

    frames = str(small_world.frame_file(700, seed=1))
    whole = observe(small_world.model_file(), FrameSettings(frames=frames)).rows
    assert all_same(clean, whole[clean[0].frame : clean[0].frame + N])


def test_times_frames_and_contexts_go_on_from_the_lead_in(clean):
    last = scene().rows[-1]
    assert [row.frame for row in clean] == [last.frame + 1 + k for k in range(N)]
    for k, row in enumerate(clean):
        assert row.t_capture_ns == pytest.approx(last.t_capture_ns + (1 + k) * PERIOD_NS, abs=1)
        assert row.t_ns == pytest.approx(last.t_ns + (1 + k) * PERIOD_NS, abs=1)
        assert row.context["place"] == BEFORE + k


def test_a_source_without_capture_times_gets_none():
    def untimed():
        rows = [msgspec.structs.replace(row, t_capture_ns=None) for row in scene().rows]
        return msgspec.structs.replace(scene(), rows=rows)

    assert {row.t_capture_ns for row in put(on=untimed)} == {None}


@pytest.mark.parametrize("fault", [fault.name for fault in (*FAULTS, *EXTRAS)])
def test_level_0_is_clean(fault, clean):
    rows = put((fault, 0.0))
    assert all_same(rows, clean)
    assert [row.t_capture_ns for row in rows] == [row.t_capture_ns for row in clean]
    assert [row.latency_ns for row in rows] == [row.latency_ns for row in clean]


@pytest.mark.parametrize("fault", [fault.name for fault in (*FAULTS, *EXTRAS)])
def test_every_fault_can_be_put_in(fault, clean):
    """The strongest bit flips and infinities too, with which a probe would not attach."""
    rows = put((fault, 3.0))
    moved = any(
        (a.t_capture_ns, a.latency_ns) != (b.t_capture_ns, b.latency_ns)
        for a, b in zip(rows, clean, strict=False)
    )
    assert len(rows) < N or moved or not all_same(rows, clean)


@pytest.mark.parametrize(
    "fault", ["fog", "gaussian noise", "dead channels", "stuck-high unit", "true freeze"]
)
def test_a_stretch_at_level_0_is_clean(fault, clean):
    """The picture's statistics look back on the faulty frames for a while, the network does not."""
    levels = (0.0,) * 40 + (2.0,) * 40 + (0.0,) * (N - 80)
    rows = put((fault, levels))
    assert all_same(rows[:40], clean[:40])
    assert not all_same(rows[40:80], clean[40:80])
    assert all_same(rows[80 + LAG :], clean[80 + LAG :])
    for row, was in zip(rows[80:], clean[80:], strict=True):
        np.testing.assert_array_equal(row.signals, was.signals)
        np.testing.assert_array_equal(row.spatial.channels, was.spatial.channels)


def test_two_faults_of_the_picture_are_both_there():
    both = put(("fog", 2.0), ("dead rows", 2.0))
    assert not all_same(both, put(("fog", 2.0)))
    assert not all_same(both, put(("dead rows", 2.0)))
    fog = injector()._break_pictures(scene().frames, Injection("fog", levels_of(2.0, N), 3))
    rows = injector()._break_pictures(fog, Injection("dead rows", levels_of(2.0, N), 3))
    expected = [float(np.abs(frame).mean(dtype=np.float64)) for frame in rows[BEFORE:]]
    np.testing.assert_allclose([row.signals[0] for row in both], expected, rtol=1e-6)


def test_two_faults_of_the_model_are_both_there():
    """Broken channels of both: what either zeroes alone is zero with both."""
    one, other = ("dead channels", 3.0), ("quantisation fault", 2.0)
    both = put(one, other)
    assert not all_same(both, put(one))
    assert not all_same(both, put(other))
    apart = put(
        ("dead channels", (3.0,) * 50 + (0.0,) * 250), ("quantisation fault", (0.0,) * 250 + (2.0,) * 50)
    )
    for k in (0, 49, 250, 299):
        alone = put(one)[k] if k < 50 else put(other)[k]
        np.testing.assert_array_equal(apart[k].signals, alone.signals)
    assert np.array_equal(apart[150].signals, put()[150].signals)


def test_a_fault_of_the_picture_a_broken_model_and_a_faulty_queue_at_once(clean):
    rows = put(("fog", 2.0), ("NaN/Inf", 1.0), ("dropped frames", 3.0))
    assert all(row.nonfinite.any() for row in rows)
    assert 0.4 * N < len(rows) < 0.8 * N
    foggy = {row.frame: row.signals[0] for row in put(("fog", 2.0))}
    assert all(row.signals[0] == foggy[row.frame] for row in rows)
    assert foggy[rows[0].frame] != clean[rows[0].frame - clean[0].frame].signals[0]


def test_two_faults_of_the_stream_are_both_there():
    rows = put(("dropped frames", 2.0), ("latency stall", 3.0))
    assert len(rows) < N
    latencies = {row.latency_ns for row in rows}
    assert latencies == {0, int(8 * PERIOD_NS)}


@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 200))
@settings(max_examples=40, deadline=None)
def test_a_queue_after_a_queue(first, second, n):
    """Reordered twice: the second takes what the first hands over; each frame is delivered once."""
    faults = [Injection("frame reorder", levels_of(3.0, n), seed) for seed in (first, second)]
    one, other = (deliveries("frame reorder", 3.0, seed, n) for seed in (first, second))
    expected = [one[delivery.index].index for delivery in other]
    assert [delivery.index for delivery in plan_of(faults, n)] == expected
    assert sorted(expected) == list(range(n))


def test_a_true_freeze_shows_the_scene_of_the_onset_again_and_only_the_noise_is_new(clean):
    rows = put(("true freeze", 1.0))
    assert same_picture(rows[0], clean[0])
    assert len({row.fingerprint for row in rows}) == N
    assert [row.t_capture_ns for row in rows] == [row.t_capture_ns for row in clean]
    moved = np.ptp([row.spatial.voxels[0, 1] for row in clean])
    assert np.ptp([row.spatial.voxels[0, 1] for row in rows]) < 0.3 * moved


def test_a_stutter_holds_the_scene_that_it_meets_and_not_that_of_the_onset():
    plan = plan_of([Injection("stutter", levels_of(3.0, N), 3)], N)
    held = [k for k, delivery in enumerate(plan) if delivery.again and delivery.index > 0]
    assert held
    full = injector()._range
    frames = seen_by_camera(scene(), plan, full.digitise)[BEFORE:]
    clean = scene().frames[BEFORE:]
    for k in held:
        difference = frames[k] - clean[plan[k].index]
        assert 0.5 < difference.std() < 5.0  # the sensor's noise is 2
        steps = full.to_unit(frames[k]) * full.steps
        np.testing.assert_allclose(steps, np.rint(steps), atol=1e-2)  # as any picture that was digitised
    free = [k for k, delivery in enumerate(plan) if not delivery.again]
    np.testing.assert_array_equal(frames[free], clean[free])


def test_a_dirty_lens_stays_dirty_while_the_scene_is_held():
    frozen, both = put(("true freeze", 1.0)), put(("true freeze", 1.0), ("blackout", 3.0))
    dark = float(injector()._range.low.mean())
    for seen, broken in zip(frozen, both, strict=True):
        assert broken.signals[0] - dark < 0.2 * (seen.signals[0] - dark)


def test_late_answers_hold_up_those_behind_them():
    rows = put(("latency stall", 2.0))
    slow = [row.latency_ns > 0 for row in rows]
    assert any(slow)
    assert not all(slow)
    times = np.diff([row.t_ns for row in rows])
    assert (times >= 0).all()
    late = [row.t_ns - row.t_capture_ns for row in rows]
    for k in range(1, N):
        if not slow[k]:  # it catches up by one period a frame
            assert late[k] == pytest.approx(max(0.0, late[k - 1] - PERIOD_NS), abs=3)


def test_a_ramp_grows_and_stays():
    levels = ramp(2.0, 100, 150)
    assert len(levels) == 150
    assert all(b >= a for a, b in itertools.pairwise(levels))
    assert levels[0] == pytest.approx(0.02)
    assert levels[49] == pytest.approx(1.0)
    assert set(levels[99:]) == {2.0}
    dark = [row.signals[0] for row in put(("blackout", ramp(3.0, N, N)))]
    thirds = [np.mean(part) for part in np.array_split(dark, 6)]
    assert thirds == sorted(thirds, reverse=True)


def test_what_cannot_be_put_in_is_refused():
    with pytest.raises(InputError, match="'rust' is none of frozen exact"):
        put(("rust", 1.0))
    with pytest.raises(InputError, match="fog: has 5 levels, the scene has 300 frames"):
        put(("fog", (1.0,) * 5))
    with pytest.raises(InputError, match="must be 0 to 3, not 4"):
        put(("fog", 4.0))

    def file():
        return msgspec.structs.replace(scene(), again=None)

    for fault in ("true freeze", "stutter"):
        with pytest.raises(InputError, match=f"{fault}: needs a source that can show a scene again"):
            put((fault, 1.0), on=file)


def test_the_same_seed_breaks_the_same_and_another_breaks_otherwise():
    a, b, c = (
        injector().rows(scene(), [Injection("salt and pepper", levels_of(1.0, N), seed)])
        for seed in (5, 5, 6)
    )
    assert all_same(a, b)
    assert not all_same(a, c)


@given(st.integers(0, 255), st.integers(0, 255))
def test_full_scale_goes_there_and_back(low, high):
    frames = np.array([[[[low]]], [[[max(high, low + 1)]]]], np.float32)
    full = Range.of(frames)
    for frame in frames:
        np.testing.assert_allclose(full.from_unit(full.to_unit(frame), frame.shape), frame, atol=1e-3)
    outside = full.to_unit(np.full((1, 1, 1), 1e6, np.float32))
    assert outside.max() == 1.0


def test_a_vector_is_a_picture_of_one_row():
    full = Range.of(np.array([[0.0, -1.0], [2.0, 1.0]], np.float32))
    frame = np.array([1.0, 0.0], np.float32)
    assert full.to_unit(frame).shape == (2, 1, 1)
    np.testing.assert_allclose(full.digitise(frame), frame, atol=0.01)


def test_a_fork_goes_on_alone_and_leaves_the_original_as_it_was(clean):
    monitor, twin = Monitor(small_world.region_map()), Monitor(small_world.region_map())
    warm(monitor, scene())
    warm(twin, scene())
    branch = fork(monitor)
    assert branch.region_map is monitor.region_map
    for row in put(("blackout", 3.0))[:60]:
        branch.step(row)
    told = [report_digest(monitor.step(row)) for row in clean[:60]]
    assert told == [report_digest(twin.step(row)) for row in clean[:60]]
    assert report_digest(branch.report) != told[-1]


def test_warming_up_forgets_what_was_before():
    monitor = Monitor(small_world.region_map())
    warm(monitor, scene())
    first = report_digest(monitor.report)
    for row in put(("NaN/Inf", 1.0))[:30]:
        monitor.step(row)
    warm(monitor, scene())
    assert report_digest(monitor.report) == first


def test_decisions_are_winners_and_minus_one_where_there_is_none(clean):
    rows = [copy.copy(clean[0]), msgspec.structs.replace(clean[1], output=None)]
    assert decisions(rows).tolist() == [clean[0].output.top1, -1]
    assert decisions([]).size == 0


def test_every_stage_is_covered():
    assert {fault.stage for fault in (*FAULTS, *EXTRAS)} == set(Stage)
