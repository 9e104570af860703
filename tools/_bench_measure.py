"""How a benchmark is described and how time is taken: interleaved calls, medians, several blocks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray


class Effort(msgspec.Struct, frozen=True):
    """How long to measure: blocks of ``repeats`` calls, and processes started."""

    blocks: int
    repeats: int
    processes: int


FULL = Effort(blocks=15, repeats=400, processes=5)
QUICK = Effort(blocks=3, repeats=40, processes=1)


class UnavailableError(Exception):
    """What a benchmark needs is not there; the text says what."""


class Benchmark(msgspec.Struct, frozen=True):
    """One row of the table.

    ``measure`` gives one value per block, in ``unit``; their median is the result and their range
    the noise. ``goal`` is an upper bound, or a lower one when ``at_least``; None: only reported.
    """

    name: str
    what: str
    unit: str
    measure: Callable[[Effort], Sequence[float]]
    goal: float | None = None
    at_least: bool = False


class Result(msgspec.Struct, frozen=True):
    """Outcome of one benchmark.

    ``value`` is the median and ``spread`` the smallest and largest of the blocks; None when it could
    not be measured. ``met`` is None without a goal or a value.
    """

    name: str
    what: str
    value: float | None
    spread: tuple[float, float] | None
    unit: str
    goal: float | None
    met: bool | None


def run(benchmark: Benchmark, effort: Effort) -> Result:
    """Measure once.

    Raises
    ------
    UnavailableError
        Something the benchmark needs is missing.
    """
    return judge(benchmark, benchmark.measure(effort))


def judge(benchmark: Benchmark, values: Sequence[float]) -> Result:
    """Compare the blocks' values with the goal; no values give a result without a value."""
    value = spread = met = None
    if len(values) > 0:
        value, spread = float(np.median(values)), (float(min(values)), float(max(values)))
        if benchmark.goal is not None:
            met = value >= benchmark.goal if benchmark.at_least else value <= benchmark.goal
    return Result(benchmark.name, benchmark.what, value, spread, benchmark.unit, benchmark.goal, met)


def interleaved(functions: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median duration of each function in seconds, called in turn: A B A B ..."""
    durations = np.empty((repeats, len(functions)))
    for row in durations:
        for i, function in enumerate(functions):
            start_ns = time.perf_counter_ns()
            function()
            row[i] = time.perf_counter_ns() - start_ns
    return [float(median) * 1e-9 for median in np.median(durations, axis=0)]


def ratios(
    functions: tuple[Callable[[], object], Callable[[], object]], blocks: int, repeats: int
) -> list[float]:
    """Median of the first function over that of the second, once per block; a first block warms up."""
    medians = [interleaved(functions, repeats) for _ in range(blocks + 1)][1:]
    return [first / second for first, second in medians]


def durations_us(function: Callable[..., object], arguments: Iterable[tuple]) -> NDArray[np.float64]:
    """Duration of ``function(*a)`` for every ``a``, microseconds; making the arguments is not timed."""
    durations = []
    for each in arguments:
        start_ns = time.perf_counter_ns()
        function(*each)
        durations.append(time.perf_counter_ns() - start_ns)
    return np.array(durations) * 1e-3
