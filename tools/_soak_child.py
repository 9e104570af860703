"""What tools/soak_probe starts, with runtime, number of frames, seed; an error when anything is wrong.

With a file as well, TensorFlow Lite runs its reference kernels, and the file says where our kernels' machine
code was. What XNNPACK computes with integers memcheck takes for uninitialised, without a probe as well.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections import Counter
from pathlib import Path
from threading import Thread

import models
import numpy as np
from _soak_models import HOW, KINDS, LITERT, N_FRAMES, Answer, Kind, same
from ai_edge_litert.interpreter import OpResolverType
from numba.core.dispatcher import Dispatcher

from edge_monitor.errors import ModelError
from edge_monitor.probe import Probe
from edge_monitor.types import StatRow

MOST_PROBES, MOST_THREADS, LONGEST = 6, 4, 400
RATES = {"open": 2, "close": 2, "batch": 3, "allocate": 3, "threads": 1, "serve": 30}
GROWTH_MIB = 8.0
"""Resident memory that may come on top of its peak in the first half: caches of allocators."""


class Watched:
    """A probe, and the rows that it owes."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.rows: list[StatRow] = []
        self.probe = kind.open(self.rows.append)
        self.calls = self.n_rows = 0

    def serve(self, places: np.ndarray, *, alone: bool = True) -> None:
        """Run frames; when no other thread does, look at every row as well."""
        for place in places:
            same(self.kind.run(self.probe, self.kind.frames[place]), self.kind.answers[place])
        if alone:
            self.calls += len(places)
            for row, place in zip(self.rows, places, strict=True):
                np.testing.assert_array_equal(row.signals, self.kind.signals[place])
            self.settle()

    def settle(self) -> None:
        """Count rows and let them go."""
        self.n_rows += len(self.rows)
        self.rows.clear()
        assert self.probe.attached, self.probe.detach_reason
        assert (self.probe.errors, self.n_rows + self.probe.unobserved) == (0, self.calls)


