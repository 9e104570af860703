"""Do impact scores mean something? Voxels are deleted one by one, and the accuracy on test images watched.

The better an order finds what matters, the faster the accuracy falls and the smaller the area under the
curve. Everything that orders voxels comes from calibration images; the test images are only judged on.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
from _study_games import CALIBRATION, TEST, cifar10, resnet8
from numpy.typing import NDArray

from edge_monitor.fmri import densities
from edge_monitor.offline.ablation import voxel_cells
from edge_monitor.offline.impact import impact_scores
from edge_monitor.offline.observe import Progress
from edge_monitor.offline.shapley import ShapleySettings
from edge_monitor.offline.surgery import CutModel
from edge_monitor.types import TapSpec

RANDOM_ORDERS = 10
"""Random orders per seed and tap; the area is their mean."""

ORDERS = ("theta", "mean activation", "density", "random")


class Deletion(msgspec.Struct, frozen=True):
    """Area under the deletion curve of one tap, one seed and one way to order: mean accuracy, 0 ... 1.

    ``curve``: accuracy after 0, 1, 2 ... voxels.
    """

    seed: int
    tap: str
    order: str
    area: float
    curve: tuple[float, ...]


def deletion_curves(seed: int, n_images: int, pairs: int, progress: Progress) -> list[Deletion]:
    """All taps and orders for one seed, which selects calibration images, permutations and random orders."""
    images, _ = cifar10(CALIBRATION)
    rng = np.random.default_rng(seed)
    net = resnet8(images[np.sort(rng.choice(len(images), n_images, replace=False))])
    settings = ShapleySettings(pairs=pairs, seed=seed)
    impact = impact_scores(
        net.data,
        net.taps,
        net.images,
        settings=settings,
        progress=lambda phase, done, total: progress(f"seed {seed}: {phase}", done, total),
    )
    test_images, labels = cifar10(TEST)
    found = []
    first = net.taps[0].n_voxels
    for tap in net.taps[1:]:
        part = slice(first, first + tap.n_voxels)
        first += tap.n_voxels
        cut = CutModel(net.data, tap.name)
        mean, level, density = calibrated(cut, tap, net.images)
        orders = [
            ("theta", impact.theta[part]),
            ("mean activation", level),
            ("density", density),
            *(("random", rng.random(tap.n_voxels)) for _ in range(RANDOM_ORDERS)),
        ]
        deleter = Deleter(cut, tap, mean, test_images, labels)
        curves: dict[str, list[list[float]]] = {name: [] for name in ORDERS}
        for done, (name, worth) in enumerate(orders):
            progress(f"seed {seed}: deletion in {tap.name}", done + 1, len(orders))
            curves[name].append(list(deleter.accuracies(np.argsort(-worth, kind="stable"))))
        for name, several in curves.items():
            curve = np.mean(several, axis=0)
            area = float(np.mean((curve[1:] + curve[:-1]) / 2))
            found.append(Deletion(seed, tap.name, name, area, tuple(curve.tolist())))
    return found


def calibrated(
    cut: CutModel, tap: TapSpec, images: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]:
    """Mean per channel, and over images each voxel's mean|a| and density (design D2)."""
    activations = cut.before(images)[0].reshape(-1, *tap.shape).astype(np.float64)
    counts = tap.voxel_counts()
    sums = np.empty((len(images), tap.n_voxels, 3))
    for voxel, cells in enumerate(voxel_cells(tap)):
        values = activations[(slice(None), *cells)].reshape(len(images), -1)
        sums[:, voxel] = np.stack([np.abs(values).sum(1), values.sum(1), (values**2).sum(1)], axis=1)
    no_floor = np.full(tap.n_voxels, np.nan)
    density = np.mean([densities(image, counts, no_floor) for image in sums], axis=0)
    return activations.mean(axis=(0, 2, 3)).astype(np.float32), sums[..., 0].mean(axis=0) / counts, density


class Deleter:
    """Replaces voxels of test images by the calibrated channel means."""

    def __init__(
        self,
        cut: CutModel,
        tap: TapSpec,
        mean: NDArray[np.float32],
        images: NDArray[np.float32],
        labels: NDArray[np.int64],
    ) -> None:
        self._cut, self._labels, self._mean = cut, labels, mean
        self._natural, self._carried = cut.before(images)
        self._shape, self._cells = tap.shape, voxel_cells(tap)

    def accuracies(self, order: NDArray[np.int64]) -> Iterator[float]:
        """Accuracy with 0, 1, 2 ... voxels of the order deleted."""
        activations = self._natural.copy()
        yield self._accuracy(activations)
        for voxel in order:
            channels, rows, columns = self._cells[voxel]
            view = activations.reshape(-1, *self._shape)
            view[:, channels, rows, columns] = self._mean[channels, None, None]
            yield self._accuracy(activations)

    def _accuracy(self, activations: NDArray[np.float32]) -> float:
        scores = self._cut.after(activations, self._carried)[0]
        return float(np.mean(scores.argmax(axis=1) == self._labels))
