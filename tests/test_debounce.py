"""Fault counters over a recording: parity with the slow twin (and with the flags in test_thresholds.py)."""

import naive
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_array_equal

from edge_monitor.kernels.debounce import confirmations

ratios = st.one_of(st.sampled_from([0.5, 0.8, 0.9, 1.0, 1.5, np.nan, np.inf]), st.floats(0, 2))


@given(
    arrays(np.float64, st.tuples(st.integers(1, 60), st.just(3)), elements=ratios),
    arrays(np.int64, (3, 2), elements=st.integers(1, 255)),
)
def test_lock_step_with_the_definition(ratio, steps):
    out = np.ones(len(ratio), np.bool_)
    confirmations(ratio, 0.8, steps, out)
    assert_array_equal(out, naive.confirmations(ratio, 0.8, steps))


def test_a_flag_has_to_heal_before_it_is_confirmed_again():
    up, flutter, heal = [1.0] * 4, [0.5, 1.0] * 3, [0.0] * 32
    ratio = np.array([up + flutter + heal + up]).T
    out = np.empty(len(ratio), np.bool_)
    confirmations(ratio, 0.8, np.array([[32, 8]]), out)
    assert_array_equal(np.flatnonzero(out), [3, len(ratio) - 1])
