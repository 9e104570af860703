"""What holds of evidence and flags whatever the stream: chunks, order of taps, several faults, NaN."""

import itertools

import msgspec
import numpy as np
import pytest
import small_world
from hypothesis import given, settings
from hypothesis import strategies as st
from small_world import injector, region_map, scene

from edge_monitor.digest import report_digest
from edge_monitor.findings import Verdict
from edge_monitor.flag_table import FLAGS
from edge_monitor.flags import COUNTER_FAILED, COUNTER_PASSED, FlagTracker
from edge_monitor.fmri import FmriTracker
from edge_monitor.offline.injection import Injection, fork, levels_of
from edge_monitor.pipeline import Monitor
from edge_monitor.reports import FlagState, FlagStatus
from edge_monitor.types import SpatialBlock, Tick

N = 120


@pytest.fixture(scope="module")
def rows():
    """Rows before and behind an onset, clean and with a fault."""
    fault = injector().rows(scene(), [Injection("blackout", levels_of(1.0, scene().length), 1)])
    return [*scene().rows[-N:], *fault[:N]]


@pytest.fixture(scope="module")
def digests(rows):
    monitor = Monitor(region_map())
    return [report_digest(monitor.feed(row)) for row in rows]


# --- chunks --------------------------------------------------------------------------------------
# A monitor has no batches: the only chunks are those in which a caller hands the stream over, to one monitor
# after another. Whatever has been heard has to be all that counts.


@given(st.lists(st.integers(1, 2 * N - 1), max_size=4, unique=True))
@settings(max_examples=8, deadline=None)
def test_evidence_does_not_depend_on_how_the_stream_is_cut_into_chunks(rows, digests, cuts):
    """A copy takes over at each cut, and the one before goes on with something else."""
    monitor, found = Monitor(region_map()), []
    edges = [0, *sorted(cuts), len(rows)]
    for first, end in itertools.pairwise(edges):
        found += [report_digest(monitor.feed(row)) for row in rows[first:end]]
        before, monitor = monitor, fork(monitor)
        for row in rows[:3]:
            before.feed(row)  # must not reach the copy
    assert found == digests


def test_a_monitor_that_was_reset_says_what_a_fresh_one_says(rows, digests):
    monitor = Monitor(region_map())
    for row in rows[N - 30 :]:
        monitor.feed(row)
    monitor.reset()
    assert [report_digest(monitor.feed(row)) for row in rows] == digests


# --- the order of taps ---------------------------------------------------------------------------
# The functional residual and the tracts follow the network's order, and a map of taps in another order is
# another map. What is symmetric in taps is the density of the layers (NN-fMRI) and the band powers: behind
# the input, taps may be listed in any order, and the scores are the same.


def permuted(known, order):
    """Taps and densities of a map in another order of taps; old places of its voxels and channels."""
    voxels = np.split(np.arange(known.fmri.median.size), np.cumsum([t.n_voxels for t in known.taps])[:-1])
    channels = np.split(
        np.arange(sum(t.n_channels for t in known.taps)), np.cumsum([t.n_channels for t in known.taps])[:-1]
    )
    v, c = (np.concatenate([parts[i] for i in order]) for parts in (voxels, channels))
    fmri = msgspec.structs.replace(
        known.fmri,
        **{name: getattr(known.fmri, name)[v].copy() for name in ("median", "scale", "floor", "bright")},
    )
    return tuple(known.taps[i] for i in order), fmri, v, c


@pytest.mark.parametrize("behind", list(itertools.permutations(range(1, len(region_map().taps))))[1:])
def test_densities_do_not_depend_on_the_order_of_taps(rows, behind):
    known, order = region_map(), [0, *behind]
    taps, fmri, v, c = permuted(known, order)
    one = FmriTracker(known.taps, known.fmri, known.theta)
    other = FmriTracker(taps, fmri, np.asarray(known.theta)[v].copy())
    for row in rows[::7]:
        good = row.nonfinite == 0
        block = SpatialBlock(
            row.spatial.frames,
            row.spatial.taps[order],
            np.ascontiguousarray(row.spatial.voxels[v]),
            np.ascontiguousarray(row.spatial.channels[c]),
        )
        a, b = one.update(row.spatial, good), other.update(block, np.ascontiguousarray(good[order]))
        np.testing.assert_array_equal(a.z[v], b.z)
        np.testing.assert_array_equal(a.tap_score[order], b.tap_score)
        assert b.score == pytest.approx(a.score, rel=1e-12)
        assert b.input_score == a.input_score
        assert b.bright == a.bright


