"""Which DFT bins of which window make up each band of NN-EEG (design D5)."""

from __future__ import annotations

import math

import msgspec
import numpy as np

from edge_monitor.errors import InputError
from edge_monitor.kernels import line
from edge_monitor.types import BoolArray, FloatArray, IntArray

EDGES_HZ = ((0.5, 4.0), (4.0, 8.0), (8.0, 13.0), (13.0, 30.0), (30.0, 100.0))
"""The EEG's bands at 200 frames/s (design D5)."""

REFERENCE_RATE_HZ = 200.0
WINDOWS = (256, 256, 128, 64, 32)
"""Frames each band looks back on, `BANDS` order (design D5)."""

LINE_FIRST = 2
"""First bin in which lines are sought: below, driving itself has lines."""
LINE_BINS = line.WINDOW // 2 + 1 - LINE_FIRST
LINE = len(WINDOWS)
"""Place of that window behind those of the bands."""


class BandPlan(msgspec.Struct, frozen=True, eq=False):
    """Which DFT bins of which window make up each band (design D5).

    ``edges_hz`` (n_bands, 2) float64: lower edge (in the band) and upper edge (in it only at
    Nyquist, in the top band). ``bins`` (n_bands, 2) int64: first bin and the one after the last; bin
    k of a window of N frames lies at ``k frame_rate_hz / N``. A band without bins is unobservable.
    """

    frame_rate_hz: float
    windows: tuple[int, ...]
    edges_hz: FloatArray
    bins: IntArray

    @classmethod
    def make(cls, scale_mode: str, frame_rate_hz: float) -> BandPlan:
        """Plan the bands for a frame rate.

        Parameters
        ----------
        scale_mode : str
            "nyquist" scales all edges by ``frame_rate_hz`` / 200, so that gamma ends at Nyquist;
            "hz" keeps the EEG's own edges and leaves bands beyond Nyquist unobservable.
        frame_rate_hz : float
            Frames per second.

        Raises
        ------
        InputError
            Unknown scale, or a rate that is not a positive number.
        """
        if not (math.isfinite(frame_rate_hz) and frame_rate_hz > 0):
            raise InputError("frame rate", f"{frame_rate_hz} Hz is not a positive number")
        if scale_mode not in ("nyquist", "hz"):
            raise InputError("bands.scale", f"{scale_mode!r} is neither 'nyquist' nor 'hz'")
        rate_of_edges = REFERENCE_RATE_HZ if scale_mode == "nyquist" else frame_rate_hz
        edges = np.array(EDGES_HZ) / rate_of_edges  # cycles per frame
        windows = np.array(WINDOWS)
        # An edge that falls on a bin must not slip to its neighbour by a rounding error.
        bins = np.ceil(edges * windows[:, None] - 1e-9).astype(np.int64)
        nyquist = windows // 2
        if bins[-1, 1] == nyquist[-1]:
            bins[-1, 1] += 1
        bins = np.clip(bins, 1, nyquist[:, None] + 1)  # bin 0 is the mean, which is removed
        return cls(float(frame_rate_hz), WINDOWS, edges * frame_rate_hz, bins)

    def with_line(self) -> BandPlan:
        """Return the same bands, and behind them the window of `line.WINDOW` frames up to Nyquist."""
        edges = np.array([[LINE_FIRST / line.WINDOW, 0.5]]) * self.frame_rate_hz
        bins = np.array([[LINE_FIRST, line.WINDOW // 2 + 1]])
        return BandPlan(
            self.frame_rate_hz,
            (*self.windows, line.WINDOW),
            np.vstack([self.edges_hz, edges]),
            np.vstack([self.bins, bins]),
        )

    @property
    def observable(self) -> BoolArray:
        """(n_bands,) bool: the band has bins at this frame rate."""
        return self.bins[:, 1] > self.bins[:, 0]
