"""Training of the fault head: a perceptron with dropout, by Adam, in plain NumPy.

Dropout is what scikit-learn's perceptron lacks, and what keeps a head that has seen a few hundred scenes from
being sure of the next one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edge_monitor.kernels.perceptron import KNEE
from edge_monitor.offline.fault_bank import Bank, gather_clean, make_bank
from edge_monitor.offline.injection import Injector, Range
from edge_monitor.offline.observe import LEAST_FRAMES, Observed, Progress
from edge_monitor.region_map import FaultHead, RegionMap
from edge_monitor.types import FloatArray

Float32Array = NDArray[np.float32]

HIDDEN = 64
EPOCHS, BATCH = 30, 512
LEARNING_RATE = 2e-3
"""Falls to 0 in a straight line."""
DROP_INPUT, DROP_HIDDEN = 0.1, 0.3
"""Share of the inputs and of the hidden units that a step goes without (Srivastava et al., 2014)."""
FIRST_MOMENT, SECOND_MOMENT, EPSILON = 0.9, 0.999, 1e-8
"""Of Adam (Kingma and Ba, 2015)."""
CLEAN_SHARE = 2.0
"""Clean samples for each faulty one, at most."""
KEPT_BACK = 10
"""Every so-manieth scene is kept back to see how many faults are named right."""


def fit_head(bank: Bank, clean: FloatArray, seed: int = 0) -> FaultHead | None:
    """Train on a bank and clean samples (n, n_inputs); None when either is empty."""
    if not len(bank.labels) or not len(clean):
        return None
    rng = np.random.default_rng([seed, 5])
    kept_back = bank.scenes % KEPT_BACK == KEPT_BACK - 1
    known = np.isfinite(clean).any(axis=0)
    mean, scale = np.zeros(clean.shape[1]), np.ones(clean.shape[1])
    finite = np.where(np.isfinite(clean[:, known]), clean[:, known], np.nan)
    mean[known], scale[known] = np.nanmean(finite, axis=0), np.nanstd(finite, axis=0)
    scale[scale == 0] = 1.0
    n_clean = min(len(clean), int(CLEAN_SHARE * len(bank.labels)))
    chosen = rng.permutation(len(clean))[:n_clean]
    x = bounded(np.concatenate([bank.inputs[~kept_back], clean[chosen]]), mean, scale)
    y = np.concatenate([bank.labels[~kept_back], np.zeros(n_clean, np.int64)])
    network = _Network(x.shape[1], len(bank.names) + 1, rng)
    network.train(x, y)
    accuracy = None
    if kept_back.any():
        logits = network.logits(bounded(bank.inputs[kept_back], mean, scale))
        accuracy = float(np.mean(1 + logits[:, 1:].argmax(axis=1) == bank.labels[kept_back]))
    hidden, output = (np.vstack(pair).astype(np.float64) for pair in network.layers)
    return FaultHead(bank.names, mean, scale, hidden, output, accuracy)


Keep = Callable[[Bank, FloatArray], None]
"""Takes what a head was trained on: the bank and the clean samples."""


def train_head(
    observed: Observed, provisional: RegionMap, n_fit: int, progress: Progress, keep: Keep | None
) -> tuple[FaultHead | None, list[str]]:
    """Make a bank from the observed scenes and train on it; None without scenes to break.

    Second come remarks: why there is no head, or which faults it has not met.
    """
    if not observed.scenes:
        return None, [f"no fault head: it learns from scenes of a source with {LEAST_FRAMES} frames or more"]
    injector = Injector(
        observed.model_bytes, observed.taps, Range.of(observed.images.frames), observed.frame_rate_hz
    )
    bank = make_bank(injector, provisional, observed.scenes, seed=observed.seed, progress=progress)
    clean = gather_clean(provisional, observed.rows[:n_fit], progress)
    if keep is not None:
        keep(bank, clean)
    progress("head", 0, 1)
    head = fit_head(bank, clean, seed=observed.seed)
    progress("head", 1, 1)
    unmet = [f"the fault head has not met {fault}: {why}" for fault, why in bank.left_out.items()]
    return head, unmet


def bounded(x: FloatArray, mean: FloatArray, scale: FloatArray) -> Float32Array:
    """Bound inputs (n, n_inputs) as the device's kernel does (`kernels.perceptron.squash`)."""
    u = np.nan_to_num((x - mean) / scale, nan=0.0, posinf=1e6, neginf=-1e6)
    return (u / (1.0 + np.abs(u) / KNEE)).astype(np.float32)


class _Network:
    """One hidden layer of rectified units; softmax cross-entropy."""

    def __init__(self, n_inputs: int, n_classes: int, rng: np.random.Generator) -> None:
        self._rng = rng
        sizes = ((n_inputs, HIDDEN), (HIDDEN, n_classes))
        self._weights = [
            array
            for n, m in sizes
            for array in (
                rng.normal(0.0, np.sqrt(2.0 / n), (n, m)).astype(np.float32),
                np.zeros((1, m), np.float32),
            )
        ]
        self._moments = [(np.zeros_like(w), np.zeros_like(w)) for w in self._weights]
        self._steps = 0

    @property
    def layers(self) -> tuple[tuple[Float32Array, Float32Array], tuple[Float32Array, Float32Array]]:
        """Weights and bias of the hidden layer and of the output."""
        a, b, c, d = self._weights
        return (a, b), (c, d)

    def logits(self, x: Float32Array) -> Float32Array:
        a, b, c, d = self._weights
        return np.asarray(np.maximum(x @ a + b, 0.0) @ c + d, np.float32)

    def train(self, x: Float32Array, y: NDArray[np.int64]) -> None:
        """Go over all samples `EPOCHS` times, in another order each time."""
        per_epoch = -(-len(x) // BATCH)
        for _ in range(EPOCHS):
            for batch in np.array_split(self._rng.permutation(len(x)), per_epoch):
                rate = LEARNING_RATE * (1.0 - self._steps / (EPOCHS * per_epoch))
                self._step(x[batch], y[batch], rate)

    def _step(self, x: Float32Array, y: NDArray[np.int64], rate: float) -> None:
        a, b, c, d = self._weights
        x = x * self._mask(x.shape, DROP_INPUT)
        mask = self._mask((len(x), HIDDEN), DROP_HIDDEN)
        sums = x @ a + b
        units = np.maximum(sums, 0.0) * mask
        logits = units @ c + d
        probability = np.exp(logits - logits.max(axis=1, keepdims=True))
        probability /= probability.sum(axis=1, keepdims=True)
        probability[np.arange(len(y)), y] -= 1.0
        error = probability / np.float32(len(y))
        back = (error @ c.T) * mask * (sums > 0)
        gradients = (x.T @ back, back.sum(0, keepdims=True), units.T @ error, error.sum(0, keepdims=True))
        self._steps += 1
        first_bias, second_bias = 1.0 - FIRST_MOMENT**self._steps, 1.0 - SECOND_MOMENT**self._steps
        for weight, gradient, (first, second) in zip(self._weights, gradients, self._moments, strict=True):
            first[:] += (1.0 - FIRST_MOMENT) * (gradient - first)
            second[:] += (1.0 - SECOND_MOMENT) * (gradient * gradient - second)
            weight[:] -= rate * (first / first_bias) / (np.sqrt(second / second_bias) + EPSILON)

    def _mask(self, shape: tuple[int, ...], drop: float) -> Float32Array:
        """0 for what is dropped; the others are made larger, so that sums stay as they are."""
        return (self._rng.random(shape, np.float32) >= drop).astype(np.float32) / np.float32(1.0 - drop)
