"""Benchmarks of what a probe adds to a model's run, in every runtime, and of sending what it found.

The untapped model is called as a program without a monitor calls it: no I/O binding, which saves a little
by itself. Calls alternate one by one, so that both see the machine as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import cycle, islice

import numpy as np
from _bench_datagram import RowSocket
from _bench_kernel import KernelAlone
from _bench_measure import Effort, UnavailableError, durations_us, interleaved
from _bench_models import mlperf_tiny, one_thread
from _bench_rows import synthetic_rows

from edge_monitor.observer import Observer
from edge_monitor.probe import Probe
from edge_monitor.taps.onnx import find_observed_input, input_type, list_taps, open_session
from edge_monitor.types import StatRow

Call = Callable[[], object]
OnRow = Callable[[StatRow], object]
Pair = tuple[Observer, Call, Call]
"""A probe, its run of a frame, and the untapped model's."""


class Rotation:
    """A governor that stays at one step: voxels of so many taps a frame, in turn."""

    def __init__(self, n_taps: int, width: int) -> None:
        self._scans = cycle(np.arange(n_taps) // width == turn for turn in range(-(-n_taps // width)))

    def scan(self) -> np.ndarray:
        return next(self._scans)

    def spent(self, cost_ns: int) -> None:
        """Change nothing."""


def onnx_pair(
    model: Callable[[], bytes], on_row: OnRow, *, every_tap: bool = False, alone: bool = False
) -> Pair:
    """Probe and session of an ONNX model, on a random picture; ``alone``: tapped run and kernel only."""
    how = one_thread()
    data = model()
    names = [tap.name for tap in list_taps(data) if every_tap or tap.default]
    probe = Probe.onnx(data, taps=names, on_row=on_row, **how)
    plain = open_session(data, (), how)
    feed = {arg.name: np.zeros(*input_type(arg)) for arg in plain.get_inputs()}
    image = feed[find_observed_input(plain)]
    image[...] = 255 * np.random.default_rng(0).random(image.shape)
    watched = partial(probe.run, None, feed)
    if alone:
        watched = behind(partial(probe._tapped.run, feed), KernelAlone(probe))  # noqa: SLF001
    return probe, watched, partial(plain.run, None, feed)


def litert_pair(data: bytes, on_row: OnRow, *, alone: bool = False) -> Pair:
    """Probe and interpreter of a TensorFlow Lite model, as `onnx_pair` does."""
    if find_spec("ai_edge_litert") is None:
        raise UnavailableError("ai-edge-litert is not installed")
    from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415 - may be missing

    probe = Probe.litert(data, on_row=on_row, num_threads=1)
    plain = Interpreter(model_content=data, num_threads=1)
    for interpreter in (probe, plain):
        interpreter.allocate_tensors()
    (taken,), (given,) = plain.get_input_details(), plain.get_output_details()
    image = np.random.default_rng(0).integers(0, 256, taken["shape"])
    image = (image - 128 * (taken["dtype"] == np.int8)).astype(taken["dtype"])

    def call(interpreter: Interpreter) -> object:
        interpreter.set_tensor(taken["index"], image)
        interpreter.invoke()
        return interpreter.get_tensor(given["index"])

    watched = partial(call, probe)
    if alone:
        watched()  # the probe finds out where the taps lie
        tapped = probe._tapped.interpreter  # noqa: SLF001
        watched = behind(partial(call, tapped), KernelAlone(probe))
    return probe, watched, partial(call, plain)


def behind(run: Call, kernel: KernelAlone) -> Call:
    """One after the other."""

    def both() -> None:
        run()
        kernel.reduce()

    return both


def onnx_overhead(
    model: Callable[[], bytes], *, every_tap: bool = False, width: int | None = None, alone: bool = False
) -> Callable[[Effort], list[float]]:
    """Percent that a probe adds to a session's run; ``width``: of a `Rotation`."""

    def measure(effort: Effort) -> list[float]:
        pair = onnx_pair(model, ignore, every_tap=every_tap, alone=alone)
        if width is not None:
            pair[0].governor = Rotation(len(pair[0].taps), width)
        return percent_added(pair, effort)

    return measure


def litert_overhead(name: str, *, alone: bool = False) -> Callable[[Effort], list[float]]:
    """Percent that a probe adds to an interpreter's run, with its input and its answer."""
    return lambda effort: percent_added(litert_pair(mlperf_tiny(name), ignore, alone=alone), effort)


def ignore(_: StatRow) -> None:
    """Leave a row alone."""


def sending_overhead(model: Callable[[], bytes], *, share: float) -> Callable[[Effort], list[float]]:
    """Percent that all of the perception process adds: probe, row, packing, sending it to a socket."""

    def measure(effort: Effort) -> list[float]:
        with RowSocket() as rows:
            values = percent_added(onnx_pair(model, rows.send), effort, between=(rows.read,), share=share)
            if rows.dropped:
                raise AssertionError(f"{rows.dropped} rows found the socket full; their time says nothing")
            return values

    return measure


def percent_added(
    pair: Pair, effort: Effort, *, between: Sequence[Call] = (), share: float = 1.0
) -> list[float]:
    """Compare watched and untapped calls block by block.

    What is done ``between`` them is not counted; of large models a ``share`` of the calls is enough.
    """
    probe, *calls = pair
    repeats = max(10, int(share * effort.repeats))
    medians = [interleaved((*calls, *between), repeats) for _ in range(effort.blocks + 1)][1:]
    if not probe.attached or probe.unobserved:
        raise UnavailableError(f"the probe does not observe: {probe.detach_reason}")
    return [100 * (watched / untapped - 1) for watched, untapped, *_ in medians]


def send_row(effort: Effort) -> list[float]:
    """Median duration of packing a row and sending it, in microseconds."""
    rows = synthetic_rows(effort.blocks * effort.repeats, seed=1)
    with RowSocket() as ends:

        def items() -> Iterator[tuple[StatRow]]:
            for row in islice(rows, effort.repeats):
                ends.read()
                yield (row,)

        values = [float(np.median(durations_us(ends.send, items()))) for _ in range(effort.blocks)]
        if ends.dropped:
            raise AssertionError(f"{ends.dropped} rows found the socket full; their time says nothing")
        return values
