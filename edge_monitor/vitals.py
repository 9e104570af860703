"""Signs of life of the frame stream: gaps, repeats, rate, latency, non-finite values, output head."""

from __future__ import annotations

import math
from collections import deque

import msgspec
import numpy as np

from edge_monitor.kernels.goertzel import GAP_LIMIT
from edge_monitor.reports import Vitals
from edge_monitor.types import PICTURE, WHOLE_PICTURE, BoolArray, StatRow, TapSpec

EARLY_PERIODS = 0.25
"""Jitter in frame periods that a gap may fall short of a whole number of frames."""
MOVING_MPS = 5.0
"""Above this speed the scene has to move."""
STALL_FRAMES = 12
"""The stall is a mean of logs over so many frames: one cut does not fill it."""
STEADY = 2.0
"""A jump is what stands out so many times from the frames before and after: fast driving displaces the
picture in all of them."""
LEAST_JUMP = 1.0
"""A jump of less than 1 nat (63 % of the change, explained by one frame's displacement alone) is none: noise
does as much. Jumps are measured from there, so that what little clean driving has of them gives a scale."""
HELD_FRAMES = 8
"""A jump lasts one frame, and counts for so many."""
SLOPES = slice(PICTURE.index("across"), PICTURE.index("down") + 1)
"""Of the statistics of a region: 0 where nothing varies."""
ORDER = 3e-7
"""Share of itself by which a signal may differ when the tap is scanned: voxels are added up one by one. Of
the demo road's frames 99 % differ by more than 5e-5 in any of the model's taps."""
LAG = 16
"""Frames that the thumbnail's long difference looks back on; all of them have to be driven."""


