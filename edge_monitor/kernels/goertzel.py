"""Band powers kept up to date frame by frame: a sliding DFT that cannot drift (design D4).

``update`` holds, for every tap and band, the spectrum of the last N samples: Welch's method with a
periodic Hann window and each segment's mean removed, in normalised frequency (cycles per frame).

Method
------
Time is cut into blocks of N samples. With ``w = exp(-2 pi i / N)``, n the position in the block and
c a constant, every bin k has

- ``head_k``, the sum of ``(x_n - c) w^(k n)`` since the block began, and
- ``tail_k[p]``, the same sum over the positions p ... N-1 of the block before, computed backwards
  from the ring of raw samples at the moment that block ended.

The window that ends at position n is the block before from p = n + 1 on, and then the block so far:
its DFT is ``tail_k[p] + head_k`` times ``w^(-k p)``. This is the modulated sliding DFT [1]_ (phases are
absolute, so no rounded coefficient is ever fed back) with the two stacks of sliding-window
aggregation [2]_ in place of subtracting the sample that leaves. Nothing is ever subtracted: a huge
sample leaves no residue behind and rounding errors never get older than two blocks. Each sample
enters a bin twice, so work per bin and frame does not depend on N; block ends of different taps
and bands are staggered. Memory does: the rows of the tail outgrow the processor's nearest cache, so
those that a frame needs are asked for ahead of their use. Head and tail are summed with the rounding
error carried along [3]_.

Hann is 1/2, -1/4, -1/4 over neighbouring bins [4]_, which the common phase turns into
``S_k / 2 - (w^p S_(k-1) + w^-p S_(k+1)) / 4``. A zero in place of bin 0 removes the mean of the segment.
The neighbour above Nyquist is summed like any other bin.

References
----------
.. [1] K. Duda, "Accurate, guaranteed stable, sliding discrete Fourier transform", IEEE Signal
   Processing Magazine 27(6), 2010.
.. [2] K. Tangwongsan, M. Hirzel, S. Schneider, "Low-latency sliding-window aggregation in worst-case
   constant time", DEBS 2017 (the two-stacks algorithm).
.. [3] D. E. Knuth, The Art of Computer Programming 2, section 4.2.2, theorem B (error of a sum).
.. [4] E. Jacobsen, R. Lyons, "The sliding DFT", IEEE Signal Processing Magazine 20(2), 2003.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edge_monitor.kernels._jit import kernel
from edge_monitor.kernels.cache import fetch_row
from edge_monitor.kernels.ring import push

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# Columns of the band table (n_bands, 4): window N; width, twice the number of the band's bins and one
# neighbour on each side (0: unobservable); where its rows begin in twiddle and tail, which are packed:
# N rows of width + 2; last bin is Nyquist.
WINDOW, WIDTH, FIRST, NYQUIST = range(4)

# Rows of a band's sums (n_taps, n_bands, rows, max width), and the first of its (K-1) H + 1 densities.
HEAD, CARRY, CENTRE, SPECTRUM, DENSITY = range(5)

# Columns of the tap state (n_taps, 3): unusable frames in a row; samples since the last restart;
# how many samples still in the ring were held.
GAP, COUNT, HELD = range(3)

GAP_LIMIT = 3
"""Frames in a row that are held; one more restarts the warm-up (design D1)."""


@kernel("void(float64[::1], boolean[::1], int64, float64[::1], int64[:, ::1], float64[:, ::1])")
def hold(
    samples: FloatArray,
    good: NDArray[np.bool_],
    frame: int,
    state_row: FloatArray,
    state_taps: IntArray,
    state_ring: FloatArray,
) -> None:
    """Push one sample per tap; an unusable one is replaced by the last good one (design D1).

    ``state_row`` (2 n_taps,): last good sample of every tap, then 1 where this one was held.
    ``state_ring`` (length, 2 n_taps): such rows. The count of held samples covers the rows since
    the tap's last restart, at most ``length`` of them.
    """
    n_taps = samples.size
    length = state_ring.shape[0]
    slot = frame % length
    for tap in range(n_taps):
        if good[tap] and math.isfinite(samples[tap]):
            state_row[tap] = samples[tap]
            state_row[n_taps + tap] = 0.0
            state_taps[tap, GAP] = 0
        else:
            state_row[n_taps + tap] = 1.0
            state_taps[tap, GAP] += 1
        if state_taps[tap, GAP] > GAP_LIMIT:
            # Old samples stay in the ring: no window reaches back to them before it is full again
            # (test_band_bank.py::test_a_long_gap_restarts_the_warm_up).
            state_taps[tap, COUNT] = 0
            state_taps[tap, HELD] = 0
        else:
            if state_taps[tap, COUNT] >= length:
                state_taps[tap, HELD] -= int(state_ring[slot, n_taps + tap])
            state_taps[tap, COUNT] += 1
            state_taps[tap, HELD] += int(state_row[n_taps + tap])
    push(state_row, frame, state_ring)


@kernel("void(float64, int64, int64, int64, int64, float64[::1], float64[:, :, :, ::1])")
def accumulate(
    x: float, row: int, tap: int, band: int, width: int, twiddle: FloatArray, state_sums: FloatArray
) -> None:
    """Add ``x`` times the row of ``twiddle`` from ``row`` on to a band's head, rounding errors to its carry.

    Plain sums miss D4's bound where a weak bin sits beside a strong tone
    (test_band_bank.py::test_bound_holds_beside_a_strong_tone).
    """
    turns = twiddle[row : row + width]
    head, carry = state_sums[tap, band, HEAD], state_sums[tap, band, CARRY]
    for j in range(width):
        term = x * turns[j]
        old = head[j]
        new = old + term
        part = new - old
        carry[j] += (old - (new - part)) + (term - part)
        head[j] = new


@kernel("void(int64, int64, int64, int64, float64[:, :, :, ::1], float64[:, ::1])")
def keep_sums(row: int, tap: int, band: int, width: int, sums: FloatArray, state_tail: FloatArray) -> None:
    """Write a band's head, rounding errors included, into the row of the tail from ``row`` on."""
    head, carry = sums[tap, band, HEAD], sums[tap, band, CARRY]
    tail = state_tail[tap, row : row + width]
    for j in range(width):
        tail[j] = head[j] + carry[j]


