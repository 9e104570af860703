"""Values of quantised tensors: parity with the definition, and which sums are scaled to 1."""

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from edge_monitor.kernels.quantised import dequantise, read_softmax


def after(kernel, integers, zero_point, scale):
    values = np.array(integers, np.float32)
    kernel(zero_point, scale, values)
    return values


@given(
    st.lists(st.integers(-128, 255), min_size=1, max_size=40),
    st.integers(-128, 255),
    st.floats(2.0**-20, 2.0**10, width=32),
)
def test_integers_stand_for_steps_from_the_zero_point(integers, zero_point, scale):
    expected = naive.dequantised(integers, zero_point, scale)
    assert_array_equal(after(dequantise, integers, zero_point, scale), expected.astype(np.float32))


@given(st.lists(st.integers(-128, 127), min_size=1, max_size=40))
def test_integers_of_a_softmax_follow_the_definition(integers):
    found = after(read_softmax, integers, -128, 1 / 256)
    assert_array_equal(found, naive.softmax_values(integers, -128, 1 / 256).astype(np.float32))


@pytest.mark.parametrize(
    ("steps", "total"),
    [
        ([0, 64, 190], 1),  # 254 of 256 steps
        ([128, 128, 3], 1),  # three steps too many, of three values
        ([128, 128, 4], 260 / 256),  # sigmoids
        ([100, 20], 120 / 256),
        ([0] * 1000, 0),  # each of 1000 equal classes has less than half a step
    ],
)
def test_a_sum_within_a_step_each_becomes_one(steps, total):
    assert after(read_softmax, steps, 0, 1 / 256).sum() == pytest.approx(total, rel=1e-6)