# --- healing and latching ------------------------------------------------------------------------


def drive(place, verdicts, release_at=None):
    """States of one flag whose test answers as told."""
    row = FLAGS[place]
    tracker = FlagTracker()
    flag = FlagState(row.code, FlagStatus.INACTIVE, COUNTER_PASSED, 0, 0)
    states = []
    for i, failed in enumerate(verdicts):
        if i == release_at:
            tracker.release(row.code)
        flag = tracker._advance(row, flag, Verdict(failed, "a cause"), None, i * 33_333_333)
        states.append(flag)
    return states


@pytest.mark.parametrize("place", range(len(FLAGS)), ids=[row.code for row in FLAGS])
def test_a_fault_that_ends_heals_or_latches_as_its_row_says(place):
    row = FLAGS[place]
    to_confirm = -(-COUNTER_FAILED // row.up)  # from 0 up
    to_heal = -(-(COUNTER_FAILED - COUNTER_PASSED) // row.down)
    states = drive(place, [True] * to_confirm + [False] * (to_heal + 5))
    status = [flag.status for flag in states]
    assert status[: to_confirm - 1] == [FlagStatus.PENDING] * (to_confirm - 1)
    assert status[to_confirm - 1] is FlagStatus.CONFIRMED
    behind = status[to_confirm:]
    if row.latched:
        assert set(behind) == {FlagStatus.CONFIRMED}
        release_at = to_confirm + 3
        released = drive(place, [True] * to_confirm + [False] * (to_heal + 5), release_at)
        assert [f.status for f in released[to_confirm:release_at]] == [FlagStatus.CONFIRMED] * 3
        assert released[release_at + to_heal - 1].status is FlagStatus.HEALED
    else:
        assert behind[: to_heal - 1] == [FlagStatus.CONFIRMED] * (to_heal - 1)
        assert set(behind[to_heal - 1 :]) == {FlagStatus.HEALED}


@given(st.integers(0, len(FLAGS) - 1), st.lists(st.sampled_from([True, False, None]), max_size=80))
@settings(max_examples=60, deadline=None)
def test_a_flag_is_confirmed_only_by_as_many_failures_as_its_row_asks(place, verdicts):
    """Whatever the order: no fewer failures in a row of nothing but failures and silence may confirm it."""
    row = FLAGS[place]
    states = drive(place, verdicts)
    for i, flag in enumerate(states):
        if flag.status is FlagStatus.CONFIRMED:
            assert sum(v is True for v in verdicts[: i + 1]) * row.up >= COUNTER_FAILED
            break
    if None in verdicts:  # silence changes nothing
        kept = [v for v in verdicts if v is not None]
        last = drive(place, kept)[-1] if kept else None
        assert (states[-1].status, states[-1].counter) == (
            (last.status, last.counter) if last else (FlagStatus.INACTIVE, COUNTER_PASSED)
        )


# --- several faults at once ----------------------------------------------------------------------


def raised(*faults, change=None):
    """Flags that the scene's faults raise within three seconds, in the order in which they come."""
    injections = [Injection(fault, levels_of(level, scene().length), 1) for fault, level in faults]
    rows = injector().rows(scene(), injections)[:N]
    monitor = Monitor(region_map())
    for row in scene().rows:
        monitor.feed(row)
    found = {}
    for i, row in enumerate(rows):
        report = monitor.feed(row if change is None else change(i, row))
        for flag in report.flags:
            if flag.status is FlagStatus.CONFIRMED:
                found.setdefault(flag.code, i)
    return found, monitor


@pytest.mark.parametrize(
    ("faults", "flags"),
    [
        ((("blackout", 3.0), ("NaN/Inf", 1.0)), {"NON_FINITE", "INPUT_ABNORMAL"}),
        ((("blackout", 3.0), ("frame reorder", 3.0)), {"INPUT_ABNORMAL", "TIME_BACKWARDS"}),
        ((("frozen exact", 1.0), ("NaN/Inf", 1.0)), {"INPUT_FROZEN", "NON_FINITE"}),
        ((("frozen exact", 1.0), ("dropped frames", 3.0)), {"INPUT_FROZEN", "FRAMES_LOST"}),
    ],
)
def test_two_faults_at_once_are_both_reported(faults, flags):
    found, monitor = raised(*faults)
    assert flags <= found.keys()
    for fault in faults:  # one of the two would not have raised both
        assert not flags <= raised(fault)[0].keys()
    assert monitor.report.state.name == "FAIL"


# --- NaN -----------------------------------------------------------------------------------------


def poison(taps, every=1):
    """Put NaN into some taps of every so many frames, as a row tells of it: counted, and left out of sums."""

    def change(i, row):
        if i % every:
            return row
        nonfinite = row.nonfinite.copy()
        nonfinite[list(taps)] = 1
        return msgspec.structs.replace(row, nonfinite=nonfinite)

    return change


@pytest.mark.parametrize("fault", ["frozen exact", "frame reorder", "dropped frames"])
@pytest.mark.parametrize("taps", [(0,), (1,), (0, 1, 2)])
def test_nan_never_hides_what_guards_see(fault, taps):
    plain, _ = raised((fault, 3.0))
    found, _ = raised((fault, 3.0), change=poison(taps))
    assert "NON_FINITE" in found
    guards = {"INPUT_FROZEN", "TIME_BACKWARDS", "FRAMES_LOST"} & plain.keys()
    assert guards
    assert {code: found.get(code) for code in guards} == {code: plain[code] for code in guards}


@pytest.mark.parametrize("tap", range(1, len(region_map().taps)))
def test_nan_in_one_layer_never_hides_that_the_picture_is_dark(tap):
    plain, _ = raised(("blackout", 3.0))
    found, _ = raised(("blackout", 3.0), change=poison((tap,)))
    assert {"NON_FINITE", "INPUT_ABNORMAL"} <= found.keys()
    assert found["INPUT_ABNORMAL"] == plain["INPUT_ABNORMAL"]


def test_nan_in_single_frames_never_hides_that_the_picture_is_dark():
    """Every fifth frame is lost to NaN everywhere; the others still show it."""
    everywhere = tuple(range(len(region_map().taps)))
    found, _ = raised(("blackout", 3.0), change=poison(everywhere, every=5))
    assert {"NON_FINITE", "INPUT_ABNORMAL"} <= found.keys()


def test_nan_never_heals_what_was_confirmed():
    found, monitor = raised(("blackout", 3.0))
    assert "INPUT_ABNORMAL" in found
    row = injector().rows(scene(), [Injection("blackout", levels_of(3.0, scene().length), 1)])[N]
    everything = poison(range(len(region_map().taps)))
    for i in range(60):
        later = msgspec.structs.replace(
            row, frame=row.frame + i, t_capture_ns=row.t_capture_ns + i * 33_333_333, fingerprint=i
        )
        report = monitor.feed(everything(0, later))
        dark = next(flag for flag in report.flags if flag.code == "INPUT_ABNORMAL")
        assert dark.status is FlagStatus.CONFIRMED


def test_time_without_frames_changes_no_evidence():
    _, monitor = raised(("blackout", 3.0))
    twin = fork(monitor)
    row = injector().rows(scene(), [])[N]
    monitor.feed(Tick(monitor.report.t_ns + 1_000_000))
    np.testing.assert_array_equal(monitor.feed(row).evidence.ratio, twin.feed(row).evidence.ratio)


def test_the_small_world_is_as_calibration_saw_it():
    """Without a fault the scene raises nothing within the time in which faults are looked for."""
    assert raised()[0] == {}
    assert small_world.RATE_HZ == 30.0
