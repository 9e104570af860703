"""Ablation: a model's answers while only some voxels of one tap are active (design D7).

The others are replaced by the mean of their channel over the calibration frames, and the model runs from
the tap on only.
"""

from __future__ import annotations

import threading
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_monitor.errors import InputError, ModelError
from edge_monitor.offline.backend import backend_of
from edge_monitor.offline.payoff import Outputs, Payoff
from edge_monitor.offline.surgery import CHUNK
from edge_monitor.types import BoolArray, FloatArray, TapSpec

CUT_TOLERANCE = 1e-3
"""Share of the outputs, summed over all frames, by which the cut model may differ from the whole one.

Float models differ by rounding alone; a quantised one may, here and there, round to the next step.
"""


class Game:
    """Payoffs of the coalitions of one tap's voxels.

    Parameters
    ----------
    data : bytes
        The model.
    tap : TapSpec
        Not the input.
    frames : (n, ...) float32
    payoff : Payoff
    unablated : Outputs
        Answers of the whole model to the frames.

    Raises
    ------
    ModelError
        The model cannot be cut at the tap, the tensor there is not what the tap says, or the
        cut model with all voxels active does not answer as the whole one does.
    """

    def __init__(
        self, data: bytes, tap: TapSpec, frames: NDArray[np.float32], payoff: Payoff, unablated: Outputs
    ) -> None:
        self._cut, self._payoff, self._unablated = backend_of(data).cut(data, tap.name), payoff, unablated
        activations, self._carried = self._cut.before(frames)
        natural = activations.shape[1:] if activations.ndim == 4 else (*activations.shape[1:], 1, 1)
        if natural != tap.shape:
            raise ModelError(tap.name, f"is {activations.shape[1:]} in the model, {tap.shape} as a tap")
        self._flat_shape = activations.shape[1:]
        self._activations = activations.reshape(-1, *tap.shape)
        mean = self._activations.mean(axis=(0, 2, 3), dtype=np.float64).astype(np.float32)
        self._voxels = [(cells, mean[cells[0], None, None]) for cells in voxel_cells(tap)]
        self._local = threading.local()
        whole = self.outputs(np.ones(tap.n_voxels, np.bool_))
        for found, expected in zip(whole, unablated, strict=True):
            apart, size = _apart(found, expected), _apart(expected, np.zeros(1))
            if not apart <= CUT_TOLERANCE * size:
                raise ModelError(
                    tap.name, f"the model cut here answers otherwise, by {apart:.3g} of {size:.3g}"
                )

    def value(self, coalition: BoolArray) -> FloatArray:
        """Payoff of every frame with only the voxels of the coalition (n_voxels,) active."""
        return value_frames(self._payoff, self.outputs(coalition), self._unablated)

    def outputs(self, coalition: BoolArray) -> list[NDArray[Any]]:
        """Answers with only the voxels of the coalition (n_voxels,) active."""
        absent = [voxel for voxel, active in zip(self._voxels, coalition, strict=True) if not active]
        parts = []
        # The same frames together every time: no payoff may depend on what ran before.
        for start in range(0, len(self._activations), CHUNK):
            part = slice(start, start + CHUNK)
            intact = self._activations[part]
            changed = self._buffer()[: len(intact)]
            np.copyto(changed, intact)
            for (channels, rows, columns), mean in absent:
                changed[:, channels, rows, columns] = mean
            carried = {name: tensor[part] for name, tensor in self._carried.items()}
            parts.append(self._cut.after(changed.reshape(-1, *self._flat_shape), carried))
        return [np.concatenate(output) for output in zip(*parts, strict=True)]

    def _buffer(self) -> NDArray[np.float32]:
        """Return the calling thread's own activations, to be overwritten."""
        if not hasattr(self._local, "buffer"):
            self._local.buffer = np.empty((CHUNK, *self._activations.shape[1:]), np.float32)
        buffer: NDArray[np.float32] = self._local.buffer
        return buffer


def voxel_cells(tap: TapSpec) -> list[tuple[slice, slice, slice]]:
    """Channels, rows and columns of every voxel, in the order of `TapSpec.voxel_counts` (design D3)."""
    edges = [np.arange(g + 1) * n // g for n, g in zip(tap.shape, tap.grid, strict=True)]
    parts = [[slice(int(a), int(b)) for a, b in pairwise(e)] for e in edges]
    return [(c, h, w) for c in parts[0] for h in parts[1] for w in parts[2]]


def whole_answers(data: bytes, label: str, frames: NDArray[np.float32]) -> list[NDArray[Any]]:
    """Run the whole model frame by frame, as it is served; its outputs for (n, ...) float32 frames.

    Raises
    ------
    ModelError
        The model cannot be run, or an output has no batch axis.
    """
    names, answers = backend_of(data).run(data, label, frames)
    for name, answer in zip(names, answers[0], strict=True):
        if answer.ndim == 0 or len(answer) != 1:
            raise ModelError(f"output {name}", f"is {answer.shape} for one frame, has no batch axis")
    return [np.concatenate(output) for output in zip(*answers, strict=True)]


def value_frames(payoff: Payoff, ablated: Outputs, unablated: Outputs) -> FloatArray:
    """Apply a payoff to n frames, (n,) float64.

    Raises
    ------
    InputError
        It gives something else than n finite numbers.
    """
    values = np.asarray(payoff.score(ablated, unablated))
    n = len(unablated[0])
    if values.shape != (n,) or values.dtype.kind not in "fiub":
        raise InputError(
            payoff.name, f"gives {values.dtype}{values.shape} for {n} frames, not ({n},) numbers"
        )
    finite = np.isfinite(values)
    if not finite.all():
        frame = int(np.argmin(finite))
        raise InputError(payoff.name, f"gives {values[frame]} for frame {frame}")
    return values.astype(np.float64)


def _apart(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Sum of absolute differences; equal infinities are no difference."""
    difference = np.zeros(found.shape)
    np.subtract(found, expected, out=difference, where=found != expected)
    return float(np.abs(difference).sum())