class Soak:
    """Probes that come and go in random order while they serve."""

    def __init__(self, runtime: str, seed: int) -> None:
        self.kinds = KINDS[runtime]()
        self.threads_may_share = runtime == "onnx"  # an interpreter is for one thread at a time
        self.rng = np.random.default_rng(seed)
        self.alive: list[Watched] = []
        self.kept: list[tuple[Answer, Answer]] = []
        self.served, self.done = 0, Counter[str]()

    def run(self, frames: int) -> list[float]:
        """Serve so many frames; resident memory, MiB, after every hundredth of them."""
        memory: list[float] = []
        names, rates = list(RATES), np.array(list(RATES.values()), float)
        while self.served < frames:
            name = "open" if not self.alive else str(self.rng.choice(names, p=rates / rates.sum()))
            getattr(self, name)()
            self.done[name] += 1
            while len(memory) < 100 * self.served // frames:
                memory.append(resident_mib())
        while self.alive:
            self.close()
        gc.collect()
        for answer, expected in self.kept:  # what was handed out outlives its probe
            same(answer, expected)
        return memory

    def any(self) -> Watched:
        return self.alive[self.rng.integers(len(self.alive))]

    def places(self) -> np.ndarray:
        return self.rng.integers(0, N_FRAMES, self.rng.integers(1, LONGEST))

    def open(self) -> None:
        if len(self.alive) < MOST_PROBES:
            self.alive.append(Watched(self.kinds[self.rng.integers(len(self.kinds))]))

    def close(self) -> None:
        self.alive.pop(self.rng.integers(len(self.alive)))

    def serve(self) -> None:
        watched, places = self.any(), self.places()
        watched.serve(places)
        self.served += len(places)
        if self.rng.random() < 0.1:
            kind = watched.kind
            self.kept = [*self.kept[-20:], (kind.run(watched.probe, kind.frames[0]), kind.answers[0])]
            watched.calls += 1
            watched.settle()

    def batch(self) -> None:
        """Several pictures at once: served as without a probe, and not observed."""
        watched, size = self.any(), int(self.rng.integers(2, 5))
        kind, n_rows = watched.kind, watched.n_rows
        pictures = np.concatenate([kind.frames[place] for place in range(size)])
        for model in (kind.plain, watched.probe):
            kind.allocate(model, size)
        same(kind.run(watched.probe, pictures), kind.run(kind.plain, pictures))
        for model in (kind.plain, watched.probe):
            kind.allocate(model, 1)
        watched.calls += 1
        watched.settle()
        assert watched.n_rows == n_rows

    def allocate(self) -> None:
        """Give the runtime cause to move its tensors, then look at every row."""
        watched = self.any()
        watched.kind.allocate(watched.probe, 1)
        watched.serve(self.places())

    def threads(self) -> None:
        """Threads that share a probe, or have one each."""
        size = int(self.rng.integers(2, MOST_THREADS + 1))
        chosen = [self.any()] * size if self.threads_may_share else self.alive[:size]
        failures: list[BaseException] = []

        def serve(watched: Watched, places: np.ndarray) -> None:
            try:
                watched.serve(places, alone=not self.threads_may_share)
            except BaseException as failure:  # noqa: BLE001 - raised again in the main thread
                failures.append(failure)

        jobs = [(watched, self.places()) for watched in chosen]
        threads = [Thread(target=serve, args=job) for job in jobs]
        for step in (Thread.start, Thread.join):
            for thread in threads:
                step(thread)
        for failure in failures:
            raise failure
        self.served += sum(len(places) for _, places in jobs)
        if self.threads_may_share:
            chosen[0].calls += sum(len(places) for _, places in jobs)
            known = {signals.tobytes() for signals in chosen[0].kind.signals}
            assert all(row.signals.tobytes() in known for row in chosen[0].rows)
            chosen[0].settle()


def check_fixed_batch() -> None:
    """A model of more than one picture at a time is refused in one line."""
    try:
        Probe.onnx(models.cnn(batch=2), on_row=lambda _: None, **HOW)
    except ModelError as refusal:
        print(f"a batch of 2: {refusal}")
    else:
        raise AssertionError("a model of batch 2 was not refused")


def kernel_code() -> list[tuple[int, int]]:
    """Mappings in which machine code of kernels lies: first address of each, and first one behind it."""
    entries = [
        overload.library.get_pointer_to_function(overload.fndesc.llvm_func_name)
        for thing in gc.get_objects()
        if issubclass(type(thing), Dispatcher)  # asked for its class, a weak reference looks for what is gone
        for overload in thing.overloads.values()
    ]
    lines = Path("/proc/self/maps").read_text().splitlines()
    ends = [[int(end, 16) for end in line.split()[0].split("-")] for line in lines]
    return [(start, end) for start, end in ends if any(start <= entry < end for entry in entries)]


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main(runtime: str, frames: str, seed: str, code_file: str = "") -> None:
    np.seterr(all="ignore")
    if code_file:
        LITERT["experimental_op_resolver_type"] = OpResolverType.BUILTIN_REF
    if runtime == "onnx":
        check_fixed_batch()
    soak = Soak(runtime, int(seed))
    if code_file:  # before anything can fail: memcheck's errors say why it did
        Path(code_file).write_text(json.dumps(kernel_code()))
    memory = soak.run(int(frames))
    half = len(memory) // 2
    early, late = max(memory[:half]), max(memory[half:])
    print(f"{soak.served} frames; {', '.join(f'{n} {name}' for name, n in sorted(soak.done.items()))}")
    print(f"resident: at most {early:.1f} MiB in the first half, {late:.1f} in the second")
    if late > early + GROWTH_MIB:
        sys.exit("memory grows")


if __name__ == "__main__":
    main(*sys.argv[1:])
