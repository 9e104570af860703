"""What a reducer's taps hold, read by the definition of their layouts."""

import ctypes

import numpy as np

from edge_monitor.kernels import tap_moments as kernel
from edge_monitor.taps.tap_table import DTYPES


def held(reducer):
    """Values (C, H, W) of the input and of all taps, in the order of the taps; integers as float32."""
    return [values(row, scale) for row, scale in zip(reducer._table.taps, reducer._table.scales, strict=True)]


def values(row, scale):
    dtype = np.dtype(next(name for name, kind in DTYPES.items() if kind == row[kernel.KIND]))
    memory = (ctypes.c_uint8 * int(row[kernel.END] - row[kernel.ADDRESS])).from_address(
        int(row[kernel.ADDRESS])
    )
    block, channels, height, width = row[kernel.BLOCK : kernel.WIDTH + 1].tolist()
    blocks = np.frombuffer(memory, dtype).reshape(-1, height, width, block)
    planar = blocks.transpose(0, 3, 1, 2).reshape(-1, height, width)[:channels]
    if dtype.kind == "f":
        return planar.copy()
    return np.float32(scale) * (planar.astype(np.float32) - np.float32(row[kernel.ZERO_POINT]))
