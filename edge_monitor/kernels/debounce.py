"""Fault counters over a whole recording: when a flag of evidence would be confirmed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_monitor.kernels._jit import kernel

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

LAST, FIRST = 127, -128


@kernel("void(float64[:, ::1], float64, int64[:, ::1], boolean[::1])")
def confirmations(ratio: FloatArray, passed: float, steps: IntArray, out: BoolArray) -> None:
    """Mark the frames in which any channel's flag becomes confirmed, by the rules of `flags.FlagTracker`.

    Parameters
    ----------
    ratio : (n, n_channels) float64
        Surprise over the threshold; NaN teaches nothing.
    passed : float
        A ratio below this passes the test; from 1 on it is failed, and nothing is learned in between.
    steps : (n_channels, 2) int64
        Steps of the fault counter up and down.
    out : (n,) bool
    """
    out[:] = False
    for c in range(ratio.shape[1]):
        counter, confirmed = FIRST, False
        for t in range(ratio.shape[0]):
            if ratio[t, c] >= 1.0:
                counter = min(LAST, max(counter, 0) + steps[c, 0])
                if counter == LAST and not confirmed:
                    confirmed = True
                    out[t] = True
            elif ratio[t, c] < passed:
                counter = max(FIRST, counter - steps[c, 1])
                if counter == FIRST:
                    confirmed = False
