"""What a detector sees of a stream, and how one works that judges every frame by itself."""

from __future__ import annotations

from typing import Protocol

import msgspec
import numpy as np
from _detection_transforms import BoolArray, FloatArray, frames_since_start

CHUNK = 4096
"""Frames at a time, which bounds the memory."""
FIT_ROWS = 50_000
"""Clean frames that a detector learns from; more are sampled down to so many."""


class Stream(msgspec.Struct, frozen=True, eq=False):
    """What every detector sees, n frames in their order.

    Attributes
    ----------
    start : (n,) bool
        First frame of each trip.
    signals : (n, n_taps) float64
        Mean |a| of every tap, tap 0 the input.
    channels : (n, n_channels) float64
        Mean |a| of every channel of every network tap.
    voxel_mean : (n, n_voxels) float64
        Mean a of every voxel of every network tap.
    penultimate : (n, d) float64
        Activations before the last dense layer.
    confidence : (n,) float64
        Largest softmax probability of the model's own answer, whatever is wrong with it.
    logits : (n, k) float64
        What the healthy last dense layer makes of ``penultimate``: rows hold no logits.
    picture : (n, p) float64
        Image quality by region: gradients, Laplacian energy, frame differences at lag 1 and 2, shares of
        pixels that stayed the same and that equal their left neighbour.
    colours : (n, c) float64
        Region-colour means of the input.
    difference : (n,) float64
        Mean |x_t - x_(t-1)|.
    guard : (n,) bool
        An exact guard fires.
    overexposed : (n,) bool
        The stratum of the gate.
    """

    start: BoolArray
    signals: FloatArray
    channels: FloatArray
    voxel_mean: FloatArray
    penultimate: FloatArray
    confidence: FloatArray
    logits: FloatArray
    picture: FloatArray
    colours: FloatArray
    difference: FloatArray
    guard: BoolArray
    overexposed: BoolArray


class Peer(Protocol):
    """A detector."""

    def fit(self, clean: Stream) -> None: ...

    def score(self, stream: Stream) -> FloatArray: ...


class RowPeer:
    """A detector that judges every frame by itself.

    ``columns`` are the fields it looks at; ``learn`` and ``rate`` get their finite rows, (m, width) each.
    In the first ``settles`` frames of a trip it says nothing.
    """

    columns: tuple[str, ...] = ()
    settles = 0

    def learn(self, *columns: FloatArray) -> None:
        """Learn from clean rows; a detector without parameters needs none."""

    def rate(self, *columns: FloatArray) -> FloatArray:
        raise NotImplementedError

    def fit(self, clean: Stream) -> None:
        settled = np.flatnonzero(frames_since_start(clean.start) >= self.settles)
        n = min(settled.size, FIT_ROWS)
        chosen = np.sort(np.random.default_rng(0).choice(settled, n, replace=False))
        columns, finite = self._rows(clean, chosen)
        self.learn(*(column[finite] for column in columns))

    def score(self, stream: Stream) -> FloatArray:
        settled = frames_since_start(stream.start) >= self.settles
        result = np.full(settled.shape, np.nan)
        for first in range(0, settled.size, CHUNK):
            part = slice(first, first + CHUNK)
            columns, finite = self._rows(stream, part)
            usable = finite & settled[part]
            if usable.any():
                result[part][usable] = self.rate(*(column[usable] for column in columns))
        return result

    def _rows(self, stream: Stream, part: slice | np.ndarray) -> tuple[list[FloatArray], BoolArray]:
        """Columns of a part of the stream, and which of its rows are finite in all of them."""
        fields = [np.asarray(getattr(stream, name)[part], np.float64) for name in self.columns]
        columns = [field.reshape(len(field), -1) for field in fields]
        return columns, np.logical_and.reduce([np.isfinite(column).all(axis=1) for column in columns])
