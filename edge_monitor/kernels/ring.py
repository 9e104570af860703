"""A ring of rows: the newest row replaces the oldest one, and nothing is ever shifted.

Row number ``frame`` (0, 1, 2, ...) lives in slot ``frame % length``; the caller counts the frames.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_monitor.kernels._jit import kernel


@kernel("void(float64[::1], int64, float64[:, ::1])")
def push(row: NDArray[np.float64], frame: int, state_ring: NDArray[np.float64]) -> None:
    """Write ``row`` (n,) as row number ``frame`` of ``state_ring`` (length, n)."""
    slot = frame % state_ring.shape[0]
    for column in range(row.size):
        state_ring[slot, column] = row[column]


@kernel("void(float64[:, ::1], int64, int64, float64[::1])")
def latest(ring: NDArray[np.float64], frame: int, column: int, out_samples: NDArray[np.float64]) -> None:
    """Copy one column of the last rows of ``ring`` (length, n), oldest first.

    The last entry of ``out_samples`` (count,), count <= length, is row number ``frame``. Rows that
    were never pushed are what the ring was filled with.
    """
    length = ring.shape[0]
    slot = (frame - out_samples.size + 1) % length
    for i in range(out_samples.size):
        out_samples[i] = ring[slot, column]
        slot += 1
        if slot == length:
            slot = 0
