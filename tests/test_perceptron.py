"""The fault head's network: parity in double precision, wild inputs, and what the answer means."""

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal

from edge_monitor.kernels import perceptron as kernel

N_INPUTS, N_HIDDEN, N_FAULTS = 9, 6, 4
wild = st.one_of(st.floats(-50, 50), st.floats(), st.sampled_from([np.nan, np.inf, -np.inf]))


class Head:
    """The kernel with its state, and the same weights in double precision."""

    def __init__(self, seed=0, n_faults=N_FAULTS):
        rng = np.random.default_rng(seed)
        self.mean, self.scale = rng.normal(size=N_INPUTS), rng.uniform(0.2, 3, N_INPUTS)
        self.hidden = rng.normal(0, 0.5, (N_INPUTS + 1, N_HIDDEN)).astype(np.float32)
        self.output = rng.normal(0, 0.7, (N_HIDDEN + 1, 1 + n_faults)).astype(np.float32)
        self.work = np.zeros(N_INPUTS + N_HIDDEN + 1 + n_faults, np.float32)
        self.logits = np.zeros(1 + n_faults)
        self.history = []

    def __call__(self, inputs):
        self.history.append(np.asarray(inputs, float))
        probability = np.full(self.logits.size - 1, -7.0)
        standard = np.array([self.mean, 1 / self.scale])
        layers = (self.hidden, self.output, self.work, self.logits)
        return kernel.classify(self.history[-1], standard, *layers, probability), probability

    def expected(self):
        weights = self.hidden.astype(float), self.output.astype(float)
        return naive.perceptron(self.history, self.mean, self.scale, *weights)


@given(
    arrays(np.float64, st.tuples(st.integers(1, 12), st.just(N_INPUTS)), elements=wild),
    st.integers(1, 5),
    st.integers(0, 99),
)
def test_lock_step_with_the_definition(frames, n_faults, seed):
    head = Head(seed, n_faults)
    for inputs in frames:
        score, probability = head(inputs)
        expected_score, expected_probability = head.expected()
        assert score == pytest.approx(expected_score, rel=1e-4, abs=1e-3)
        assert_allclose(probability, expected_probability, rtol=2e-3, atol=1e-5)
        assert probability.sum() == pytest.approx(1.0)


def test_an_unknown_input_counts_as_its_clean_mean():
    """0 after standardising, whatever NaN would do to the sums."""
    rng = np.random.default_rng(1)
    for i in range(N_INPUTS):
        inputs = rng.normal(size=N_INPUTS)
        first, second = Head(), Head()
        inputs[i] = np.nan
        unknown = first(inputs)
        inputs[i] = first.mean[i]
        for a, b in zip(unknown, second(inputs), strict=True):
            assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_inputs_are_linear_at_first_and_bounded_at_last():
    inputs = np.array([0.0, 0.1, -0.1, 8.0, -8.0, 1e12, -np.inf, np.inf, np.nan])
    out = np.empty(inputs.size, np.float32)
    standard = np.array([np.zeros(inputs.size), np.ones(inputs.size)])
    kernel.squash(inputs, standard, out)
    assert_allclose(out[:3], inputs[:3], rtol=0.02)
    assert_allclose(out[3:], [4.0, -4.0, 8.0, -8.0, 8.0, 0.0], rtol=1e-4)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (7, 1), (1, 9), (33, 20)])
def test_affine_equals_a_matrix_product(m, n):
    rng = np.random.default_rng(2)
    x, weights = rng.normal(size=m).astype(np.float32), rng.normal(size=(m + 1, n)).astype(np.float32)
    out = np.full(n, np.nan, np.float32)
    kernel.affine(x, weights, out)
    assert_allclose(out, np.append(x.astype(float), 1.0) @ weights.astype(float), rtol=1e-5, atol=1e-5)


def test_the_score_is_of_this_frame_and_the_name_of_the_last_sixteen():
    """One odd frame may alarm at once; what it is takes a moment longer to say."""
    head = Head()
    head.hidden[:] = 0.0
    head.hidden[0, 0] = head.hidden[1, 1] = 1.0
    head.output[:] = 0.0
    head.output[0, 1] = head.output[1, 2] = 3.0
    head.mean[:], head.scale[:] = 0.0, 1.0
    one, two = np.zeros((2, N_INPUTS))
    one[0], two[1] = 5.0, 5.0
    for _ in range(30):
        before = head(one)
    after = head(two)
    assert after[0] == pytest.approx(before[0], rel=1e-3)
    assert (before[1].argmax(), after[1].argmax()) == (0, 0)
    for _ in range(12):
        after = head(two)
    assert after[1].argmax() == 1


def test_wild_frames_leave_nothing_behind_for_good():
    head, clean = Head(), Head()
    rng = np.random.default_rng(3)
    for value in (np.nan, np.inf, -np.inf, 1e300):
        head(np.full(N_INPUTS, value))
    for inputs in rng.normal(size=(240, N_INPUTS)):
        found, expected = head(inputs), clean(inputs)
    assert found[0] == expected[0]
    assert_allclose(found[1], expected[1], rtol=1e-6)


def test_large_logits_do_not_overflow():
    head = Head()
    head.output *= np.float32(1e6)
    score, probability = head(np.full(N_INPUTS, 3.0))
    assert np.isfinite(score)
    assert_array_equal(np.sort(probability), [0.0] * (N_FAULTS - 1) + [1.0])
