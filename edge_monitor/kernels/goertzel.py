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
enters a bin twice, so time per bin and frame does not depend on N; block ends of different taps
and bands are staggered. Head and tail are summed with the rounding error carried along [3]_.

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
from edge_monitor.kernels.ring import push

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# Columns of the band table (n_bands, 4): window N; width, twice the number of the band's bins and one
# neighbour on each side (0: unobservable); first row in twiddle and tail; last bin is Nyquist.
WINDOW, WIDTH, FIRST_ROW, NYQUIST = range(4)

# Rows of a band's sums (n_taps, n_bands, rows, max width), and the first of its (K-1) H + 1 densities.
HEAD, CARRY, CENTRE, DENSITY = range(4)

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
            # (test_eeg.py::test_a_long_gap_restarts_the_warm_up).
            state_taps[tap, COUNT] = 0
            state_taps[tap, HELD] = 0
        else:
            if state_taps[tap, COUNT] >= length:
                state_taps[tap, HELD] -= int(state_ring[slot, n_taps + tap])
            state_taps[tap, COUNT] += 1
            state_taps[tap, HELD] += int(state_row[n_taps + tap])
    push(state_row, frame, state_ring)


@kernel("void(float64, int64, int64, int64, int64, float64[:, ::1], float64[:, :, :, ::1])")
def accumulate(
    x: float, row: int, tap: int, band: int, width: int, twiddle: FloatArray, state_sums: FloatArray
) -> None:
    """Add ``x`` times a row of ``twiddle`` to a band's head, the rounding errors to its carry.

    Plain sums miss D4's bound where a weak bin sits beside a strong tone
    (test_eeg.py::test_bound_holds_beside_a_strong_tone).
    """
    for j in range(width):
        term = x * twiddle[row, j]
        old = state_sums[tap, band, HEAD, j]
        new = old + term
        part = new - old
        state_sums[tap, band, CARRY, j] += (old - (new - part)) + (term - part)
        state_sums[tap, band, HEAD, j] = new


@kernel(
    "void(float64[:, ::1], int64, int64, int64, int64[:, ::1], float64[:, ::1], "
    "float64[:, :, :, ::1], float64[:, :, ::1])"
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
    a spike further back would outlive it (test_eeg.py::test_a_huge_spike_leaves_no_residue).
    """
    length = ring.shape[0]
    size, width, first = bands[band, WINDOW], bands[band, WIDTH], bands[band, FIRST_ROW]
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
    for row in range(first + size - 1, first - 1, -1):
        accumulate(ring[slot, tap] - centre, row, tap, band, width, twiddle, state_sums)
        for j in range(width):
            state_tail[tap, row, j] = state_sums[tap, band, HEAD, j] + state_sums[tap, band, CARRY, j]
        slot = slot - 1 if slot > 0 else length - 1
    for j in range(width):
        state_sums[tap, band, HEAD, j] = 0.0
        state_sums[tap, band, CARRY, j] = 0.0
    state_sums[tap, band, CENTRE, 0] = centre


@kernel(
    "void(int64, int64, int64, int64, int64[:, ::1], float64[:, ::1], "
    "float64[:, :, ::1], float64[:, :, :, ::1])"
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
    """Write the one-sided density of the window that starts at row ``row`` of the tail into row ``slot``.

    ``|S_k / 2 - (w^p S_(k-1) + w^-p S_(k+1)) / 4|^2 2 / sum(hann^2)`` with S = tail + head, real parts in
    the first half of a row; ``sum(hann^2)`` is 3 N / 8.
    """
    n = bands[band, WIDTH] // 2
    cos, sin = twiddle[row, twiddle.shape[1] - 2], twiddle[row, twiddle.shape[1] - 1]
    scale = 1.0 / (3 * bands[band, WINDOW])
    low_re, low_im, mid_re, mid_im = 0.0, 0.0, 0.0, 0.0
    for j in range(n):
        high_re = tail[tap, row, j] + state_sums[tap, band, HEAD, j]
        high_im = tail[tap, row, n + j] + state_sums[tap, band, HEAD, n + j]
        high_re += state_sums[tap, band, CARRY, j]
        high_im += state_sums[tap, band, CARRY, n + j]
        if j >= 2:
            re = 2.0 * mid_re - cos * (low_re + high_re) - sin * (low_im - high_im)
            im = 2.0 * mid_im - cos * (low_im + high_im) + sin * (low_re - high_re)
            state_sums[tap, band, slot, j - 2] = scale * (re * re + im * im)
        low_re, low_im, mid_re, mid_im = mid_re, mid_im, high_re, high_im
    if bands[band, NYQUIST]:
        state_sums[tap, band, slot, n - 3] *= 0.5  # the other bins stand for their mirror image too


@kernel(
    "void(float64[::1], boolean[::1], int64, int64, int64[:, ::1], float64[:, ::1], float64[::1], "
    "int64[:, ::1], float64[:, ::1], float64[:, :, :, ::1], float64[:, :, ::1], float64[:, ::1])"
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
) -> None:
    """Advance all taps and bands by one frame.

    ``samples`` (n_taps,), ``good`` (n_taps,); ``frame`` counts calls from 0; ``segments`` is Welch's K.
    ``bands`` (n_bands, 4) and ``twiddle`` (sum of N, W + 2), W the largest width, come from
    `eeg.BandBank`. The states start as zeros but for every tap's GAP, which starts at `GAP_LIMIT`:
    ``state_row`` (2 n_taps,), ``state_taps`` (n_taps, 3), ``state_ring`` (largest N, 2 n_taps),
    ``state_sums`` (n_taps, n_bands, DENSITY + (K-1) H + 1 of the largest N, W), ``state_tail``
    (n_taps, sum of N, W). ``out_power`` (n_taps, n_bands): sum of density / N, NaN until
    N + (K-1) H samples are in.
    """
    hold(samples, good, frame, state_row, state_taps, state_ring)
    n_taps = samples.size
    for band in range(bands.shape[0]):
        size, width, first = bands[band, WINDOW], bands[band, WIDTH], bands[band, FIRST_ROW]
        hop = size // 2
        span = (segments - 1) * hop
        slot = DENSITY + frame % (span + 1)
        stagger = max(size // n_taps, 1)
        position = (frame + band) % size
        for tap in range(n_taps):
            position += stagger
            if position >= size:
                position -= size
            out_power[tap, band] = math.nan
            if position == size - 1:
                end_block(state_ring, frame, tap, band, bands, twiddle, state_sums, state_tail)
            else:
                x = state_row[tap] - state_sums[tap, band, CENTRE, 0]
                accumulate(x, first + position, tap, band, width, twiddle, state_sums)
            if width == 0 or state_taps[tap, COUNT] < size:
                continue

            row = first if position == size - 1 else first + position + 1
            hann_density(row, tap, band, slot, bands, twiddle, state_tail, state_sums)
            if state_taps[tap, COUNT] < size + span:
                continue

            total = 0.0
            for m in range(segments):
                past = DENSITY + (frame - m * hop) % (span + 1)
                for j in range(width // 2 - 2):
                    total += state_sums[tap, band, past, j]
            out_power[tap, band] = total / (segments * size)


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
