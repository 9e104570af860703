"""The health page: one small memory-mapped file that the vehicle's own software reads.

The file is created once and never replaced, so a reader keeps its mapping over restarts of the
monitor. When the monitor dies nobody writes, and the reader's own deadline says so.

Python has no memory barrier to offer; on a processor that reorders stores the CRC catches what the
sequence lets through.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from math import isnan, nan
from pathlib import Path

import numpy as np

from edge_monitor.errors import InputError
from edge_monitor.flag_table import FLAGS
from edge_monitor.reports import FlagStatus, HealthReport
from edge_monitor.sinks.health_page_layout import (
    BLOCK,
    CRC_AT,
    FORMAT,
    HEADER,
    LENGTH,
    MAX_SIZE,
    PAYLOAD,
    SIZE,
    block_crc,
)
from edge_monitor.types import MonitorInput, StatRow

_CRC = struct.Struct(">I")
_SEVERITY = {row.code: row.severity for row in FLAGS}


class HealthPageSink:
    """Writes the page at every report.

    A number that a report does not hold is NaN on the page; so are the scores after a tick.

    Parameters
    ----------
    path : path
        File in a tmpfs, created when missing.
    data_id : int
        E2E data id, 0 ... 2**32 - 1: tells this monitor's page from any other.

    Attributes
    ----------
    step_ns : float
        Cost of the monitor's last step, filled in by whoever measures it; NaN until then.
    dropped_rows, dropped_records : int
        Rows lost on the way to the monitor, and inputs lost by its sinks; filled in likewise.
    failed : int
        Reports that did not fit the layout; the page stays as it was and goes stale.

    Raises
    ------
    InputError
        The file cannot be made, is no health page, or another monitor writes it.
    """

    def __init__(self, path: str | Path, data_id: int) -> None:
        self.step_ns = nan
        self.dropped_rows = 0
        self.dropped_records = 0
        self.failed = 0
        self._data_id = data_id
        self._instance = int.from_bytes(os.urandom(8), "little")
        self._content_counter = 0
        self._fingerprint: int | None = None
        self._scan, self._scan_frame = (0, 0), -1
        self._file, self._map = _create(path)
        # The counter goes on where the previous monitor stopped, so that readers see an advance.
        self._counter: int = HEADER.unpack_from(self._map, BLOCK)[1]
        self._lock = np.frombuffer(self._map, "<u4", count=1)
        self._sequence = int(self._lock[0]) & ~1  # even, also after a writer that died while writing
        self._target = memoryview(self._map)[BLOCK:]
        self._block = bytearray(LENGTH)
        self._block_array = np.frombuffer(self._block, np.uint8)
        self._closed = False

    def write(self, item: MonitorInput, report: HealthReport) -> None:
        """Publish one report; ``content_counter`` advances when the row's input is a new one."""
        if self._closed:
            return
        if isinstance(item, StatRow) and item.fingerprint != self._fingerprint:
            self._fingerprint = item.fingerprint
            self._content_counter += 1
        if isinstance(item, StatRow) and item.spatial is not None:
            period = max(0, item.frame - self._scan_frame) if self._scan_frame >= 0 else 0
            self._scan, self._scan_frame = (int(np.count_nonzero(item.spatial.taps)), period), item.frame
        self._counter = (self._counter + 1) & 0xFFFF
        try:
            self._pack(report)
        except struct.error:
            self.failed += 1
            return
        self._lock[0] = self._sequence + 1
        self._target[:] = self._block
        self._sequence = (self._sequence + 2) & 0xFFFFFFFF
        self._lock[0] = self._sequence

    def close(self) -> None:
        """Let go of the file, which stays for its readers and goes stale."""
        if self._closed:
            return
        self._closed = True
        self._target.release()
        del self._lock
        self._map.close()
        os.close(self._file)

    def _pack(self, report: HealthReport) -> None:
        bands, regions, consistency = report.bands, report.regions, report.consistency
        standing = [i for i, flag in enumerate(report.flags) if flag.status is FlagStatus.CONFIRMED]
        codes = [report.flags[i].code for i in standing]
        worst = max(codes, key=lambda code: _SEVERITY.get(code, 0), default="")
        ratios = [] if report.evidence is None else report.evidence.ratio.tolist()
        PAYLOAD.pack_into(
            self._block,
            HEADER.size,
            FORMAT,
            report.state,
            self._instance,
            self._content_counter,
            report.frame,
            report.t_ns,
            sum(1 << i for i in standing),
            _number(bands.score if bands else None),
            _number(regions.score if regions else None),
            _number(regions.input_score if regions else None),
            max((ratio for ratio in ratios if not isnan(ratio)), default=nan),
            _number(consistency.score if consistency else None),
            _number(consistency.agreement if consistency else None),
            _number(report.vitals.rate_hz),
            report.vitals.latency_ns,
            self.step_ns,
            self.dropped_rows,
            self.dropped_records,
            *self._scan,
            worst.encode(),
        )
        HEADER.pack_into(self._block, 0, LENGTH, self._counter, self._data_id, 0)
        _CRC.pack_into(self._block, CRC_AT, block_crc(self._block_array))


def _number(value: float | None) -> float:
    return nan if value is None else value


def _create(path: str | Path) -> tuple[int, mmap.mmap]:
    """Open or create the file, lock it against a second writer and map it."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise InputError(path, f"cannot hold a health page: {error.strerror}") from error
    size = os.fstat(file).st_size
    if size > MAX_SIZE:
        os.close(file)
        raise InputError(path, f"cannot hold a health page: it holds {size} bytes of something else")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Reserved at once: a full tmpfs has to be an error here, not a SIGBUS at the first write.
        os.posix_fallocate(file, 0, SIZE)
        return file, mmap.mmap(file, SIZE)
    except BlockingIOError as error:
        os.close(file)
        raise InputError(path, "another monitor writes this health page") from error
    except OSError as error:
        os.close(file)
        raise InputError(path, f"cannot hold a health page: {error.strerror}") from error
