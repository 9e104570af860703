"""Fault head: tells faults from clean driving and from one another (design section 6).

It was trained by a drill on the workstation. It sees what the other stages found, in this order: the
smoothed residual of every feature, the input's shift feature by feature, z of every tap's band powers and
spectral line, every tap's structure functions, and the scene's stall, the answer's entropy and confidence.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np

from edge_monitor.errors import MapError
from edge_monitor.kernels import perceptron as kernel
from edge_monitor.kernels.structure import LAGS
from edge_monitor.region_map import FaultHead
from edge_monitor.reports import BandPowers, Connectivity, FaultGuess, Vitals
from edge_monitor.types import BANDS, FloatArray, TapSpec

LEAST_CONFIDENCE = 0.5
"""A fault less probable than this is not named."""


def n_inputs(taps: tuple[TapSpec, ...]) -> int:
    """Count the inputs of the head."""
    of_tap = len(BANDS) + 1 + len(LAGS)
    return sum(tap.n_features for tap in taps) + taps[0].n_features + len(taps) * of_tap + 3


_Parts: TypeAlias = tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray, float, float, float]


def _parts(connectivity: Connectivity, bands: BandPowers, vitals: Vitals) -> _Parts:
    stall, entropy, confidence = vitals.stall, vitals.entropy, vitals.confidence
    return (
        connectivity.departure,
        connectivity.shift,
        bands.z,
        bands.line,
        bands.structure,
        math.nan if stall is None else stall,
        math.nan if entropy is None else entropy,
        math.nan if confidence is None else confidence,
    )


def gather(connectivity: Connectivity, bands: BandPowers, vitals: Vitals, out: FloatArray) -> None:
    """Put together the inputs of one frame, ``out`` (n_inputs,); NaN where not known."""
    kernel.gather(*_parts(connectivity, bands, vitals), out)


class FaultHeadTracker:
    """Runs the head on every frame.

    Parameters
    ----------
    head : FaultHead or None
        Without one there is never a guess.
    taps : tuple[TapSpec, ...]
        The network's input, then the tapped tensors.

    Raises
    ------
    MapError
        A head for other taps.
    """

    def __init__(self, head: FaultHead | None, taps: tuple[TapSpec, ...]) -> None:
        self._head = head
        if head is None:
            return
        n, n_hidden, n_faults = n_inputs(taps), head.hidden.shape[-1], len(head.names)
        for name, shape in (
            ("mean", (n,)),
            ("scale", (n,)),
            ("hidden", (n + 1, n_hidden)),
            ("output", (n_hidden + 1, 1 + n_faults)),
        ):
            found = getattr(head, name).shape
            if found != shape:
                raise MapError(f"faults.{name}", f"shape {found}, expected {shape}")
        self._inputs = np.empty(n)
        self._standard = np.array([head.mean, 1.0 / head.scale])
        self._hidden = np.array(head.hidden, np.float32, order="C")
        self._output = np.array(head.output, np.float32, order="C")
        self._work = np.empty(n + n_hidden + 1 + n_faults, np.float32)
        self._logits = np.empty(1 + n_faults)
        self._probability = np.empty(n_faults)
        self.reset()

    def reset(self) -> None:
        """Forget all frames."""
        if self._head is not None:
            self._logits.fill(0.0)

    def update(self, connectivity: Connectivity, bands: BandPowers, vitals: Vitals) -> FaultGuess | None:
        """Take in one frame's findings; None without a head, no score until the shift is known."""
        if self._head is None:
            return None
        if connectivity.shift_score is None:
            return FaultGuess(None, None, 0.0, None)
        score = kernel.recognise(
            *_parts(connectivity, bands, vitals),
            self._standard,
            self._hidden,
            self._output,
            self._inputs,
            self._work,
            self._logits,
            self._probability,
        )
        names, probability = self._head.names, self._probability.tolist()
        confidence = max(probability)
        likeliest = probability.index(confidence)
        probability[likeliest] = -1.0
        return FaultGuess(
            score=score,
            name=names[likeliest] if confidence >= LEAST_CONFIDENCE else None,
            confidence=confidence,
            second=names[probability.index(max(probability))] if len(names) > 1 else None,
        )
