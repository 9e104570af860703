"""Rows and a region map of a network that does not exist: 8 taps x 16 voxels x 32 channels, healthy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edge_monitor.types import OutputSummary, SpatialBlock, StatRow, TapSpec

RATE_HZ = 30.0
TAPS = (
    TapSpec("image", (3, 64, 64), (3, 4, 4), picture=(3, 3)),
    *(TapSpec(f"tap{i}", (32, 16, 16), (4, 2, 2)) for i in range(1, 8)),
)


def synthetic_rows(n: int, seed: int) -> Iterator[StatRow]:
    """Yield ``n`` rows: positive activations whose level wanders a little in every voxel."""
    rng = np.random.default_rng(seed)
    counts = np.concatenate([tap.voxel_counts() for tap in TAPS])
    first_voxel = np.cumsum([0, *(tap.n_voxels for tap in TAPS)])[:-1]
    of_channels = np.concatenate([np.full(tap.n_channels, tap.size / tap.n_channels) for tap in TAPS])
    for frame in range(n):
        level = np.exp(0.1 * rng.standard_normal(counts.size))
        total = counts * level
        t_ns = int(frame * 1e9 / RATE_HZ)
        yield StatRow(
            frame=frame,
            t_ns=t_ns,
            latency_ns=5_000_000,
            signals=np.add.reduceat(total, first_voxel) / np.array([tap.size for tap in TAPS]),
            nonfinite=np.zeros(len(TAPS), np.int64),
            fingerprint=frame,
            t_capture_ns=t_ns,
            spatial=SpatialBlock(
                frames=1,
                taps=np.ones(len(TAPS), np.bool_),
                voxels=np.column_stack([total, total, 2 * total * level]),
                channels=of_channels * np.exp(0.1 * rng.standard_normal(of_channels.size)),
            ),
            context={"speed_mps": 20.0},
            picture=np.append(np.exp(0.1 * rng.standard_normal(TAPS[0].n_picture - 1)), 0.0),
            output=OutputSummary(frame % 10, 0.8, 0.6 + 0.05 * float(rng.standard_normal()), 0),
        )
