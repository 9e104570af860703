"""The governor: what it reads less of, in which order, and when it goes back."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_monitor.taps.governor import (
    BUDGET,
    CALM,
    LONGEST_TR,
    NARROWEST,
    OUTLIERS,
    RELAX,
    WINDOW,
    Governor,
    ladder,
)

PERIOD_NS = 1e9 / 30
BUDGET_NS = BUDGET * PERIOD_NS


def spend(governor, cost_ns, windows=1):
    """Let every frame of some windows cost the same; the step after each window."""
    steps = []
    for _ in range(windows):
        for _ in range(WINDOW):
            governor.scan()
            governor.spent(int(cost_ns))
        steps.append(governor.step)
    return steps


@given(st.integers(2, 40))
def test_fewer_taps_at_a_time_come_before_a_longer_repetition_time(n_taps):
    steps = ladder(n_taps)
    narrowest = min(NARROWEST, n_taps - 1)
    assert steps[0] == (n_taps - 1, 1)
    assert steps[-1] == (narrowest, LONGEST_TR)
    for before, after in pairwise(steps):
        if after.tr == 1:
            assert NARROWEST <= after.width < before.width <= 2 * after.width
        else:
            assert (after.width, after.tr) == (narrowest, 2 * before.tr)


@given(st.integers(2, 40), st.integers(0, 20))
def test_a_round_reads_every_tap_and_every_neighbour_beside_it(n_taps, step):
    """A layer is compared with what the one before it predicts: both have to be read in one frame."""
    governor = Governor(n_taps, PERIOD_NS)
    spend(governor, 2 * BUDGET_NS, min(step, len(ladder(n_taps)) - 1))
    width, tr = governor.step
    scans = np.array([governor.scan() for _ in range((n_taps + 1) * tr)])
    (scanned,) = np.nonzero(scans.any(axis=1))
    assert (np.diff(scanned) == tr).all()
    assert (scans[scanned].sum(axis=1) == 1 + width).all()
    assert scans[scanned, 0].all()
    assert scans.any(axis=0).all()
    assert (scans[:, 1:] & scans[:, :-1]).any(axis=0).all()


def test_within_the_budget_everything_is_read():
    governor = Governor(8, PERIOD_NS)
    assert set(spend(governor, 0.9 * BUDGET_NS, 50)) == {(7, 1)}
    assert governor.scan().all()


def test_over_budget_it_goes_down_step_by_step_and_no_further_than_the_last():
    governor = Governor(8, PERIOD_NS)
    steps = spend(governor, 1.1 * BUDGET_NS, 12)
    n = len(ladder(8)) - 1
    assert steps[:n] == list(ladder(8)[1:])
    assert set(steps[n:]) == {ladder(8)[-1]}


def test_it_stops_where_the_budget_is_kept():
    """Cost in proportion to what is read, 2.4 times the budget with all eight taps."""
    governor = Governor(8, PERIOD_NS)
    for _ in range(20 * WINDOW):
        governor.spent(int(2.4 * BUDGET_NS * governor.scan().sum() / 8))
    assert governor.step == (2, 1)


@pytest.mark.parametrize("cost", [10**10, -(10**10)], ids=["stopped for ten seconds", "clock set back"])
def test_a_few_absurd_costs_change_nothing(cost):
    """A suspended machine, a process that was not scheduled for a while; too low ones never do harm."""
    governor = Governor(8, PERIOD_NS)
    for i in range(10 * WINDOW):
        governor.scan()
        governor.spent(cost if i % WINDOW < OUTLIERS else int(0.5 * BUDGET_NS))
    assert governor.step == (7, 1)


def test_what_costs_too_much_in_one_frame_of_sixteen_is_seen():
    governor = Governor(8, PERIOD_NS)
    for i in range(WINDOW):
        governor.spent(int(40 * BUDGET_NS) if i % 8 == 0 else 0)
    assert governor.step == (4, 1)


def test_it_goes_back_after_a_calm_time_and_is_more_patient_when_that_was_too_early():
    governor = Governor(8, PERIOD_NS)
    low, high = 0.9 * RELAX * BUDGET_NS, 1.5 * BUDGET_NS
    spend(governor, high)
    assert governor.step == (4, 1)
    assert spend(governor, low, CALM) == [(4, 1)] * (CALM - 1) + [(7, 1)]
    spend(governor, high)
    assert governor.step == (4, 1)
    assert spend(governor, low, 2 * CALM) == [(4, 1)] * (2 * CALM - 1) + [(7, 1)]


def test_a_cost_between_the_limits_keeps_the_step():
    governor = Governor(8, PERIOD_NS)
    spend(governor, 1.5 * BUDGET_NS)
    assert set(spend(governor, 0.7 * BUDGET_NS, 5 * CALM)) == {(4, 1)}


def test_at_the_last_step_the_rotation_goes_on():
    """However long it stays over budget, no tap is forgotten."""
    governor = Governor(8, PERIOD_NS)
    spend(governor, 2 * BUDGET_NS, 10)
    scans = np.zeros(8, np.int64)
    for _ in range(100 * WINDOW):
        scans += governor.scan()
        governor.spent(int(2 * BUDGET_NS))
    assert scans[0] == 100 * WINDOW // LONGEST_TR
    assert scans[1:].min() > scans[0] / 8


def test_calm_at_the_top_is_no_step_back_and_makes_patient_again():
    governor = Governor(8, PERIOD_NS)
    low, high = 0.9 * RELAX * BUDGET_NS, 1.5 * BUDGET_NS
    spend(governor, low, CALM)
    spend(governor, high)
    assert spend(governor, low, CALM)[-1] == (7, 1)
    spend(governor, high)  # too early
    assert spend(governor, low, 2 * CALM)[-1] == (7, 1)
    spend(governor, low, 3 * CALM)
    spend(governor, high)
    assert spend(governor, low, CALM)[-1] == (7, 1)
