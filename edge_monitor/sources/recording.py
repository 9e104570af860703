"""Reads a recording back: every input exactly as the monitor got it, with its report's digest.

The file is read from front to back and never through its index, so one cut by a power loss gives
everything but its last chunk. What the messages hold is written down in ``sinks/recording.py``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from mcap.exceptions import McapError
from mcap.records import Attachment, Channel, McapRecord, Message, Metadata
from mcap.stream_reader import StreamReader
from mcap.writer import MCAP0_MAGIC
from zstandard import ZstdError

from edge_monitor.errors import RecordingError
from edge_monitor.types import (
    FloatArray,
    MonitorInput,
    OutputSummary,
    ProbeEvent,
    SpatialBlock,
    StatRow,
    Tick,
)

FORMAT = "1"

# All that the MCAP reader is known to raise over cut or damaged bytes (tests/test_recording.py cuts and
# damages at random); CRC errors are ValueErrors.
_DAMAGE = (McapError, ZstdError, struct.error, ValueError, OverflowError, MemoryError)


class RecordingReader:
    """One recording.

    Parameters
    ----------
    path : path

    Attributes
    ----------
    metadata : dict of str to str
        As given to the recording.
    truncated : bool
        The end is missing. Known at once for a file that was cut; `items` sets it when it meets
        damage within.
    lost : int
        Inputs that did not reach the recording, as far as `items` has come. The reports after a
        loss cannot be reproduced.

    Raises
    ------
    RecordingError
        The file is missing, no MCAP file, not a recording of this format, or holds no input.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        try:
            self._size = self._path.stat().st_size
            with self._path.open("rb") as file:
                magic = file.read(len(MCAP0_MAGIC))
                file.seek(max(0, self._size - len(MCAP0_MAGIC)))
                self.truncated = file.read() != MCAP0_MAGIC
        except OSError as error:
            raise RecordingError(path, f"cannot be read: {error.strerror}") from error
        if magic != MCAP0_MAGIC:
            problem = "is no MCAP file" if magic else "is an empty file"
            raise RecordingError(path, problem)
        self.lost = 0
        self.metadata: dict[str, str] = {}
        self._region_map_bytes = b""
        self._read_head()

    def region_map_bytes(self) -> bytes:
        """Return the region map's file.

        Raises
        ------
        RecordingError
            The recording was made without a region map.
        """
        if not self._region_map_bytes:
            raise RecordingError(self._path, "holds no region map")
        return self._region_map_bytes

    def items(self) -> Iterator[tuple[MonitorInput, str]]:
        """Yield every input in recorded order with the digest of the report on it.

        Raises
        ------
        RecordingError
            A message is not what its channel should hold.
        """
        self.lost = 0
        topics: dict[int, str] = {}
        item: MonitorInput | None = None
        count = 0
        for record in self._records():
            if isinstance(record, Channel):
                topics[record.id] = record.topic
            elif isinstance(record, Message):
                topic = topics.get(record.channel_id, "")
                if topic in _ITEMS:
                    if record.sequence != count:  # a chunk between the last input and this one is gone
                        self.truncated = True
                        return
                    item = self._decode(record, topic, _ITEMS[topic])
                    count += 1
                elif topic == "/digest" and item is not None:
                    yield item, self._decode(record, topic, lambda message: str(message["digest"]))
                elif topic == "/lost":
                    self.lost += self._decode(record, topic, lambda message: int(message["count"]))

    def _decode(self, record: Message, topic: str, build: Callable[[dict[str, Any]], Any]) -> Any:  # noqa: ANN401 - what ``build`` makes
        try:
            return build(msgspec.json.decode(record.data))
        except (msgspec.MsgspecError, LookupError, TypeError, ValueError) as error:
            problem = f"{topic} message {record.sequence} cannot be read: {error!r}"
            raise RecordingError(self._path, problem) from error

    def _records(self) -> Iterator[McapRecord]:
        """Yield the records in file order, up to the end or the first damage."""
        with self._path.open("rb") as file:
            reader = StreamReader(file, validate_crcs=True, record_size_limit=self._size)
            try:
                yield from reader.records
            except _DAMAGE:
                self.truncated = True

    def _read_head(self) -> None:
        """Read what stands before the first input."""
        for record in self._records():
            if isinstance(record, Metadata) and record.name == "edge_monitor":
                self.metadata = dict(record.metadata)
            elif isinstance(record, Attachment) and record.name == "region_map.npz":
                self._region_map_bytes = record.data
            elif isinstance(record, Message):
                break
        else:
            problem = "was cut before the first input" if self.truncated else "holds no input"
            raise RecordingError(self._path, problem)
        version = self.metadata.pop("recording_format", None)
        if version is None:
            raise RecordingError(self._path, "is an MCAP file, but no recording of a monitor")
        if version != FORMAT:
            raise RecordingError(self._path, f"has recording format {version}, not {FORMAT}")


def _take(message: dict[str, Any], name: str) -> FloatArray:
    """Float array with its non-finite values put back, one dimension."""
    array = np.array(message[name], np.float64)
    for kind, value in (("nan", np.nan), ("inf", np.inf), ("ninf", -np.inf)):
        array[message.get(f"{name}_{kind}", [])] = value
    return array


def _row(message: dict[str, Any]) -> StatRow:
    spatial = output = None
    context: dict[str, float] = {}
    if "spatial_frames" in message:
        spatial = SpatialBlock(
            frames=message["spatial_frames"],
            taps=np.array(message["spatial_taps"], np.bool_),
            voxels=_take(message, "voxels").reshape(-1, 3),
            channels=_take(message, "channels"),
        )
    if "output_top1" in message:
        output = OutputSummary(
            top1=message["output_top1"],
            confidence=message.get("output_confidence"),
            entropy=message.get("output_entropy"),
            nonfinite=message["output_nonfinite"],
        )
    if "context_names" in message:
        values = _take(message, "context_values").tolist()
        context = dict(zip(message["context_names"], values, strict=True))
    return StatRow(
        frame=message["frame"],
        t_ns=message["t_ns"],
        latency_ns=message["latency_ns"],
        signals=_take(message, "signals"),
        nonfinite=np.array(message["nonfinite"], np.int64),
        fingerprint=message["fingerprint"],
        t_capture_ns=message.get("t_capture_ns"),
        spatial=spatial,
        output=output,
        context=context,
        picture=_take(message, "picture") if "picture" in message else None,
    )


_ITEMS: dict[str, Callable[[dict[str, Any]], MonitorInput]] = {
    "/row": _row,
    "/tick": lambda message: Tick(message["t_ns"]),
    "/event": lambda message: ProbeEvent(message["t_ns"], message["code"], message["detail"]),
}
