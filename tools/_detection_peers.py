"""What a user could pick instead of the monitor: detectors from the literature and from daily practice.

All learn from clean frames alone. ``fit(clean)``, then ``score(stream)`` gives (n,) float64: the larger, the
more abnormal; NaN where a detector has nothing to say (what it looks at is not finite).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from _detection_peer import CHUNK, Peer, RowPeer, Stream
from _detection_transforms import FloatArray, over_last
from scipy.special import logsumexp
from sklearn.covariance import ledoit_wolf

PRECISION = 0.01
"""No log feature is taken to be known better than this; of others, this share of their common deviation."""
FLOOR = 0.03
"""Below this share of a feature's clean mean its logarithm is levelled out."""
CLASS_ROWS = 30
"""A class that is predicted less often has no mean of its own."""
TINY = 1e-30


class MaxSoftmax(RowPeer):
    """1 - largest softmax probability (Hendrycks and Gimpel, 2017)."""

    columns = ("confidence",)

    def rate(self, confidence: FloatArray) -> FloatArray:
        return 1.0 - confidence[:, 0]


class Energy(RowPeer):
    """Free energy at temperature 1 (Liu et al., 2020)."""

    columns = ("logits",)

    def rate(self, logits: FloatArray) -> FloatArray:
        return -logsumexp(logits, axis=1)


def whitener(centred: FloatArray, precision: float) -> FloatArray:
    """W with W Wᵀ the inverse of the covariance: shrunk (Ledoit and Wolf, 2004), plus ``precision``²."""
    covariance, _ = ledoit_wolf(centred, assume_centered=True)
    variances, directions = np.linalg.eigh(covariance + precision**2 * np.eye(len(covariance)))
    return directions / np.sqrt(variances)


class Mahalanobis(RowPeer):
    """Squared distance to the nearest class mean, in the covariance shared by all (Lee et al., 2018).

    The classes are those that the model predicts: clean frames have no labels.
    """

    columns = ("penultimate", "logits")

    def learn(self, penultimate: FloatArray, logits: FloatArray) -> None:
        predicted = logits.argmax(axis=1)
        counts = np.bincount(predicted, minlength=logits.shape[1])
        own_mean = np.flatnonzero(counts >= min(CLASS_ROWS, counts.max()))
        means = np.array([penultimate[predicted == c].mean(axis=0) for c in own_mean])
        members = np.isin(predicted, own_mean)
        centred = penultimate[members] - means[np.searchsorted(own_mean, predicted[members])]
        precision = PRECISION * np.sqrt((centred**2).mean()) + TINY
        self._whitener = whitener(centred, precision)
        self._means = means @ self._whitener

    def rate(self, penultimate: FloatArray, _logits: FloatArray) -> FloatArray:
        white = penultimate @ self._whitener
        return np.min([((white - mean) ** 2).sum(axis=1) for mean in self._means], axis=0)


class Neighbours(RowPeer):
    """Distance to the k-th nearest clean frame, features scaled to length 1 (Sun et al., 2022)."""

    columns = ("penultimate",)
    bank, k = 2000, 5

    def learn(self, penultimate: FloatArray) -> None:
        n = min(len(penultimate), self.bank)
        chosen = np.random.default_rng(1).choice(len(penultimate), n, replace=False)
        self._bank = np.ascontiguousarray(_unit(penultimate[chosen]).T)

    def rate(self, penultimate: FloatArray) -> FloatArray:
        likeness = _unit(penultimate) @ self._bank
        last = max(likeness.shape[1] - self.k, 0)
        nearest = np.partition(likeness, last, axis=1)[:, last].astype(np.float64)
        return np.sqrt(np.maximum(2.0 - 2.0 * nearest, 0.0))


def _unit(rows: FloatArray) -> np.ndarray:
    """Rows of length 1, in single precision for a fast product."""
    return (rows / (np.linalg.norm(rows, axis=1, keepdims=True) + TINY)).astype(np.float32)


