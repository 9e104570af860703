"""Benchmarks of the moments kernel: against memory, and against NumPy."""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np
from _bench_kernel import KernelAlone
from _bench_measure import Effort, UnavailableError, interleaved, ratios
from _bench_models import resnet8
from _bench_overhead import onnx_pair

from edge_monitor.kernels.tap_moments import tap_moments
from edge_monitor.taps.reducer import tap_spec
from edge_monitor.taps.tap_table import Layout, TapTable, aligned_zeros

RESNET8_TAPS = tuple(
    tap_spec(f"tap{i}", shape)
    for i, shape in enumerate([(16, 32, 32)] * 3 + [(32, 16, 16)] * 2 + [(64, 8, 8)] * 2)
)


class ResNet8Moments:
    """The moments kernel on random activations in the shapes of ResNet8's seven taps."""

    def __init__(self) -> None:
        sizes = [tap.size for tap in RESNET8_TAPS]
        starts = np.cumsum([0, *sizes])
        self.buffer = aligned_zeros(4 * starts[-1]).view(np.float32)
        self.buffer[:] = np.maximum(np.random.default_rng(0).standard_normal(starts[-1]), 0)
        self.tensors = [
            self.buffer[start : start + tap.size].reshape(tap.shape)
            for tap, start in zip(RESNET8_TAPS, starts, strict=False)
        ]
        self.table = TapTable(RESNET8_TAPS, (Layout(),) * len(RESNET8_TAPS))
        for tap, tensor in enumerate(self.tensors):
            self.table.place(tap, tensor.ctypes.data)
        self.signals = np.empty(len(RESNET8_TAPS))
        self.nonfinite = np.empty(len(RESNET8_TAPS), np.int64)
        self.voxels = np.empty((sum(tap.n_voxels for tap in RESNET8_TAPS), 3))
        self.channels = np.empty(sum(tap.n_channels for tap in RESNET8_TAPS))

    def run(self) -> None:
        tap_moments(
            self.table.taps,
            self.table.program,
            self.table.scales,
            self.signals,
            self.nonfinite,
            self.voxels,
            self.channels,
        )


def moments_against_read(effort: Effort) -> list[float]:
    """Time of the moments kernel over that of one plain read of the same bytes."""
    moments = ResNet8Moments()
    read = plain_read()
    return ratios((moments.run, lambda: read(moments.buffer)), effort.blocks, effort.repeats)


def moments_as_served(effort: Effort) -> list[float]:
    """Return the same where ResNet8 has just left its seven taps, in the layout of this processor."""
    probe, run, _ = onnx_pair(resnet8, lambda _: None, every_tap=True)
    if not probe.attached:
        raise UnavailableError(f"the probe does not observe: {probe.detach_reason}")
    run()
    kernel = KernelAlone(probe)
    tensors = tuple([tensor.reshape(-1) for tensor in probe._tapped._memory])  # noqa: SLF001
    read = plain_read()

    @numba.njit
    def read_all(tensors: tuple[np.ndarray, ...]) -> float:
        total = 0.0
        for tensor in tensors:
            total += read(tensor)
        return total

    functions = (run, kernel.reduce, run, lambda: read_all(tensors))
    medians = [interleaved(functions, effort.repeats) for _ in range(effort.blocks + 1)]
    return [ours / plain for _, ours, _, plain in medians[1:]]


def plain_read() -> Callable[[np.ndarray], float]:
    """Sum of a buffer that the compiler may reorder into as many lanes as it likes.

    A sum in eight fixed lanes would be slower by far: it waits for its additions, not for memory.
    """

    @numba.njit("float32(float32[::1])", fastmath={"reassoc"})
    def read(buffer: np.ndarray) -> float:
        total = np.float32(0)
        for i in range(buffer.size):
            total += buffer[i]
        return total

    return read


def moments_against_numpy(effort: Effort) -> list[float]:
    """Time of NumPy's reductions to the same numbers over that of the moments kernel."""
    moments = ResNet8Moments()
    moments.run()
    signals, nonfinite, voxels, channels = numpy_moments(moments.tensors)
    if nonfinite.any() or not (
        np.allclose(signals, moments.signals, rtol=1e-5)
        and np.allclose(voxels, moments.voxels, rtol=1e-5)
        and np.allclose(channels, moments.channels, rtol=1e-5)
    ):
        raise AssertionError("NumPy and the moments kernel compute different things")
    functions = (lambda: numpy_moments(moments.tensors), moments.run)
    return ratios(functions, effort.blocks, effort.repeats // 4)


def numpy_moments(tensors: list[np.ndarray]) -> list[np.ndarray]:
    """Signals, non-finite counts, voxel sums and channel sums; grids must divide the shapes."""
    signals, nonfinite, voxels, channels = [], [], [], []
    for tap, tensor in zip(RESNET8_TAPS, tensors, strict=True):
        a = tensor.astype(np.float64)
        size = np.abs(a)
        split = [m for n, g in zip(tap.shape, tap.grid, strict=True) for m in (g, n // g)]
        sums = [x.reshape(split).sum(axis=(1, 3, 5)).ravel() for x in (size, a, a * a)]
        nonfinite.append([a.size - np.isfinite(a).sum()])
        channels.append(size.sum(axis=(1, 2)))
        signals.append([channels[-1].sum() / a.size])
        voxels.append(np.stack(sums, axis=1))
    return [np.concatenate(parts) for parts in (signals, nonfinite, voxels, channels)]
