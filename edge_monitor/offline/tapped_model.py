"""A model that was broken while it served: its taps as rows, without the probe's checks at start."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edge_monitor.taps.onnx import TappedSession, quiet_options
from edge_monitor.taps.output import OutputSummarizer
from edge_monitor.types import StatRow, TapSpec


class TappedModel:
    """Runs frames through a model and reduces its taps as the probe does.

    The probe compares answers when it attaches. A fault that comes later meets no such check, and a broken
    model whose answers overflow may not pass it (test_injection.py::test_every_fault_can_be_put_in).

    Parameters
    ----------
    model : bytes
        ONNX model.
    taps : tuple of TapSpec
        The input and the tapped tensors.
    frame : (C, H, W) or (N,) float32
        Any input.

    Raises
    ------
    MapError
        ``taps`` do not fit the model.
    """

    def __init__(self, model: bytes, taps: tuple[TapSpec, ...], frame: NDArray[np.float32]) -> None:
        self._input = taps[0].name
        options = {"sess_options": quiet_options()}
        names = [tap.name for tap in taps[1:]]
        self._session = TappedSession(model, names, {self._input: frame[None]}, self._input, taps, options)
        self._summarizer = OutputSummarizer()

    def rows(self, frames: NDArray[np.float32]) -> Iterator[StatRow]:
        """Yield the rows of consecutive frames (n, ...), without times."""
        self._session.restart()
        for frame in frames:
            outputs = self._session.run({self._input: frame[None]})
            reduction = self._session.reduce(frame[None])
            yield StatRow(
                frame=0,
                t_ns=0,
                latency_ns=0,
                signals=reduction.signals,
                nonfinite=reduction.nonfinite,
                fingerprint=reduction.fingerprint,
                spatial=reduction.spatial,
                output=self._summarizer.summarize(outputs[0]),
                picture=reduction.picture,
            )
