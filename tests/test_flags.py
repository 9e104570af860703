"""The life cycle of flags: fault counters, latches, grace, ageing, and what leaves the device."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from flag_drive import (
    CLEAN,
    CONFIRMED,
    HEALED,
    INACTIVE,
    PENDING,
    PERIOD_NS,
    RAISERS,
    SECOND,
    Drive,
    frame,
    tick,
)
from hypothesis import given
from hypothesis import strategies as st

from edge_monitor.flags import AGING_NS, COUNTER_FAILED, COUNTER_PASSED, STORAGE_NS, FlagTracker

# The life cycle, on a row that counts 16 up and 8 down.

FAILED, PASSED, UNKNOWN = (frame(ratios={"input": ratio}) for ratio in (1.5, 0.1, np.nan))


def after(history):
    """Drive after a history of failed (F) and passed (P) tests."""
    drive = Drive()
    for letter in history:
        drive.feed(FAILED if letter == "F" else PASSED)
    return drive


@pytest.mark.parametrize(
    ("history", "before", "failed", "passed"),
    [
        ("", (INACTIVE, -128), (PENDING, 16), (INACTIVE, -128)),
        ("F", (PENDING, 16), (PENDING, 32), (PENDING, 8)),
        ("F" + 17 * "P", (PENDING, -120), (PENDING, 16), (INACTIVE, -128)),
        (7 * "F", (PENDING, 112), (CONFIRMED, 127), (PENDING, 104)),
        (8 * "F", (CONFIRMED, 127), (CONFIRMED, 127), (CONFIRMED, 119)),
        (8 * "F" + 16 * "P", (CONFIRMED, -1), (CONFIRMED, 16), (CONFIRMED, -9)),
        (8 * "F" + 31 * "P", (CONFIRMED, -121), (CONFIRMED, 16), (HEALED, -128)),
        (8 * "F" + 32 * "P", (HEALED, -128), (HEALED, 16), (HEALED, -128)),
        (8 * "F" + 32 * "P" + 7 * "F", (HEALED, 112), (CONFIRMED, 127), (HEALED, 104)),
    ],
)
def test_life_cycle(history, before, failed, passed):
    flag = after(history).flag("INPUT_ABNORMAL")
    assert (flag.status, flag.counter) == before
    for findings, expected in ((FAILED, failed), (PASSED, passed), (UNKNOWN, before)):
        flag = after(history).feed(findings).flag("INPUT_ABNORMAL")
        assert (flag.status, flag.counter) == expected


@given(st.lists(st.sampled_from([FAILED, FAILED, PASSED, UNKNOWN]), max_size=120))
def test_life_cycle_invariants(sequence):
    drive, entries = Drive(), 0
    for findings in sequence:
        old = drive.flag("INPUT_ABNORMAL")
        new = drive.feed(findings).flag("INPUT_ABNORMAL")
        entries += new.status is CONFIRMED and old.status is not CONFIRMED
        assert COUNTER_PASSED <= new.counter <= COUNTER_FAILED
        assert new.occurrences == entries
        if findings is UNKNOWN:
            assert new == old
        if new.status is old.status:
            assert new.since_ns == old.since_ns
        else:
            assert new.since_ns == int((drive.frames - 1) * PERIOD_NS)
            assert new.status is not CONFIRMED or new.counter == COUNTER_FAILED
            assert old.status is not CONFIRMED or (new.status, new.counter) == (HEALED, COUNTER_PASSED)
        if new.status is INACTIVE:
            assert new.counter == COUNTER_PASSED


@pytest.mark.parametrize("code", ["NON_FINITE", "PROBE_DETACHED", "ANSWER_CHANGED", "SELF_TEST_FAILED"])
def test_guards_confirm_at_once_and_latch_until_released(code):
    drive = Drive().feed(RAISERS[code])
    assert drive.standing() == {code}
    assert drive.feed(CLEAN, 900).standing() == {code}
    assert drive.flag(code).counter == COUNTER_FAILED
    drive.tracker.release(code)
    assert drive.feed(tick(), 900).standing() == {code}  # no frame, no evidence that it is over
    assert drive.feed(CLEAN, 32).standing() == set()
    assert drive.flag(code).status is HEALED
    assert drive.feed(RAISERS[code]).feed(CLEAN, 900).standing() == {code}  # latched anew


def test_a_fault_after_the_release_latches_again():
    drive = Drive().feed(RAISERS["NON_FINITE"])
    drive.tracker.release("NON_FINITE")
    assert drive.feed(CLEAN, 10).feed(RAISERS["NON_FINITE"]).feed(CLEAN, 900).standing() == {"NON_FINITE"}


def test_a_release_in_advance_releases_nothing():
    drive = Drive()
    drive.tracker.release("NON_FINITE")
    assert drive.feed(RAISERS["NON_FINITE"]).feed(CLEAN, 900).standing() == {"NON_FINITE"}


def test_there_is_no_flag_of_that_name():
    with pytest.raises(KeyError):
        FlagTracker().release("NO_SUCH_FLAG")


def test_grace_holds_back_evidence_but_no_guard():
    """Grace is over when the stream is two seconds old, however long there were ticks before it."""
    drive = Drive(past_grace=False).feed(tick(), 300).feed(FAILED, 60)
    assert drive.standing() == set()
    assert drive.flag("INPUT_ABNORMAL").counter == COUNTER_PASSED
    assert drive.feed(FAILED, 8).standing() == {"INPUT_ABNORMAL"}
    at_once = Drive(past_grace=False).feed(RAISERS["NON_FINITE"]).feed(frame(repeated=1), 2)
    assert at_once.standing() == {"NON_FINITE", "INPUT_FROZEN"}


def test_reset_clears_flags_and_releases():
    drive = Drive().feed(RAISERS["NON_FINITE"]).feed(FAILED, 8)
    drive.tracker.release("NON_FINITE")
    drive.tracker.reset()
    assert drive.tracker.states == FlagTracker().states
    drive.feed(RAISERS["NON_FINITE"]).feed(CLEAN, 60)
    assert drive.standing() == {"NON_FINITE"}


def test_a_healed_flag_ages_unless_its_fault_is_back():
    drive = after(8 * "F" + 32 * "P")
    drive.frames += int(AGING_NS / PERIOD_NS) - 5
    drive.feed(FAILED, 7)
    assert drive.flag("INPUT_ABNORMAL").status is HEALED
    drive = after(8 * "F" + 32 * "P")
    drive.frames += int(AGING_NS / PERIOD_NS) + 2
    flag = drive.feed(UNKNOWN).flag("INPUT_ABNORMAL")
    assert (flag.status, flag.cause, flag.values, flag.occurrences) == (INACTIVE, "", {}, 1)


# What leaves the device.


def test_second_by_second():
    """A camera freezes three times; the second is too soon to be told, the third is told when it may."""
    drive = Drive(past_grace=False)
    for clean, frozen in ((300, 60), (60, 60), (90, 90)):
        drive.feed(CLEAN, clean)
        for repeat in range(frozen):
            drive.feed(frame(repeated=repeat + 1))
    drive.feed(CLEAN, 30)
    assert drive.story == [
        (10.03, "INPUT_FROZEN", "inactive", "confirmed"),  # frames 300 and 301 repeat
        (12.5, "INPUT_FROZEN", "confirmed", "healed"),  # 16 new pictures from frame 360 on
        # frames 420-479: within 10 s of the first one, so not told
        (20.03, "INPUT_FROZEN", "healed", "confirmed"),  # frozen since 19 s, told now
        (22.5, "INPUT_FROZEN", "confirmed", "healed"),
    ]
    assert drive.flag("INPUT_FROZEN").occurrences == 3
    drive.frames += int(AGING_NS / PERIOD_NS)
    drive.feed(CLEAN)
    assert drive.story[-1][1:] == ("INPUT_FROZEN", "healed", "inactive")


@given(st.lists(st.tuples(st.sampled_from([FAILED, PASSED]), st.integers(1, 100)), max_size=20))
def test_at_most_one_pair_in_ten_seconds(phases):
    drive = Drive()
    for findings, frames in phases:
        drive.feed(findings, frames)
    opened = [when for when, _, _, after in drive.story if after == "confirmed"]
    assert all(b - a >= STORAGE_NS / SECOND - 0.01 for a, b in itertools.pairwise(opened))
    steps = [(before, after) for _, _, before, after in drive.story]
    assert all(a[1] == b[0] for a, b in itertools.pairwise(steps))
    assert drive.flag("INPUT_ABNORMAL").occurrences >= len(opened)
    drive.feed(FAILED, 8)
    drive.frames += int(STORAGE_NS / PERIOD_NS)
    drive.feed(FAILED)
    assert drive.story[-1][3] == "confirmed"  # whatever was held back is told in the end


def test_pending_is_nobodys_business():
    assert Drive().feed(FAILED, 7).feed(PASSED, 60).story == []
