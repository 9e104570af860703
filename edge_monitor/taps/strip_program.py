"""Programs of strips: how the kernel walks a tensor in each layout, written once, when a tap is attached.

A tensor of C x H x W elements lies in memory as [ceil(C / B), H, W, B]: B = 1 is NCHW, B = C is NHWC, any
other B is a blocked layout (NCHWc), whose last block may be filled up with channels that do not count. The
contiguous axis goes to the lanes of the kernel's vectors: the columns if B = 1, else the channels of a block.
Short rows share a vector, as many of them as fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod

from edge_monitor.kernels.lanes import LANES
from edge_monitor.kernels.vector import N_FOLDS

LIMIT = 128
"""Vectors that are added up in one accumulator of a strip, of which there are two: 128 distances of integers
fit 16 bits, and a sum of floats is wrong by less than 1e-5 of itself."""

Shape = tuple[int, int, int]


def strips(shape: Shape, block: int, grid: Shape | None) -> tuple[list[int], int]:
    """Program of a tap, and the number of its strips.

    Parameters
    ----------
    shape, grid
        Channels, rows, columns; and groups of them. Without grid the program is for channel sums alone.
    block
        B.
    """
    channels, height, width = shape
    if height * width == 1:
        block = channels  # neighbours are channels in every layout
    make = _columns if block == 1 else _channels
    found = list(make(shape, block, grid or (1, 1, 1)))
    if grid is None:
        found = [[*strip[:N_FOLDS], 0] for strip in found]
    return [number for strip in found for number in strip], len(found)


def edges(n: int, groups: int) -> list[tuple[int, int]]:
    """Cut an axis into groups (design D3)."""
    return [(k * n // groups, (k + 1) * n // groups) for k in range(groups)]


def counts(shape: Shape, grid: Shape) -> list[int]:
    """Elements of every voxel."""
    sizes = ([stop - start for start, stop in edges(n, g)] for n, g in zip(shape, grid, strict=True))
    return [prod(each) for each in product(*sizes)]


def pieces(start: int, stop: int, step: int) -> list[tuple[int, int]]:
    return [(first, min(first + step, stop)) for first in range(start, stop, step)]


def outer_limit(n_inner: int, rest: int) -> int:
    """How often ``n_inner`` vectors, in turn for either accumulator, and a rest for the second one, fit."""
    return LIMIT // max((n_inner + 1) // 2, n_inner // 2 + (rest > 0))


def folds(groups: list[tuple[int, int]], origin: int, lanes: int, voxels: range) -> list[int]:
    """Which of ``lanes`` lanes, the first of them at ``origin`` of an axis, belong to which voxel."""
    found = []
    for (start, stop), voxel in zip(groups, voxels, strict=True):
        first, last = max(start - origin, 0), min(stop - origin, lanes)
        if first < last:
            found += [voxel, first, last]
    return found


def _columns(shape: Shape, _: int, grid: Shape) -> Iterator[list[int]]:
    """Lanes are columns: a strip goes down the rows of a channel, then over channels."""
    channels, height, width = shape
    together = max(1, LANES // width)
    for g, (first_channel, stop_channel) in enumerate(edges(channels, grid[0])):
        for i, (top, bottom) in enumerate(edges(height, grid[1])):
            voxel = (g * grid[1] + i) * grid[2]
            for row, stop in pieces(top, bottom, 2 * LIMIT * together):
                n_inner, rest = divmod(stop - row, together)
                for channel, end in pieces(first_channel, stop_channel, outer_limit(n_inner, rest)):
                    for column, right in pieces(0, width, LANES):
                        lanes = right - column
                        start = (channel * height + row) * width + column
                        outer, inner = (end - channel, height * width), (n_inner, together * width)
                        fold = folds(edges(width, grid[2]), column, lanes, range(voxel, voxel + grid[2]))
                        filled = together * lanes, rest * lanes
                        yield [start, *outer, *inner, *filled, lanes, channel, 0, len(fold) // 3, *fold]


def _channels(shape: Shape, block: int, grid: Shape) -> Iterator[list[int]]:
    """Lanes are channels: a strip goes along a row, then down the rows."""
    channels, height, width = shape
    size = grid[1] * grid[2]
    for origin, stop_of_block in pieces(0, channels, block):
        for channel, stop in pieces(origin, stop_of_block, LANES):
            lanes = stop - channel
            together = LANES // lanes if lanes == block else 1
            for i, (top, bottom) in enumerate(edges(height, grid[1])):
                for j, (left, right) in enumerate(edges(width, grid[2])):
                    first = i * grid[2] + j
                    fold = folds(
                        edges(channels, grid[0]), channel, lanes, range(first, first + grid[0] * size, size)
                    )
                    for column, end in pieces(left, right, 2 * LIMIT * together):
                        n_inner, rest = divmod(end - column, together)
                        for row, last in pieces(top, bottom, outer_limit(n_inner, rest)):
                            start = (
                                origin * height * width + (row * width + column) * block + channel - origin
                            )
                            outer, inner = (last - row, width * block), (n_inner, together * block)
                            filled = together * lanes, rest * lanes
                            yield [start, *outer, *inner, *filled, lanes, channel, 1, len(fold) // 3, *fold]
