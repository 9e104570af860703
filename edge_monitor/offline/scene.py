"""Scenes: short stretches of clean driving, cut out of a stream to put faults into."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_monitor.kernels.displacement import LAG
from edge_monitor.sources.frames import Frame
from edge_monitor.types import StatRow

BEFORE = LAG + 2
"""Clean frames run before a fault, so that the statistics of the picture have a past."""


class Scene(msgspec.Struct, frozen=True, eq=False):
    """A stretch of clean driving.

    ``frames`` (BEFORE + n, ...) float32: model inputs without batch axis; a fault begins behind the first
    `BEFORE`. ``again`` (n, ...): the frame of the onset over and over, each time with noise of its own, None
    where the source cannot give that. ``rows``: clean rows of the drive up to the onset, so many as a
    monitor needs to be warm. ``contexts``: those of ``frames``.
    """

    frames: NDArray[np.float32]
    again: NDArray[np.float32] | None
    rows: list[StatRow]
    contexts: list[dict[str, float]]

    @property
    def length(self) -> int:
        """Frames from the onset on."""
        return len(self.frames) - BEFORE


class SceneCutter:
    """Collects scenes while a stream passes by.

    Parameters
    ----------
    onsets : sequence of int
        Numbers of the frames at which a fault is to begin, rising, at least `BEFORE`.
    length : int
        Frames of a scene from its onset on.
    """

    def __init__(self, onsets: Sequence[int], length: int) -> None:
        self._onsets, self._length = list(onsets), length
        self._frames: list[list[Frame]] = [[] for _ in onsets]
        self._again: list[list[NDArray[np.float32]]] = [[] for _ in onsets]

    def add(self, i: int, frame: Frame, again: Callable[[], NDArray[np.float32] | None]) -> None:
        """Take in frame ``i``; ``again`` gives its scene once more."""
        for onset, frames, held in zip(self._onsets, self._frames, self._again, strict=True):
            if onset - BEFORE <= i < onset + self._length:
                frames.append(frame)
                if i == onset:
                    pictures = (again() for _ in range(self._length))
                    held += [picture[0] for picture in pictures if picture is not None]

    def scenes(self, rows: Sequence[StatRow], lead: int) -> tuple[Scene, ...]:
        """Whole scenes, with up to ``lead`` of the stream's ``rows`` before each."""
        return tuple(
            Scene(
                frames=np.stack([frame.array[0] for frame in frames]),
                again=np.stack(held) if held else None,
                rows=list(rows[max(0, onset - lead) : onset]),
                contexts=[frame.context for frame in frames],
            )
            for onset, frames, held in zip(self._onsets, self._frames, self._again, strict=True)
            if len(frames) == BEFORE + self._length
        )
