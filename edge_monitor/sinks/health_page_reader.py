"""Reads a health page as the vehicle's software should (in C: ``firmware_configs/health_page.h``)."""

from __future__ import annotations

import mmap
import time
from enum import Enum
from pathlib import Path

import msgspec
import numpy as np

from edge_monitor.errors import InputError
from edge_monitor.reports import HealthState
from edge_monitor.sinks.health_page_layout import BLOCK, FORMAT, HEADER, LENGTH, PAYLOAD, SIZE, block_crc

_ATTEMPTS = 8
"""Looks at the page before it is called torn or corrupt: one write takes microseconds."""


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
    ``flag_table.FLAGS`` is confirmed; ``worst_flag`` is the code of the most severe of them, or empty.
    ``evidence_ratio``: largest evidence over its threshold, of all channels. ``scanned_taps``: taps whose
    voxels the last spatial block holds, ``scan_period``: frames from the block before to it; fewer and more
    than usual when the probe has to save time, 0 while there was none.
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
    scanned_taps: int
    scan_period: int
    worst_flag: str


class PageReading(msgspec.Struct, frozen=True):
    """One look at the page; ``page`` is None unless the status is OK, REPEATED or STALE."""

    status: PageStatus
    page: Page | None


class HealthPageReader:
    """Reads one health page.

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
        _, counter, data_id, _ = HEADER.unpack_from(block)
        version, *values = PAYLOAD.unpack_from(block, HEADER.size)
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
        before = self._map[:BLOCK]
        block = self._map[BLOCK:]
        if before[0] & 1 or self._map[:BLOCK] != before:
            return PageStatus.TORN, block
        length, _, _, crc = HEADER.unpack_from(block)
        if length != LENGTH:
            return PageStatus.FOREIGN, block
        if crc != block_crc(np.frombuffer(bytearray(block), np.uint8)):
            return PageStatus.CORRUPT, block
        return PageStatus.OK, block