class Vim(RowPeer):
    """Virtual logit of what lies outside of the principal space, against the energy (Wang et al., 2022).

    The last dense layer is recovered from its clean inputs and outputs. The principal space has half of the
    dimensions, as in the authors' code for narrow layers.
    """

    columns = ("penultimate", "logits")

    def learn(self, penultimate: FloatArray, logits: FloatArray) -> None:
        inputs = np.hstack([penultimate, np.ones((len(penultimate), 1))])
        layer = np.linalg.lstsq(inputs, logits, rcond=None)[0]
        self._origin = -layer[-1] @ np.linalg.pinv(layer[:-1])
        centred = penultimate - self._origin
        _, directions = np.linalg.eigh(centred.T @ centred)  # variances rise
        self._outside = directions[:, : directions.shape[1] - directions.shape[1] // 2]
        largest = abs(float(logits.max(axis=1).mean()))  # a negative mean must not turn the score round
        self._scale = largest / (float(self._norm(penultimate).mean()) + TINY)

    def rate(self, penultimate: FloatArray, logits: FloatArray) -> FloatArray:
        return self._scale * self._norm(penultimate) - logsumexp(logits, axis=1)

    def _norm(self, penultimate: FloatArray) -> FloatArray:
        return np.linalg.norm((penultimate - self._origin) @ self._outside, axis=1)


class LogMahalanobis(RowPeer):
    """Squared Mahalanobis distance of the logarithms of one field.

    Parameters
    ----------
    field : str
    settles : int
        Frames after a trip's start in which the field is not yet meant to be looked at.
    """

    def __init__(self, field: str, settles: int = 0) -> None:
        self.columns, self.settles = (field,), settles

    def learn(self, features: FloatArray) -> None:
        mean = np.abs(features).mean(axis=0)
        self._floor = FLOOR * mean + 1e-3 * np.median(mean) + TINY
        logs = self._logs(features)
        self._center = logs.mean(axis=0)
        self._whitener = whitener(logs - self._center, PRECISION)

    def rate(self, features: FloatArray) -> FloatArray:
        return (((self._logs(features) - self._center) @ self._whitener) ** 2).sum(axis=1)

    def _logs(self, features: FloatArray) -> FloatArray:
        return np.log(np.abs(features) + self._floor)


class MeanActivation(RowPeer):
    """Largest |z| of the taps' mean activations."""

    columns = ("signals",)

    def learn(self, signals: FloatArray) -> None:
        self._mean = signals.mean(axis=0)
        self._sigma = np.maximum(signals.std(axis=0), 1e-6 * np.abs(self._mean) + TINY)

    def rate(self, signals: FloatArray) -> FloatArray:
        return np.abs((signals - self._mean) / self._sigma).max(axis=1)


class FrameDifference(RowPeer):
    """How unusual the change from frame to frame is, to either side, in robust sigmas of its logarithm."""

    columns = ("difference",)
    settles = 1

    def learn(self, difference: FloatArray) -> None:
        self._floor = 1e-3 * float(np.median(difference)) + TINY
        logs = np.log(difference + self._floor)
        self._median = float(np.median(logs))
        self._deviation = max(float(np.median(np.abs(logs - self._median))), PRECISION)

    def rate(self, difference: FloatArray) -> FloatArray:
        return np.abs(np.log(difference[:, 0] + self._floor) - self._median) / self._deviation


class RangeSupervision(RowPeer):
    """How far channels and voxels lie outside of their clean range, in widths of it, summed.

    After the bounds of Chen et al., 2021 (Ranger) and Geissler et al., 2021.
    """

    columns = ("channels", "voxel_mean")

    def fit(self, clean: Stream) -> None:
        """Learn from every frame: a sample would miss the extremes."""
        low, high = np.inf, -np.inf
        for first in range(0, clean.start.size, CHUNK):
            columns, finite = self._rows(clean, slice(first, first + CHUNK))
            rows = np.hstack(columns)[finite]
            low = np.minimum(low, rows.min(axis=0, initial=np.inf))
            high = np.maximum(high, rows.max(axis=0, initial=-np.inf))
        self._low, self._high = low, high
        width = high - low
        self._width = np.maximum(width, PRECISION * np.median(width) + TINY)

    def rate(self, channels: FloatArray, voxel_mean: FloatArray) -> FloatArray:
        rows = np.hstack([channels, voxel_mean])
        outside = np.maximum(np.maximum(self._low - rows, rows - self._high), 0.0)
        return (outside / self._width).sum(axis=1)


class Adwin:
    """Drift of 1 - largest softmax probability by adaptive windowing (Bifet and Gavaldà, 2007; river).

    A detector for each of several confidences, so that there is one for every budget: the score is -log10 of
    the strictest one that has found a drift in the last second, 0 if none has. Each trip starts anew. They
    test every frame: river's default, every 32nd, would be late by that alone.
    """

    confidences = (1e-1, 1e-2, 2e-3, 1e-4, 1e-6, 1e-9, 1e-13, 1e-18)
    hold = 30

    def __init__(self) -> None:
        from river.drift import ADWIN  # noqa: PLC0415 - nothing else needs it

        self._make = partial(ADWIN, clock=1)

    def fit(self, clean: Stream) -> None:
        """Nothing to learn: the window is the reference."""

    def score(self, stream: Stream) -> FloatArray:
        softmax = MaxSoftmax().score(stream)
        found = np.zeros(softmax.shape)
        values, starts = softmax.tolist(), stream.start.tolist()
        for confidence in self.confidences:  # the strictest last
            detector = self._make(delta=confidence)
            for i, (value, first) in enumerate(zip(values, starts, strict=True)):
                if first:
                    detector = self._make(delta=confidence)
                if value == value:  # noqa: PLR0124 - not NaN
                    detector.update(value)
                    if detector.drift_detected:
                        found[i] = -np.log10(confidence)
        return np.where(np.isnan(softmax), np.nan, over_last(found, stream.start, self.hold, np.maximum))


PEERS: dict[str, Callable[[], Peer]] = {
    "max softmax": MaxSoftmax,
    "energy": Energy,
    "Mahalanobis, penultimate": Mahalanobis,
    "KNN, penultimate": Neighbours,
    "ViM": Vim,
    "Mahalanobis, all layers": partial(LogMahalanobis, "channels"),
    "z of mean activation": MeanActivation,
    "ADWIN": Adwin,
    "frame difference": FrameDifference,
    "image quality": partial(LogMahalanobis, "picture", settles=2),  # it has differences at lag 2
    "input levels": partial(LogMahalanobis, "colours"),
    "range supervision": RangeSupervision,
}
