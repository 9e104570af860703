"""Each kernel of the sliding spectrum against its definition; the whole of it is in test_band_bank.py."""

import math
import os

import naive
import numba
import numpy as np
import pytest
from scipy.signal import welch

from edge_monitor.band_bank import BandBank
from edge_monitor.band_plan import BandPlan
from edge_monitor.kernels import goertzel

JIT = os.environ.get("NUMBA_DISABLE_JIT", "0") == "0"


def small_bank(window, bins):
    """A bank of two taps with one band."""
    plan = BandPlan(1.0, (window,), np.zeros((1, 2)), np.array([bins]))
    return BandBank(plan, 2)


@pytest.mark.parametrize("length", [1, 5, 16])
def test_hold_is_the_rule_of_d1(length):
    rng = np.random.default_rng(length)
    n_taps = 3
    row, ring = np.zeros(2 * n_taps), np.zeros((length, 2 * n_taps))
    taps = np.zeros((n_taps, 3), np.int64)
    taps[:, goertzel.GAP] = goertzel.GAP_LIMIT
    twin = naive.Bands((length,), [[]], n_taps, 1)
    for frame in range(600):
        samples = rng.choice([1.0, np.nan, np.inf, -np.inf], n_taps, p=[0.7, 0.1, 0.1, 0.1]) * rng.normal()
        good = rng.random(n_taps) < 0.8
        goertzel.hold(samples, good, frame, row, taps, ring)
        twin.step(samples, good, 1)
        assert taps[:, goertzel.COUNT].tolist() == [len(h) for h in twin.history]
        assert taps[:, goertzel.HELD].tolist() == twin.held
        for tap, history in enumerate(twin.history):
            if history:
                assert (row[tap], row[n_taps + tap]) == history[-1]
        np.testing.assert_array_equal(ring[frame % length], row)


def test_accumulate_loses_no_rounding_error():
    rng = np.random.default_rng(1)
    width = 5
    twiddle = rng.uniform(-1, 1, (8, width + 2))
    sums = np.zeros((2, 2, goertzel.DENSITY + 1, width))
    terms = []
    for _ in range(300):
        x, row = rng.normal() * 10.0 ** rng.integers(-8, 8), int(rng.integers(8))
        goertzel.accumulate(x, row * (width + 2), 1, 0, width, twiddle.ravel(), sums)
        terms.append(x * twiddle[row, :width])
        exact = [math.fsum(column) for column in np.array(terms).T]
        total = sums[1, 0, goertzel.HEAD] + sums[1, 0, goertzel.CARRY]
        np.testing.assert_allclose(total, exact, rtol=4e-16, atol=1e-20)
    assert not sums[0].any()


def test_kept_sums_are_heads_with_their_carries():
    sums, tail = np.zeros((2, 2, goertzel.DENSITY + 1, 5)), np.full((2, 20), 7.0)
    sums[1, 0, goertzel.HEAD], sums[1, 0, goertzel.CARRY] = np.arange(5.0), 0.25
    goertzel.keep_sums(9, 1, 0, 4, sums, tail)
    assert tail[1, 9:13].tolist() == [0.25, 1.25, 2.25, 3.25]
    assert (np.delete(tail.ravel(), np.arange(29, 33)) == 7.0).all()


@pytest.mark.parametrize("case", ["noise", "offset", "spike at the end", "spike before the end"])
def test_end_block_sums_every_suffix_about_a_constant_of_the_window(case):
    window, first, end = 16, 3, 6
    bank = small_bank(window, (first, end))
    rng = np.random.default_rng(2)
    samples = rng.normal(size=window) + (1e3 if case == "offset" else 0.0)
    if "spike" in case:
        samples[-1 if case == "spike at the end" else -2] = 1e30
    for frame, x in enumerate(samples, 100):
        bank._ring[frame % window, 1] = x
    bank.sums[1, 0, :2] = 7.0  # what the block before left behind
    goertzel.end_block(bank._ring, 115, 1, 0, bank._bands, bank._twiddle, bank.sums, bank._tail)

    centre = bank.sums[1, 0, goertzel.CENTRE, 0]
    assert centre == pytest.approx(np.clip(samples.mean(), -abs(samples[-1]), abs(samples[-1])))
    assert not bank.sums[1, 0, : goertzel.CENTRE].any()
    for p in range(window):
        n = np.arange(p, window)
        expected = [
            ((samples[n] - centre) * np.exp(-2j * np.pi * k * n / window)).sum()
            for k in range(first - 1, end + 1)
        ]
        tolerance = 1e-14 * np.abs(samples[n] - centre).sum()
        kept = bank._tail[1].reshape(window, -1)[p, :-2]
        np.testing.assert_allclose(
            kept, np.concatenate([np.real(expected), np.imag(expected)]), rtol=0, atol=tolerance
        )


