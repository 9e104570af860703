"""Scores become evidence: -log p under the calibrated null, over the channel's threshold."""

from __future__ import annotations

import msgspec
import numpy as np

from edge_monitor.errors import MapError
from edge_monitor.kernels import surprise
from edge_monitor.region_map import EvidenceNull
from edge_monitor.reports import CHANNELS, Evidence, Scores

MEAN_OF_8 = 2.0 / (8 + 1)
"""Weight of a new score in an exponentially weighted mean over 8 frames (design section 6)."""
SMOOTHING = np.array(
    [1.0 if channel in {"residual", "shift", "line", "stall", "jump"} else MEAN_OF_8 for channel in CHANNELS]
)
"""Weight of a new score of each channel; those with 1 are smoothed where they are made."""
OVEREXPOSED, OVEREXPOSED_FRAMES = 0.15, 45
"""A picture is overexposed for so many frames from one on that has this share of its regions next to full
scale: clean drives have most of their false events at tunnel exits (design section 6)."""


class EvidenceTracker:
    """Keeps the smoothed scores of all channels.

    Parameters
    ----------
    null : EvidenceNull
        Calibrated null distributions and thresholds; a channel whose threshold is NaN is off.

    Raises
    ------
    MapError
        A null of another number of channels or tail probabilities.
    """

    def __init__(self, null: EvidenceNull) -> None:
        n = len(CHANNELS)
        for name, shape in (("quantiles", (n, null.tail.size)), ("excess", (n,)), ("threshold", (n, 2))):
            found = getattr(null, name).shape
            if found != shape:
                raise MapError(f"evidence.{name}", f"shape {found}, expected {shape}")
        self._null = null
        self._thresholds = tuple(np.ascontiguousarray(null.threshold.T))
        self._scores, self._smooth = np.empty(n), np.empty(n)
        self.reset()

    def reset(self) -> None:
        """Start the smoothing anew, as after a gap in the stream."""
        self._smooth.fill(np.nan)
        self._overexposed = 0

    def update(self, scores: Scores, bright: float | None) -> Evidence:
        """Take in one frame's scores; ``bright``: share of the picture's regions next to full scale."""
        self._overexposed = max(0, self._overexposed - 1)
        if bright is not None and bright >= OVEREXPOSED:
            self._overexposed = OVEREXPOSED_FRAMES
        self._scores[:] = msgspec.structs.astuple(scores)  # None becomes NaN
        null = self._null
        unlikely, ratio = np.empty(self._smooth.size), np.empty(self._smooth.size)
        largest = surprise.update(
            self._scores,
            SMOOTHING,
            null.tail,
            null.quantiles,
            null.excess,
            self._thresholds[self._overexposed > 0],
            self._smooth,
            unlikely,
            ratio,
        )
        return Evidence(self._smooth.copy(), unlikely, ratio, self._overexposed > 0, largest)