@kernel(
    "void(float64[:, ::1], int64, int64, int64, int64[:, ::1], float64[::1], "
    "float64[:, :, :, ::1], float64[:, ::1])"
)
def end_block(
    ring: FloatArray,
    frame: int,
    tap: int,
    band: int,
    bands: IntArray,
    twiddle: FloatArray,
    state_sums: FloatArray,
    state_tail: FloatArray,
) -> None:
    """Turn the last N samples into the tail, and begin an empty head, about a new constant c.

    The mean of the block as c keeps an offset out of the sums. It is limited to the size of the last
    sample, the only one that is in every window until the next block ends: the mean of a block with
    a spike further back would outlive it (test_band_bank.py::test_a_huge_spike_leaves_no_residue).
    """
    length = ring.shape[0]
    size, width, first = bands[band, WINDOW], bands[band, WIDTH], bands[band, FIRST]
    newest = frame % length
    total, slot = 0.0, newest
    for _ in range(size):
        total += ring[slot, tap]
        slot = slot - 1 if slot > 0 else length - 1
    limit = abs(ring[newest, tap])
    centre = min(max(total / size, -limit), limit)

    for j in range(width):
        state_sums[tap, band, HEAD, j] = 0.0
        state_sums[tap, band, CARRY, j] = 0.0
    slot = newest
    for position in range(size - 1, -1, -1):
        row = first + position * (width + 2)
        accumulate(ring[slot, tap] - centre, row, tap, band, width, twiddle, state_sums)
        keep_sums(row, tap, band, width, state_sums, state_tail)
        slot = slot - 1 if slot > 0 else length - 1
    for j in range(width):
        state_sums[tap, band, HEAD, j] = 0.0
        state_sums[tap, band, CARRY, j] = 0.0
    state_sums[tap, band, CENTRE, 0] = centre


@kernel(
    "void(int64, int64, int64, int64, int64[:, ::1], float64[::1], float64[:, ::1], float64[:, :, :, ::1])"
)
def hann_density(
    row: int,
    tap: int,
    band: int,
    slot: int,
    bands: IntArray,
    twiddle: FloatArray,
    tail: FloatArray,
    state_sums: FloatArray,
) -> None:
    """Write the one-sided density of the window whose row of the tail begins at ``row`` into row ``slot``.

    ``|S_k / 2 - (w^p S_(k-1) + w^-p S_(k+1)) / 4|^2 2 / sum(hann^2)`` with S = tail + head, real parts in
    the first half of a row; ``sum(hann^2)`` is 3 N / 8.
    """
    width = bands[band, WIDTH]
    n = width // 2
    cos, sin = twiddle[row + width], twiddle[row + width + 1]
    scale = 1.0 / (3 * bands[band, WINDOW])
    before = tail[tap, row : row + width]
    head, carry = state_sums[tap, band, HEAD], state_sums[tap, band, CARRY]
    spectrum, density = state_sums[tap, band, SPECTRUM], state_sums[tap, band, slot]
    for j in range(width):
        spectrum[j] = (before[j] + head[j]) + carry[j]
    real, imaginary = spectrum[:n], spectrum[n:width]
    for k in range(n - 2):
        re = 2.0 * real[k + 1] - cos * (real[k] + real[k + 2]) - sin * (imaginary[k] - imaginary[k + 2])
        im = 2.0 * imaginary[k + 1] - cos * (imaginary[k] + imaginary[k + 2]) + sin * (real[k] - real[k + 2])
        density[k] = scale * (re * re + im * im)
    if bands[band, NYQUIST]:
        density[n - 3] *= 0.5  # the other bins stand for their mirror image too