@pytest.mark.parametrize(("window", "first", "end"), [(16, 1, 3), (16, 6, 9), (8, 1, 5), (32, 4, 9)])
def test_hann_density_is_welch_from_any_start(window, first, end):
    bank = small_bank(window, (first, end))
    rng = np.random.default_rng(window)
    samples = rng.normal(size=window)
    expected = welch(samples, nperseg=window)[1][first:end]
    k = np.arange(first - 1, end + 1)
    for p in range(window):
        at = (p + np.arange(window)) % window  # the window starts at position p of its block
        sums = np.array([(samples * np.exp(-2j * np.pi * at * bin_ / window)).sum() for bin_ in k]) * (k > 0)
        split = rng.normal(size=(2, 2 * k.size))
        bank.sums[1, 0, goertzel.HEAD, : 2 * k.size], bank.sums[1, 0, goertzel.CARRY, : 2 * k.size] = split
        row = p * (2 * k.size + 2)
        bank._tail[1, row : row + 2 * k.size] = np.concatenate([sums.real, sums.imag]) - split.sum(axis=0)
        goertzel.hann_density(row, 1, 0, goertzel.DENSITY, bank._bands, bank._twiddle, bank._tail, bank.sums)
        np.testing.assert_allclose(
            bank.sums[1, 0, goertzel.DENSITY, : end - first], expected, rtol=1e-10, atol=1e-12
        )


def test_standardise_is_the_definition_of_d6():
    rng = np.random.default_rng(3)
    names = set()
    for _ in range(300):
        shape = (4, 5)
        power = np.exp(rng.normal(size=shape)) * rng.choice([1.0, np.nan], shape, p=[0.9, 0.1])
        power[0] = rng.choice([0.0, 1e30], 5)
        floor, mean = np.full(shape, 1e-9), rng.normal(0, 0.3, shape)
        scale = rng.uniform(0.5, 3, shape) * rng.choice([1.0, np.nan], shape, p=[0.7, 0.3])
        scale[3] = np.nan
        z, state = np.empty(shape), np.empty(4, np.int64)
        score = goertzel.standardise(power, floor, mean, scale, 2, z, state)
        expected_z, expected_state, expected_score = naive.clean_distance(power, floor, mean, scale)
        np.testing.assert_allclose(z, expected_z, rtol=1e-13, atol=1e-13)
        assert state.tolist() == expected_state
        np.testing.assert_allclose(score, expected_score, rtol=1e-13)
        names |= set(state.tolist())
    assert names == {-1, 0, 1, 2, 3, 4}


@pytest.mark.slow
@pytest.mark.skipif(not JIT, reason="a hundred million frames need machine code")
def test_bound_holds_after_a_hundred_million_frames():
    update = goertzel.update

    @numba.njit
    def run(stream, good, start, stop, bands, twiddle, row, taps, ring, sums, tail, power):
        for frame in range(start, stop):
            update(
                stream[frame % stream.shape[0]],
                good,
                frame,
                1,
                bands,
                twiddle,
                row,
                taps,
                ring,
                sums,
                tail,
                power,
            )

    stream = 1e3 + np.random.default_rng(4).normal(size=(9973, 1))
    bank = BandBank(BandPlan.make("nyquist", 30.0), 1)
    state = (bank._bands, bank._twiddle, bank._row, bank.taps, bank._ring, bank.sums, bank._tail)
    frame = 0
    for stop in (10**6, 10**7, 10**8 - 77, 10**8):
        run(stream, np.ones(1, bool), frame, stop, *state, np.empty((1, 5)))
        frame = bank._frame = stop
        for band, (window, (first, end)) in enumerate(zip(bank._plan.windows, bank._plan.bins, strict=True)):
            samples = stream[(frame - window + np.arange(window)) % len(stream), 0]
            expected = welch(samples, nperseg=window)[1][first:end]
            bound = 1e-9 * (expected + (samples**2).mean() / 1e12)
            assert (np.abs(bank.psd(band)[0] - expected) <= bound).all(), (stop, band)
