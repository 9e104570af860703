"""Clean scenes cut out of a user's own frames, one after the other: memory never holds more than one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from edge_monitor.config import FrameSettings
from edge_monitor.errors import InputError, ModelError
from edge_monitor.offline.drill import RAMP_S
from edge_monitor.offline.scene import BEFORE, Scene, SceneCutter
from edge_monitor.probe import Probe
from edge_monitor.region_map import RegionMap
from edge_monitor.sources.frames import FrameSource
from edge_monitor.types import StatRow

LEAD = 300
"""Clean rows that warm the monitor up before each onset."""


class CleanScenes:
    """Scenes evenly spaced over a source of clean frames; every iteration reads the source anew.

    A scene takes `BEFORE` frames that give the first row a past, `LEAD` rows up to the onset, and as many
    frames as a ramp needs to grow. Rows have the capture times of the frames and no latency: how fast this
    machine is says nothing about the device.

    Parameters
    ----------
    model : Path
    region_map : RegionMap
        Of the same model.
    settings : FrameSettings
        A stream that ends.
    n : int
        Number of scenes.

    Raises
    ------
    MapError
        The map is of another model.
    ModelError
        The model cannot be tapped, or has several inputs.
    InputError
        ``n`` is below 1, the stream has too few frames or no end, or its frames do not fit the model.
    """

    def __init__(self, model: Path, region_map: RegionMap, settings: FrameSettings, n: int) -> None:
        if n < 1:
            raise InputError("scenes", f"{n} is below 1")
        self._row: StatRow | None = None
        self._probe = Probe.open(model, region_map=region_map, on_row=self._take)
        if not self._probe.attached:
            raise ModelError(model, f"the probe does not attach: {self._probe.detach_reason}")
        inputs = self._probe.input_names
        if len(inputs) != 1:
            raise ModelError(model, f"has {len(inputs)} inputs ({', '.join(inputs)}), frames can feed one")
        self._source = FrameSource(settings, self._probe.frame_shape)
        self._where = settings.frames
        self._length = round(RAMP_S * settings.frame_rate_hz)
        total, each = self._source.length, BEFORE + LEAD + self._length
        if total is None:
            raise InputError(self._where, "has no end; --limit gives it one")
        if total < n * each:
            enough = f"they are enough for {total // each}" if total >= each else "not enough for one"
            needed = f"{n} scenes need {n * each} ({each} each)"
            raise InputError(self._where, f"{total} frames, {needed}; {enough}")
        self._starts = [k * total // n for k in range(n)]

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[Scene]:
        """Yield the scenes.

        Raises
        ------
        InputError
            A frame, or what the model makes of it, is not finite.
        """
        start, *coming = self._starts
        onset, end = BEFORE + LEAD, BEFORE + LEAD + self._length
        cutter, rows = SceneCutter([onset], self._length), []
        for i, frame in enumerate(self._source):
            if not np.isfinite(frame.array).all():
                raise InputError(self._where, f"frame {i} holds NaN or Inf; clean frames are needed")
            place = i - start
            if place < 0:
                continue
            cutter.add(place, frame, self._source.again)
            if place < onset:
                self._probe.note(frame.t_capture_ns, **frame.context)
                self._probe.feed(frame.array)
                rows.append(self._placed(i, frame.t_capture_ns))
            if place == end - 1:
                yield from cutter.scenes(rows, LEAD)
                if not coming:
                    return
                start, *coming = coming
                cutter, rows = SceneCutter([onset], self._length), []

    def _take(self, row: StatRow) -> None:
        self._row = row

    def _placed(self, i: int, t_ns: int) -> StatRow:
        """Row of the frame just run, with its number and time in the stream."""
        row, self._row = self._row, None
        if row is None:
            raise ModelError("model", f"the probe detached at frame {i}: {self._probe.detach_reason}")
        if row.nonfinite.any() or (row.output is not None and row.output.nonfinite):
            raise InputError(self._where, f"frame {i} gives NaN or Inf; clean frames are needed")
        return msgspec.structs.replace(row, frame=i, t_ns=t_ns, t_capture_ns=t_ns, latency_ns=0)