@kernel(
    "int64(float64[::1], boolean[::1], int64, int64, int64[:, ::1], float64[::1], float64[::1], "
    "int64[:, ::1], float64[:, ::1], float64[:, :, :, ::1], float64[:, ::1], float64[:, ::1])"
)
def update(
    samples: FloatArray,
    good: NDArray[np.bool_],
    frame: int,
    segments: int,
    bands: IntArray,
    twiddle: FloatArray,
    state_row: FloatArray,
    state_taps: IntArray,
    state_ring: FloatArray,
    state_sums: FloatArray,
    state_tail: FloatArray,
    out_power: FloatArray,
) -> int:
    """Advance all taps and bands by one frame; return the fewest samples that a tap has in.

    ``samples`` (n_taps,), ``good`` (n_taps,); ``frame`` counts calls from 0; ``segments`` is Welch's K.
    ``bands`` (n_bands, 4) and ``twiddle`` (sum of N (width + 2),) come from `band_bank.BandBank`; W is
    the largest width. The states start as zeros but for every tap's GAP, which starts at `GAP_LIMIT`:
    ``state_row`` (2 n_taps,), ``state_taps`` (n_taps, 3), ``state_ring`` (largest N, 2 n_taps),
    ``state_sums`` (n_taps, n_bands, DENSITY + (K-1) H + 1 of the largest N, W), ``state_tail``
    (n_taps, twiddle's size). ``out_power`` (n_taps, at most n_bands): sum of density / N of the
    first bands, NaN until N + (K-1) H samples are in.
    """
    hold(samples, good, frame, state_row, state_taps, state_ring)
    n_taps = samples.size
    for band in range(bands.shape[0]):
        size, width, first = bands[band, WINDOW], bands[band, WIDTH], bands[band, FIRST]
        stride = width + 2
        hop = size // 2
        span = (segments - 1) * hop
        slot = DENSITY + frame % (span + 1)
        stagger = max(size // n_taps, 1)
        position = (frame + band) % size
        # Each tap's row was last touched a window ago: ask for all of them before the first is needed.
        for tap in range(n_taps):
            row = first + (position + (tap + 1) * stagger + 1) % size * stride
            fetch_row(state_tail[tap], row, width)
        for tap in range(n_taps):
            position += stagger
            if position >= size:
                position -= size
            if band < out_power.shape[1]:
                out_power[tap, band] = math.nan
            if position == size - 1:
                end_block(state_ring, frame, tap, band, bands, twiddle, state_sums, state_tail)
            else:
                row = first + position * stride
                x = state_row[tap] - state_sums[tap, band, CENTRE, 0]
                accumulate(x, row, tap, band, width, twiddle, state_sums)
            if width == 0 or state_taps[tap, COUNT] < size:
                continue

            row = first if position == size - 1 else first + (position + 1) * stride
            hann_density(row, tap, band, slot, bands, twiddle, state_tail, state_sums)
            if band >= out_power.shape[1] or state_taps[tap, COUNT] < size + span:
                continue

            total = 0.0
            for m in range(segments):
                past = DENSITY + (frame - m * hop) % (span + 1)
                for j in range(width // 2 - 2):
                    total += state_sums[tap, band, past, j]
            out_power[tap, band] = total / (segments * size)
    fewest = state_taps[0, COUNT]
    for tap in range(1, n_taps):
        fewest = min(fewest, state_taps[tap, COUNT])
    return int(fewest)


@kernel(
    "float64(float64[:, ::1], float64[:, ::1], float64[:, ::1], float64[:, ::1], int64, "
    "float64[:, ::1], int64[::1])"
)
def standardise(
    power: FloatArray,
    floor: FloatArray,
    mean: FloatArray,
    scale: FloatArray,
    idle: int,
    out_z: FloatArray,
    out_state: IntArray,
) -> float:
    """Compare band powers with the clean baseline, all (n_taps, n_bands); return the largest size of a z.

    ``z = (log(power + floor) - mean) / scale``, NaN where power or baseline is NaN. ``out_state``
    (n_taps,): the band with the largest z, ``idle`` when none exceeds 1, -1 until all bands with a
    baseline have a power (design D6). The result is NaN while there is no z at all.
    """
    score = math.nan
    for tap in range(power.shape[0]):
        best, best_z = idle, 1.0
        usable, warm = 0, 0
        for band in range(power.shape[1]):
            z = math.nan
            if not math.isnan(scale[tap, band]):
                usable += 1
                z = (math.log(power[tap, band] + floor[tap, band]) - mean[tap, band]) / scale[tap, band]
            out_z[tap, band] = z
            if math.isnan(z):
                continue
            warm += 1
            if z > best_z:
                best, best_z = band, z
            if not abs(z) <= score:  # also true while score is NaN
                score = abs(z)
        out_state[tap] = best if warm == usable > 0 else -1
    return score
