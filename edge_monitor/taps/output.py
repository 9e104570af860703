"""Summary of the model's answer (design section 2)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_monitor.kernels.output import summarize_output
from edge_monitor.types import OutputSummary


class OutputSummarizer:
    """Summarizes outputs one after the other; not to be shared between threads."""

    def __init__(self) -> None:
        self._summary = np.empty(3)

    def summarize(self, output: NDArray[Any]) -> OutputSummary | None:
        """Winner, confidence, entropy of an output of any shape; None when it holds no floats.

        What is beyond float32 counts as infinite, as in an input.
        """
        if output.dtype.kind != "f":
            return None
        if output.dtype.itemsize <= 4:  # asking NumPy for errstate costs more than the rest
            values = output.reshape(-1).astype(np.float32, copy=False)
        else:
            with np.errstate(over="ignore"):
                values = output.reshape(-1).astype(np.float32)
        nonfinite = summarize_output(values, self._summary)
        winner, confidence, entropy = self._summary.tolist()
        if math.isnan(confidence):
            return OutputSummary(int(winner), None, None, nonfinite)
        return OutputSummary(int(winner), confidence, entropy, nonfinite)
