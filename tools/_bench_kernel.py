"""The moments kernel by itself, on what a probe's taps hold: no picture, no row."""

from __future__ import annotations

import numpy as np

from edge_monitor.kernels.tap_moments import tap_moments
from edge_monitor.observer import Observer


class KernelAlone:
    """Reduces the tapped tensors of a probe's last run into ``signals``; the picture, tap 0, is left out."""

    def __init__(self, probe: Observer) -> None:
        self._probe, self._reducer = probe, probe._tapped._reducer  # noqa: SLF001 - what is measured lies inside
        table, n_taps = self._reducer._table, len(probe.taps) - 1  # noqa: SLF001
        self.signals = np.empty(n_taps)
        self._arrays = (
            *(table.taps[1:], table.program, table.scales[1:]),
            *(self.signals, np.empty(n_taps, np.int64)),
            np.empty((sum(tap.n_voxels for tap in probe.taps), 3)),
            np.empty(sum(tap.n_channels for tap in probe.taps)),
        )

    def reduce(self) -> None:
        governor = self._probe.governor
        if governor is not None:
            self._reducer.choose(governor.scan())
        tap_moments(*self._arrays)
