"""Time courses of any length in bounded memory: columns that become wider as time goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from edge_monitor.types import FloatArray

COLUMNS = 800
"""A picture is about so many points wide: more columns would be lost in it."""

Reduce = Callable[[FloatArray, FloatArray], FloatArray]
"""Two arrays into one, element by element, a NaN giving way to the other."""


def largest(a: FloatArray, b: FloatArray) -> FloatArray:
    return np.fmax(a, b)


def smallest(a: FloatArray, b: FloatArray) -> FloatArray:
    return np.fmin(a, b)


def farthest(a: FloatArray, b: FloatArray) -> FloatArray:
    """Keep the value farther from 0, with its sign."""
    return np.where(np.isnan(b) | (np.abs(a) >= np.abs(b)), a, b)


class TimeCourse:
    """Numbers over time, as columns of equal width.

    Of several values in one column the reduction of their track remains. When the columns run out,
    every two become one. A column that got nothing is NaN. Time never runs back: a value that
    is older than the one before it counts as one of the same time.

    Parameters
    ----------
    tracks : mapping of str to (int, Reduce)
        Numbers of each track and their reduction.
    column_ns : int
        Width of a column at the start.
    """

    def __init__(self, tracks: Mapping[str, tuple[int, Reduce]], column_ns: int) -> None:
        self.reductions = {name: reduce for name, (_, reduce) in tracks.items()}
        self._values = {name: np.full((COLUMNS, width), np.nan) for name, (width, _) in tracks.items()}
        self._column_ns = column_ns
        self._start_ns: int | None = None
        self._elapsed_ns = 0

    @property
    def column_s(self) -> float:
        """Width of a column in seconds."""
        return self._column_ns / 1e9

    @property
    def elapsed_s(self) -> float:
        """Seconds from the first time to the last."""
        return self._elapsed_ns / 1e9

    def move(self, t_ns: int) -> float:
        """Go on to a time and return the seconds since the first one."""
        if self._start_ns is None:
            self._start_ns = t_ns
        self._elapsed_ns = max(self._elapsed_ns, t_ns - self._start_ns)
        while self._elapsed_ns // self._column_ns >= COLUMNS:
            self._column_ns *= 2
            for name, values in self._values.items():
                values[: COLUMNS // 2] = self.reductions[name](values[0::2], values[1::2])
                values[COLUMNS // 2 :] = np.nan
        return self.elapsed_s

    def add(self, track: str, values: FloatArray) -> None:
        """Add the values (width,) of one track at the present time."""
        column = self._values[track][self._elapsed_ns // self._column_ns]
        column[:] = self.reductions[track](column, values)

    def columns(self, track: str) -> FloatArray:
        """Columns so far, (n_columns, width)."""
        return self._values[track][: self._elapsed_ns // self._column_ns + 1]

    def coarse(self, track: str, cells: int) -> tuple[float, FloatArray]:
        """Width in seconds and values of columns joined until at most so many numbers remain."""
        values, column_s = self.columns(track), self.column_s
        while values.size > cells and len(values) > 1:
            if len(values) % 2:
                values = np.vstack([values, np.full_like(values[:1], np.nan)])
            values, column_s = self.reductions[track](values[0::2], values[1::2]), 2 * column_s
        return column_s, values
