"""Kernels of the functional residual against their slow twins."""

import naive
import numpy as np
from numpy.testing import assert_allclose

from edge_monitor.kernels import residual as kernel


def test_multiply_equals_its_twin():
    rng = np.random.default_rng(0)
    for m, n in ((1, 1), (1, 7), (9, 1), (31, 40)):
        vector, matrix = rng.normal(size=m).astype(np.float32), rng.normal(size=(m, n)).astype(np.float32)
        out = np.full(n, np.nan, np.float32)
        matrices = np.append(np.full(3, np.nan, np.float32), matrix)
        kernel.multiply(np.append(vector, np.float32(np.nan)), m, matrices, 3, n, out)
        assert_allclose(out, naive.multiply(vector, matrix), rtol=1e-5, atol=1e-5)


def test_bounds_equal_their_twin():
    """Whatever is beyond a bound predicts with the bound, in both of its parts; NaN stays NaN."""
    rng = np.random.default_rng(20)
    for outside in (0.0, 2.0):
        logs, bounds = rng.uniform(-1, 1, 12), np.empty((2, 12))
        bounds[kernel.LOW], bounds[kernel.HIGH] = np.sort(rng.uniform(-1, 1, (2, 12)), axis=0)
        bounds[kernel.LOW] -= 2.0 - outside
        bounds[kernel.HIGH] += 2.0 - outside
        logs[5] = np.nan
        out = np.full(15, -7.0, np.float32)
        kernel.bound(np.exp(logs), logs, bounds, 3, 9, out)
        expected = naive.predictors(np.exp(logs[3:9]), bounds[kernel.LOW, 3:9], bounds[kernel.HIGH, 3:9])
        assert_allclose(out[:13], expected, rtol=1e-6)
        assert (out[13:] == -7.0).all()


def test_smoothing_equals_its_twin():
    rng = np.random.default_rng(21)
    history, state = rng.normal(0, 15, (30, 4)), np.zeros((3, 7))
    for logs in history:
        whole = np.append(np.full(3, np.nan), logs)
        kernel.smoothen(whole, np.zeros(4, np.float32), 3, 4, kernel.SMOOTHING, state, kernel.SMOOTH)
    assert_allclose(state[kernel.SMOOTH, 3:], naive.ewma_from_zero(np.clip(history, -20.0, 20.0)))
    one, logs = np.ones((3, 4)), np.array([np.nan, 1.0, -1e30, 1e30])
    kernel.smoothen(logs, np.zeros(4, np.float32), 0, 4, 0.5, one, kernel.SLOW_MEAN)
    assert_allclose(one, [[1.0] * 4, [1.0] * 4, [1.0, 1.0, -9.5, 10.5]])
