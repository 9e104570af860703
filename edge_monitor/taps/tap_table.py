"""The tap table of the moments kernel: where tensors are, what they hold and how they are walked."""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_monitor.errors import InputError
from edge_monitor.kernels import tap_moments as kernel
from edge_monitor.kernels.memory import FLOAT16, FLOAT32, INT8, ITEM_SIZES, UINT8
from edge_monitor.taps.strip_program import counts, strips
from edge_monitor.types import BoolArray, TapSpec

DTYPES = {"float32": FLOAT32, "float16": FLOAT16, "int8": INT8, "uint8": UINT8}

ALIGNMENT = 64
"""Bytes: one cache line, and what any runtime asks of a bound output."""


def aligned_zeros(n_bytes: int) -> NDArray[np.uint8]:
    """Memory that begins where `ALIGNMENT` asks for."""
    memory = np.zeros(n_bytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + n_bytes]


class Layout(msgspec.Struct, frozen=True):
    """How a tap's elements lie in memory, and what they stand for.

    ``dtype``: float32, float16, int8 or uint8. ``block``: memory is [ceil(C / block), H, W, block]; 1 is
    NCHW, C is NHWC. An integer q stands for ``scale`` (q - ``zero_point``).
    """

    dtype: str = "float32"
    block: int = 1
    scale: float = 1.0
    zero_point: int = 0


class TapTable:
    """Integers and floats that `kernels.tap_moments` takes, for taps in a fixed order.

    Parameters
    ----------
    taps : tuple[TapSpec, ...]
        Shapes and grids.
    layouts : tuple[Layout, ...]
        One per tap.

    Attributes
    ----------
    taps : (n_taps, N_COLUMNS) int64
    program : (n,) int64
    scales : (n_taps,) float64

    Raises
    ------
    InputError
        A dtype that is not read, a block below 1, a scale that is not positive and finite, or a zero point
        that the dtype does not hold.
    """

    def __init__(self, taps: tuple[TapSpec, ...], layouts: tuple[Layout, ...]) -> None:
        self.taps = np.zeros((len(taps), kernel.N_COLUMNS), np.int64)
        self.scales = np.array([layout.scale for layout in layouts])
        program: list[int] = []
        n_voxels = n_channels = 0
        for row, tap, layout in zip(self.taps, taps, layouts, strict=True):
            _check(tap.name, layout)
            row[[kernel.KIND, kernel.ZERO_POINT]] = DTYPES[layout.dtype], layout.zero_point
            row[kernel.BLOCK : kernel.FIRST_VOXEL] = layout.block, *tap.shape, *tap.grid
            row[kernel.FIRST_VOXEL : kernel.SIGNAL_BEGIN] = n_voxels, n_channels, True
            for column, grid in ((kernel.SIGNAL_BEGIN, None), (kernel.SPATIAL_BEGIN, tap.grid)):
                numbers, n_strips = strips(tap.shape, layout.block, grid)
                row[column : column + 2] = len(program), n_strips
                program += numbers
            row[kernel.COUNTS] = len(program)
            program += counts(tap.shape, tap.grid)
            n_voxels += tap.n_voxels
            n_channels += tap.n_channels
        self.program = np.array(program, np.int64)

    def n_bytes(self, tap: int) -> int:
        """Bytes of a tap's tensor, with what fills up its last block."""
        row = self.taps[tap]
        channels = -(-row[kernel.CHANNELS] // row[kernel.BLOCK]) * row[kernel.BLOCK]
        return int(channels * row[kernel.HEIGHT] * row[kernel.WIDTH] * ITEM_SIZES[row[kernel.KIND]])

    def place(self, tap: int, address: int) -> None:
        """Say where a tap's tensor is; all taps must have been placed before the kernel reads them."""
        self.taps[tap, [kernel.ADDRESS, kernel.END]] = address, address + self.n_bytes(tap)

    def choose(self, spatial: BoolArray) -> None:
        """Choose the taps (n_taps,) whose voxels the kernel writes; the others have signal and channels."""
        self.taps[:, kernel.SPATIAL] = spatial


def _check(name: str, layout: Layout) -> None:
    if layout.dtype not in DTYPES:
        raise InputError(name, f"dtype {layout.dtype}, expected one of {', '.join(DTYPES)}")
    if layout.block < 1:
        raise InputError(name, f"block {layout.block}, expected at least 1")
    if not 0 < layout.scale < np.inf:
        raise InputError(name, f"scale {layout.scale}, expected a positive number")
    if DTYPES[layout.dtype] in (FLOAT32, FLOAT16):
        if (layout.scale, layout.zero_point) != (1.0, 0):
            raise InputError(name, f"{layout.dtype} with a scale or a zero point")
        return
    limits = np.iinfo(layout.dtype)
    if not limits.min <= layout.zero_point <= limits.max:
        raise InputError(name, f"zero point {layout.zero_point}, outside of {layout.dtype}")
