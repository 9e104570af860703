"""An input and four tensors behind it, of all kinds: their activations, pictures and blocks."""

import itertools

import naive
import numpy as np

from edge_monitor.types import SpatialBlock, TapSpec

TAPS = (
    TapSpec("input", (3, 7, 5), (3, 2, 2), picture=(2, 2)),
    TapSpec("conv", (5, 9, 4), (4, 2, 2)),
    TapSpec("wide", (70, 3, 2), (4, 2, 1)),
    TapSpec("dense", (9, 1, 1), (4, 1, 1)),
    TapSpec("units", (40, 1, 1), (2, 1, 1)),
)
ALL = np.ones(len(TAPS), bool)
N_VOXELS = [tap.n_voxels for tap in TAPS]
N_FEATURES = [tap.n_features for tap in TAPS]
N_STATISTICS = TAPS[0].n_statistics
PICTURE = np.linspace(0.2, 0.9, TAPS[0].n_picture)


def split(array, sizes):
    """Parts of an array of all taps."""
    return np.split(array, np.cumsum(sizes)[:-1])


def transitions(flat, taps=TAPS):
    """One matrix (source, target) per transition."""
    shapes = [(a.n_voxels, b.n_voxels) for a, b in itertools.pairwise(taps)]
    return [part.reshape(s) for part, s in zip(split(flat, [a * b for a, b in shapes]), shapes, strict=True)]


def draw(rng, frames=1, taps=TAPS, scale=1.0):
    """Activations (frames, C, H, W) of every tap."""
    return [rng.normal(rng.normal(0, 1), scale, (frames, *tap.shape)) for tap in taps]


def block_of(activations, taps=TAPS, present=None):
    """What the probe makes of activations; the sums of absent taps are what happens to stand there."""
    present = np.ones(len(taps), bool) if present is None else np.array(present)
    frames = [
        naive.moments([(a[i], t.grid) for a, t in zip(activations, taps, strict=True)])
        for i in range(len(activations[0]))
    ]
    voxels, channels = (np.sum([frame[k] for frame in frames], axis=0) for k in (2, 3))
    voxels[~np.repeat(present, [tap.n_voxels for tap in taps])] = np.nan
    channels[~np.repeat(present, [tap.n_channels for tap in taps])] = np.inf
    return SpatialBlock(len(frames), present, voxels, channels)


def draw_picture(rng):
    """Statistics of a picture; now and then one of them, or only one of the whole picture's, is unknown."""
    picture = rng.uniform(0.1, 2.0, PICTURE.size)
    if rng.random() < 0.2:
        picture[rng.integers(0, picture.size)] = np.nan
    return picture


def statistics_of(taps, picture):
    """The part of every tap: the input's statistics, nothing for the others."""
    return [picture[: tap.n_statistics] for tap in taps]
