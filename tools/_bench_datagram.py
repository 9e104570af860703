"""A row as one datagram of a Unix socket that nobody waits for: little-endian, versioned, with a checksum.

What a probe in a process of its own has to spend on every frame (design section 5).
"""

from __future__ import annotations

import socket
import struct
import tempfile
import zlib
from pathlib import Path
from types import TracebackType

from edge_monitor.types import StatRow

HEADER = struct.Struct("<HHIqqqQIII")
"""Version, kind, frame, times of capture and end, latency, fingerprint, numbers of taps, voxels, channels."""
CHECKSUM = struct.Struct("<I")


def pack(row: StatRow) -> bytes:
    """Bytes of a row."""
    spatial = row.spatial
    assert spatial is not None  # in every frame, as long as nothing is left out
    body = b"".join(
        (
            HEADER.pack(
                *(1, 1, row.frame, row.t_capture_ns or 0, row.t_ns, row.latency_ns, row.fingerprint),
                *(row.signals.size, len(spatial.voxels), spatial.channels.size),
            ),
            *(row.signals.tobytes(), row.nonfinite.tobytes(), row.picture.tobytes()),
            *(spatial.taps.tobytes(), spatial.voxels.tobytes(), spatial.channels.tobytes()),
        )
    )
    return body + CHECKSUM.pack(zlib.crc32(body))


class RowSocket:
    """Both ends of a socket; a row that finds it full is dropped and counted."""

    def __init__(self) -> None:
        self.dropped = 0
        self._folder = tempfile.TemporaryDirectory()
        path = str(Path(self._folder.name) / "rows")
        self._receiver, self._sender = (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2))
        self._receiver.bind(path)
        self._sender.connect(path)
        for end in (self._receiver, self._sender):
            end.setblocking(False)

    def __enter__(self) -> RowSocket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sender.close()
        self._receiver.close()
        self._folder.cleanup()

    def send(self, row: StatRow) -> None:
        try:
            self._sender.send(pack(row))
        except BlockingIOError:
            self.dropped += 1

    def read(self) -> None:
        """Take in what has been sent: Linux holds back ten datagrams or so."""
        try:
            while True:
                self._receiver.recv(1 << 16)
        except BlockingIOError:
            return
