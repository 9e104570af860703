"""Product of a vector and a matrix in single precision: parity, and vector code against plain code."""

import naive
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from edge_monitor.kernels.lanes import LANES
from edge_monitor.kernels.product import add_columns, product

SHAPES = [
    (1, 1),
    (4, LANES),
    (7, LANES - 1),
    (9, LANES + 1),
    (30, 3 * LANES),
    (0, LANES),
    (33, 4 * LANES - 1),
]


def operands(m, n):
    rng = np.random.default_rng(m + n)
    return rng.normal(size=m).astype(np.float32), rng.normal(size=(m + 1, n)).astype(np.float32)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_lock_step_with_its_twin(m, n):
    """Without the bias its row need not be there."""
    vector, matrix = operands(m, n)
    out = np.full(n, np.nan, np.float32)
    product(vector, matrix[:m].ravel(), False, out)
    assert_allclose(out, naive.multiply(vector, matrix[:m]), rtol=1e-5, atol=1e-5)
    product(vector, matrix.ravel(), True, out)
    assert_allclose(out, naive.multiply(np.append(vector, 1.0), matrix), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("biased", [False, True])
def test_vector_code_equals_plain_code_to_the_last_bit(m, n, biased):
    vector, matrix = operands(m, n)
    vectors, plain = np.full((2, n + 1), np.float32(-7.0))
    product(vector, matrix.ravel(), biased, vectors[:n])
    add_columns(vector, matrix.ravel(), biased, 0, n, plain[:n])
    assert_array_equal(vectors, plain)
    assert vectors[n] == -7.0  # nothing behind the last column is touched


def test_nan_and_infinity_pass_through():
    vector, matrix = operands(5, LANES)
    vector[0], vector[4] = np.inf, np.nan
    out = np.zeros(LANES, np.float32)
    product(vector, matrix.ravel(), True, out)
    assert np.isnan(out).all()
