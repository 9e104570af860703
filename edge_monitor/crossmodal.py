"""Consistency of the temporal and the spatial view (design D9)."""

from __future__ import annotations

import math

import numpy as np

from edge_monitor.errors import InputError
from edge_monitor.kernels import consistency as kernel
from edge_monitor.kernels.consistency import DELAY, HOP, SEGMENT
from edge_monitor.region_map import CrossmodalNull
from edge_monitor.reports import Consistency
from edge_monitor.types import FloatArray

GAMMA_FLOOR = 1e-12
"""Added to gamma power before the logarithm: a tap that is silent is no outlier of hundreds of nats."""


class ConsistencyTracker:
    """Keeps the last frames of both views and correlates them.

    A term is valid while every sample of its window is; coherence is computed every 16th frame and
    held in between, unless an invalid score comes in. With ``null.coherence_bias`` 0 it is the raw
    coherence, from which calibration learns the bias.

    Parameters
    ----------
    null : CrossmodalNull
        What clean data gives; what is an error.
    window : int
        Frames, a multiple of 16 and at least 64: a coherence needs more than one segment.

    Raises
    ------
    InputError
        Another window, or a bias outside 0 ... 1.
    """

    def __init__(self, null: CrossmodalNull, window: int = 128) -> None:
        if window < 2 * SEGMENT or window % HOP:
            raise InputError("window", f"{window} frames is no multiple of {HOP} from {2 * SEGMENT} on")
        if not 0.0 <= null.coherence_bias < 1.0:
            raise InputError("crossmodal.coherence_bias", f"{null.coherence_bias} is not in [0, 1)")
        self._null = null
        self._sample = np.empty(4)
        self._ring = np.empty((window + DELAY, 4))
        self._series = np.empty((4, window + DELAY))
        self._terms = np.empty(3)
        self._segments = np.empty((2, (window - SEGMENT) // HOP + 1, SEGMENT))
        self._table = _dft_table()
        self.reset()

    def reset(self) -> None:
        """Forget all frames."""
        self._ring.fill(np.nan)
        self._frame = 0
        self._coherence: float | None = None

    def update(
        self,
        gamma: FloatArray,
        temporal_score: float | None,
        spatial_peak: float | None,
        spatial_score: float | None,
    ) -> Consistency:
        """Take in one frame.

        Parameters
        ----------
        gamma : (n_taps,) float64
            Gamma power; NaN while not warm.
        temporal_score, spatial_score : float or None
            The two anomaly scores.
        spatial_peak : float or None
            Largest |theta| |z| of the frame.
        """
        temporal = math.nan if temporal_score is None else temporal_score
        spatial = math.nan if spatial_score is None else spatial_score
        null = self._null
        kernel.update(
            gamma,
            math.nan if spatial_peak is None else spatial_peak,
            temporal,
            spatial,
            GAMMA_FLOOR,
            self._frame,
            null.temporal_error,
            null.spatial_error,
            self._sample,
            self._ring,
            self._series,
            self._terms,
        )
        self._frame += 1
        if self._frame % HOP == 0:
            raw = kernel.coherence(
                self._series[kernel.TEMPORAL, DELAY:],
                self._series[kernel.SPATIAL, DELAY:],
                self._table,
                self._segments,
            )
            self._coherence = _valid((raw - null.coherence_bias) / (1.0 - null.coherence_bias))
        elif not (math.isfinite(temporal) and math.isfinite(spatial)):
            self._coherence = None
        rho, agreement, in_error = map(_valid, self._terms.tolist())
        terms = [term for term in (rho, agreement, self._coherence) if term is not None]
        return Consistency(
            rho=rho,
            agreement=agreement,
            agreement_in_error=in_error,
            coherence=self._coherence,
            score=sum(terms) / len(terms) if terms else None,
            terms=len(terms),
        )


def _valid(value: float) -> float | None:
    return None if math.isnan(value) else value


def _dft_table() -> FloatArray:
    """Periodic Hann times cosine and sine, (2, 16, 32): bins 1 ... 16, Nyquist the last.

    Bin 0 is left out: with the segments' means removed it holds only what the window leaks into it.
    """
    n = np.arange(SEGMENT)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * n / SEGMENT)
    phase = 2 * np.pi * np.outer(np.arange(1, SEGMENT // 2 + 1), n) / SEGMENT
    return np.array([hann * np.cos(phase), hann * np.sin(phase)])
