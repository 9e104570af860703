"""Governor: keeps what the probe costs within a share of the frame period (design section 8)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from edge_monitor.types import BoolArray

BUDGET = 0.03
"""Share of a frame period that the probe may take of its thread's CPU time."""
WINDOW = 64
"""Frames over which the cost is averaged before it is judged."""
OUTLIERS = WINDOW // 16
"""Costliest frames of a window that do not count: caches were cold, or a page was fetched. They are the same
share of the scans where not every frame is scanned."""
RELAX = 0.4
"""The governor takes a step back when less than this share of the budget is used: a step at most halves the
voxels that are read, so what it saved comes back as twice the cost."""
CALM = 16
"""Windows in a row that have to be so cheap; twice as many each time that the step back was too early."""
LONGEST_TR = 8
"""Frames between scans at most: shift and fault head have to see some 90 scans before they speak."""
NARROWEST = 2
"""Taps of a rotating window at least: how a layer follows from the one before takes both of them."""


class Step(NamedTuple):
    """What is read at one step, in one of ``tr`` frames: the input, and ``width`` taps side by side."""

    width: int
    tr: int


def ladder(n_taps: int) -> tuple[Step, ...]:
    """List the steps down from all taps in every frame: fewer at a time, then a longer repetition time.

    ``n_taps``: with the input, tap 0.
    """
    widths = [n_taps - 1]
    while widths[-1] > NARROWEST:
        widths.append(max(NARROWEST, -(-widths[-1] // 2)))
    trs = [2**k for k in range(1, LONGEST_TR.bit_length())]
    return (*(Step(width, 1) for width in widths), *(Step(widths[-1], tr) for tr in trs))


class Governor:
    """Says which taps' voxels are read in the coming frame.

    Signals, and so the EEG, and the picture's statistics are read in every frame whatever it costs.

    Parameters
    ----------
    n_taps : int
    period_ns : float
        Frame period.

    Attributes
    ----------
    step : Step
        What is read now.
    """

    def __init__(self, n_taps: int, period_ns: float) -> None:
        self._budget_ns = BUDGET * period_ns
        self._ladder = ladder(n_taps)
        self._scans = {step: _windows(n_taps, step.width) for step in self._ladder}
        self._nothing = np.zeros(n_taps, np.bool_)
        self._costs = np.empty(WINDOW, np.int64)
        self._place = 0
        self._scan, self._wait = 0, 0
        self._at = 0
        self._cheap, self._patience = 0, CALM
        self.step = self._ladder[0]

    def scan(self) -> BoolArray:
        """Taps (n_taps,) whose voxels are to be read in the coming frame; not to be written to."""
        if self._wait > 0:
            self._wait -= 1
            return self._nothing
        self._wait = self.step.tr - 1
        windows = self._scans[self.step]
        self._scan += 1
        return windows[self._scan % len(windows)]

    def spent(self, cost_ns: int) -> None:
        """Take in what the probe cost before and behind the model's run; nanoseconds of CPU time."""
        self._costs[self._place] = cost_ns
        self._place += 1
        if self._place < WINDOW:
            return
        self._place = 0
        mean = np.sort(self._costs)[: WINDOW - OUTLIERS // self.step.tr].mean()
        if mean > self._budget_ns:
            if self._cheap < 0:  # the last step back was too early
                self._patience *= 2
            self._go(self._at + 1)
            self._cheap = 0
        elif mean > RELAX * self._budget_ns:
            self._cheap = 0
        else:
            self._cheap += 1
            if self._cheap < self._patience:
                return
            if self._at > 0:
                self._go(self._at - 1)
                self._cheap = -1
            else:  # nothing was early about it
                self._cheap, self._patience = 0, CALM

    def _go(self, at: int) -> None:
        self._at = min(at, len(self._ladder) - 1)
        self.step = self._ladder[self._at]


def _windows(n_taps: int, width: int) -> list[BoolArray]:
    """Taps of each scan of a round; each window begins with the last tap of the one before.

    The input is in all of them: it is small, and half of the evidence is about it.
    """
    windows = []
    start = 1
    while True:
        first = min(start, n_taps - width)
        window = np.zeros(n_taps, np.bool_)
        window[[0, *range(first, first + width)]] = True
        windows.append(window)
        if first + width >= n_taps:
            return windows
        start += width - 1
