"""The health page: one small memory-mapped file that the vehicle's own software reads.

Layout (``firmware_configs/health_page.h`` is its twin in C): a sequence lock, then one block under
AUTOSAR's end-to-end protection profile 4 (length, counter, data id, CRC; big-endian as the profile
says), with a little-endian payload. The file is created once and never replaced, so a reader keeps
its mapping over restarts of the monitor. When the monitor dies nobody writes, and the reader's own
deadline says so.

The sequence is odd while the block is being written. Python has no memory barrier to offer; on a
processor that reorders stores the CRC catches what the sequence lets through.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import time
from enum import Enum
from math import isnan, nan
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_monitor.errors import InputError
from edge_monitor.flags import FLAGS
from edge_monitor.kernels.crc import TABLES, crc32
from edge_monitor.types import FlagStatus, HealthReport, HealthState, MonitorInput, StatRow

FORMAT = 1

FIELDS = (
    ("format", "I"),
    ("state", "I"),
    ("instance", "Q"),
    ("content_counter", "Q"),
    ("frame", "q"),
    ("t_ns", "q"),
    ("flags", "Q"),
    ("temporal_score", "d"),
    ("spatial_score", "d"),
    ("input_score", "d"),
    ("evidence_ratio", "d"),
    ("consistency", "d"),
    ("agreement", "d"),
    ("rate_hz", "d"),
    ("latency_ns", "q"),
    ("step_ns", "d"),
    ("dropped_rows", "Q"),
    ("dropped_records", "Q"),
    ("worst_flag", "32s"),
)
"""Payload: name and `struct` code of each field; every field lies at a multiple of its size."""

_HEADER = struct.Struct(">HHII")  # length, counter, data id, CRC
_PAYLOAD = struct.Struct("<" + "".join(code for _, code in FIELDS))
_BLOCK = 4  # where the protected block starts, behind the sequence
_CRC = struct.Struct(">I")
_CRC_AT = 8  # where it lies within the block
LENGTH = _HEADER.size + _PAYLOAD.size
SIZE = _BLOCK + LENGTH
"""Bytes of the whole page, sequence included."""


def _block_crc(block: NDArray[np.uint8]) -> int:
    """CRC over a block except its CRC field, as profile 4 has it."""
    return crc32(crc32(0, block[:_CRC_AT], TABLES), block[_CRC_AT + 4 :], TABLES)


_SEVERITY = {row.code: row.severity for row in FLAGS}

_ATTEMPTS = 8
"""Looks at the page before a reader calls it torn or corrupt: one write takes microseconds."""


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
        The file cannot be made, or another monitor writes it.
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
        self._file, self._map = _create(path)
        # The counter goes on where the previous monitor stopped, so that readers see an advance.
        self._counter: int = _HEADER.unpack_from(self._map, _BLOCK)[1]
        self._lock = np.frombuffer(self._map, "<u4", count=1)
        self._sequence = int(self._lock[0]) & ~1  # even, also after a writer that died while writing
        self._target = memoryview(self._map)[_BLOCK:]
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
        _PAYLOAD.pack_into(
            self._block,
            _HEADER.size,
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
            worst.encode(),
        )
        _HEADER.pack_into(self._block, 0, LENGTH, self._counter, self._data_id, 0)
        _CRC.pack_into(self._block, _CRC_AT, _block_crc(self._block_array))


def _number(value: float | None) -> float:
    return nan if value is None else value


def _create(path: str | Path) -> tuple[int, mmap.mmap]:
    """Open or create the file, lock it against a second writer and map it."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise InputError(path, f"cannot hold a health page: {error.strerror}") from error
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


class PageStatus(Enum):
    """What a reader may think of the page it has just read.

    OK: new since the last read. REPEATED: sound and within the deadline, but nothing was written
    since the last read. STALE: sound, but older than the deadline, or from before a reboot. TORN:
    the writer was, or died, in the middle of it. CORRUPT: the CRC is wrong. FOREIGN: another
    monitor's page, another layout, or none.
    """

    OK = "ok"
    TORN = "torn"
    REPEATED = "repeated"
    FOREIGN = "foreign"
    STALE = "stale"
    CORRUPT = "corrupt"


class Page(msgspec.Struct, frozen=True):
    """The payload; unknown numbers are NaN.

    ``instance`` is drawn anew at each start of the monitor. ``content_counter`` advances only with
    a new input, so that a frozen camera does not look alive. ``flags``: bit i is set when row i of
    ``flags.FLAGS`` is confirmed; ``worst_flag`` is the code of the most severe of them, or empty.
    ``evidence_ratio``: largest evidence over its threshold, of all channels.
    """

    state: HealthState
    instance: int
    content_counter: int
    frame: int
    t_ns: int
    flags: int
    temporal_score: float
    spatial_score: float
    input_score: float
    evidence_ratio: float
    consistency: float
    agreement: float
    rate_hz: float
    latency_ns: int
    step_ns: float
    dropped_rows: int
    dropped_records: int
    worst_flag: str


class PageReading(msgspec.Struct, frozen=True):
    """One look at the page; ``page`` is None unless the status is OK, REPEATED or STALE."""

    status: PageStatus
    page: Page | None


class HealthPageReader:
    """Reads a health page as the vehicle's software should.

    Parameters
    ----------
    path : path
    data_id : int
        E2E data id of the monitor it trusts.
    deadline_ns : int
        Age from which a page is stale, on CLOCK_MONOTONIC.

    Raises
    ------
    InputError
        There is no such file, or it is too short for a page.
    """

    def __init__(self, path: str | Path, data_id: int, deadline_ns: int) -> None:
        try:
            with Path(path).open("rb") as file:
                self._map = mmap.mmap(file.fileno(), SIZE, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise InputError(path, f"no health page to read: {error}") from error
        self._data_id = data_id
        self._deadline_ns = deadline_ns
        self._last: tuple[int, int] | None = None

    def read(self) -> PageReading:
        """Take one consistent look; a reader never waits for the writer."""
        status, block = PageStatus.TORN, b""
        for _ in range(_ATTEMPTS):
            status, block = self._snapshot()
            if status is PageStatus.OK:
                break
        if status is not PageStatus.OK:
            return PageReading(status, None)
        _, counter, data_id, _ = _HEADER.unpack_from(block)
        version, *values = _PAYLOAD.unpack_from(block, _HEADER.size)
        if data_id != self._data_id or version != FORMAT:
            return PageReading(PageStatus.FOREIGN, None)
        values[0], values[-1] = HealthState(values[0]), values[-1].rstrip(b"\0").decode()
        page = Page(*values)
        if not 0 <= time.monotonic_ns() - page.t_ns <= self._deadline_ns:
            status = PageStatus.STALE
        elif (page.instance, counter) == self._last:
            status = PageStatus.REPEATED
        self._last = (page.instance, counter)
        return PageReading(status, page)

    def close(self) -> None:
        self._map.close()

    def _snapshot(self) -> tuple[PageStatus, bytes]:
        """Copy the block between two looks at the sequence, and check length and CRC."""
        before = self._map[:_BLOCK]
        block = self._map[_BLOCK:]
        if before[0] & 1 or self._map[:_BLOCK] != before:
            return PageStatus.TORN, block
        length, _, _, crc = _HEADER.unpack_from(block)
        if length != LENGTH:
            return PageStatus.FOREIGN, block
        if crc != _block_crc(np.frombuffer(bytearray(block), np.uint8)):
            return PageStatus.CORRUPT, block
        return PageStatus.OK, block