class VitalsTracker:
    """Follows one stream of rows; time comes from the rows, never from a clock.

    Parameters
    ----------
    frame_rate_hz : float
        Nominal rate of the stream, frames per second.
    input_tap : TapSpec
        Tap 0.
    """

    def __init__(self, frame_rate_hz: float, input_tap: TapSpec) -> None:
        self._input_counts = input_tap.voxel_counts()
        self._has_slopes = input_tap.shape[1] * input_tap.shape[2] > 1
        self._period_ns = 1e9 / frame_rate_hz
        self._smoothing = min(1.0, 1.0 / frame_rate_hz)  # time constant of one second
        self.reset()

    def reset(self) -> None:
        """Forget the stream."""
        self._last: StatRow | None = None
        self._last_vitals: Vitals | None = None
        self._repeated = 0
        self._stale = 0
        self._mean_period_ns: float | None = None
        self._age_ns = 0
        self._moving = 0
        self._stalls: deque[float] = deque(maxlen=STALL_FRAMES)
        self._displaced: deque[float] = deque(maxlen=3)
        self._jumps: deque[float] = deque(maxlen=HELD_FRAMES)

    def update(self, row: StatRow) -> Vitals:
        """Take in one row.

        Missing frames are counted from frame numbers and from time stamps, whichever shows more; a
        frame may come `EARLY_PERIODS` early for its gap to count in full. Time is the caller's
        capture time when both rows have it, else the end of inference.
        """
        missing = 0
        backwards = False
        last = self._last
        if last is not None:
            elapsed_ns = _elapsed_ns(last, row)
            by_time = int(elapsed_ns / self._period_ns + EARLY_PERIODS) - 1
            missing = max(0, row.frame - last.frame - 1, by_time)
            same_input = row.fingerprint == last.fingerprint
            # A flat picture, all white or all black, is the same each time without any fault.
            self._repeated = self._repeated + 1 if same_input and not self._is_flat(row) else 0
            self._stale = self._stale + 1 if not same_input and same_taps(last, row) else 0
            backwards = elapsed_ns < 0
            if backwards or missing > GAP_LIMIT:
                self._moving = 0  # a thumbnail from before the gap tells nothing about motion
            self._age_ns += max(0, elapsed_ns)
            if elapsed_ns > 0:
                before = self._mean_period_ns if self._mean_period_ns is not None else elapsed_ns
                self._mean_period_ns = before + self._smoothing * (elapsed_ns - before)
        output = row.output
        vitals = Vitals(
            missing=missing,
            repeated=self._repeated,
            stale=self._stale,
            nonfinite=sum(row.nonfinite.tolist()) + (output.nonfinite if output else 0),
            rate_hz=1e9 / self._mean_period_ns if self._mean_period_ns else None,
            latency_ns=row.latency_ns,
            silence_ns=0,
            entropy=output.entropy if output else None,
            confidence=output.confidence if output else None,
            age_ns=self._age_ns,
            backwards=backwards,
            stall=self._stall(row),
            jump=self._jump(row, missing, self._repeated),
            dead_rows=dead_rows(row),
        )
        self._last = row
        self._last_vitals = vitals
        return vitals

    def _stall(self, row: StatRow) -> float | None:
        """How little the thumbnail moves over 16 frames compared with one, while the vehicle drives.

        Noise alone differs from frame to frame as much as over many frames; a moving scene differs more
        the longer one waits (structure functions).
        """
        moving = row.context.get("speed_mps", 0.0) > MOVING_MPS
        self._moving = self._moving + 1 if moving else 0
        if row.picture is None:
            return None
        short, long = row.picture[-3:-1].tolist()
        known = short > 0.0 and long > 0.0  # never true of NaN
        if not known or self._moving <= LAG:
            self._stalls.clear()
            return None
        self._stalls.append(math.log(short / long))
        return sum(self._stalls) / STALL_FRAMES if len(self._stalls) == STALL_FRAMES else None

    def _jump(self, row: StatRow, missing: int, repeated: int) -> float | None:
        """How clearly the scene has been displaced at once, and not bit by bit as driving does it.

        It is known one frame later: the frame after has to be steady again.
        """
        displaced = math.nan if row.picture is None else float(row.picture[-1])
        if math.isnan(displaced) or missing:  # over a gap driving itself displaces the scene
            self._displaced.clear()
        elif not repeated:  # a slow camera's second copies would look steady
            self._displaced.append(displaced)
        if len(self._displaced) == 3 and not repeated:
            before, at, after = self._displaced
            self._jumps.append(max(0.0, at - STEADY * max(before, after) - LEAST_JUMP))
        elif self._jumps:
            self._jumps.popleft()  # what was seen ages too while nothing is
        return max(self._jumps) if self._jumps else None

    def _is_flat(self, row: StatRow) -> bool:
        """Whether the input varies nowhere, as far as the row tells; its voxels are not in every row."""
        if row.picture is not None and self._has_slopes:
            return not row.picture[: -len(WHOLE_PICTURE)].reshape(-1, len(PICTURE))[:, SLOPES].any()
        if row.spatial is None or not row.spatial.taps[0]:
            return False
        counts = self._input_counts * row.spatial.frames
        _, sums, squares = row.spatial.voxels[: counts.size].T
        return bool((squares * counts <= sums * sums * (1 + 1e-9)).all())

    def tick(self, t_ns: int) -> Vitals | None:
        """Return the last vitals with the silence since then, None before the first frame."""
        if self._last is None or self._last_vitals is None:
            return None
        last = self._last_vitals
        return msgspec.structs.replace(last, missing=0, silence_ns=max(0, t_ns - self._last.t_ns))


def same_taps(last: StatRow, row: StatRow) -> bool:
    """Whether a deaf network shows the same activations: in all taps but tap 0, which is the input.

    They are the same to the bit where both frames were read alike, and within `ORDER` where only one was
    scanned (test_probe.py::test_frozen_activations_are_found_at_every_step).
    """
    before, now = last.signals[1:], row.signals[1:]
    if before.tobytes() == now.tobytes():
        return True
    scanned_before, scanned_now = _scanned(last), _scanned(row)
    if scanned_before.tobytes() == scanned_now.tobytes():
        return False
    close = np.abs(now - before) <= ORDER * np.abs(before)
    return bool(np.where(scanned_before == scanned_now, now == before, close).all())


def _scanned(row: StatRow) -> BoolArray:
    """Taps behind the input whose voxels the row has."""
    return np.zeros(row.signals.size - 1, np.bool_) if row.spatial is None else row.spatial.taps[1:]


def dead_rows(row: StatRow) -> int | None:
    """Rows of the picture that carry nothing (`Vitals.dead_rows`), None when there is no picture."""
    dead = math.nan if row.picture is None else float(row.picture[-4])
    return None if math.isnan(dead) else int(dead)


def _elapsed_ns(last: StatRow, row: StatRow) -> int:
    """Time between two rows on one clock: capture time may have another zero than ours."""
    if last.t_capture_ns is None or row.t_capture_ns is None:
        return row.t_ns - last.t_ns
    return row.t_capture_ns - last.t_capture_ns
