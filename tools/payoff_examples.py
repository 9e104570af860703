"""Payoffs for networks whose answer is no probability vector: worked examples to copy and adapt.

``edge-monitor impact`` takes a function of a file as ``--payoff tools/payoff_examples.py:detector``. It is
called with the outputs of the model while some voxels are switched off, and with those of the whole
model on the same frames: two lists of arrays, in the order of the model's outputs, frames first. It returns
one finite number per frame, larger for better, (n,) float64. It may be called from several threads at
once, so it keeps nothing between calls. No labels are needed: what the whole model says is the reference.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SCORE_THRESHOLD = 0.5
"""From this score on, a box of the whole model counts as a detection."""


def detector(ablated: Sequence[NDArray], unablated: Sequence[NDArray]) -> NDArray[np.float64]:
    """How much of the whole model's detections remains, 0 ... 1.

    Outputs: boxes (n, anchors, 4) as x0, y0, x1, y1, and scores (n, anchors, classes) 0 ... 1, before
    non-maximum suppression, so that a row stands for the same anchor in both. A detection remains with
    the score that its class still has there, times the overlap (intersection over union) with the box that
    it had. A frame without detections has nothing to lose: 0 with every voxel on or off, which adds
    nothing to any impact score.
    """
    boxes, scores = ablated[:2]
    whole_boxes, whole_scores = unablated[:2]
    detected = whole_scores.max(axis=2) >= SCORE_THRESHOLD
    winner = whole_scores.argmax(axis=2)[..., None]
    remains = np.take_along_axis(scores, winner, axis=2)[..., 0] * overlap(boxes, whole_boxes)
    return (remains * detected).sum(axis=1, dtype=np.float64) / np.maximum(detected.sum(axis=1), 1)


def overlap(a: NDArray, b: NDArray) -> NDArray:
    """Intersection over union of boxes (..., 4), 0 where a box has no area."""
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = np.prod(np.maximum(sides, 0), axis=-1)
    areas = [np.prod(np.maximum(box[..., 2:] - box[..., :2], 0), axis=-1) for box in (a, b)]
    together = areas[0] + areas[1] - shared
    return np.divide(shared, together, out=np.zeros_like(shared), where=together > 0)


def segmenter(ablated: Sequence[NDArray], unablated: Sequence[NDArray]) -> NDArray[np.float64]:
    """Share of the pixels that keep the class the whole model gave them, 0 ... 1.

    Output: one score per class and pixel, (n, classes, height, width). For a network in which one class
    fills most of a frame, average over classes instead (mean intersection over union), or the
    small ones, a pedestrian among them, hardly count.
    """
    kept = ablated[0].argmax(axis=1) == unablated[0].argmax(axis=1)
    return kept.mean(axis=(1, 2))
