"""Numbered messages waiting to be sent: bounded, the most important first."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

import msgspec

from edge_monitor.sinks.telemetry import STREAMS, Dropped, DroppedMessage, Numbered


class SendQueue:
    """Numbers messages and keeps the most important ones. Safe to use from several threads.

    The queue lives in memory: what is in it when the process ends is lost.

    Parameters
    ----------
    limit : int
        Messages kept. Beyond it the oldest message of the least important stream is dropped.

    Attributes
    ----------
    dropped : int
        Messages that will never arrive.
    """

    def __init__(self, limit: int) -> None:
        self.dropped = 0
        self._limit = limit
        self._lines: dict[str, deque[Numbered]] = {stream: deque() for stream in STREAMS}
        self._next = dict.fromkeys(STREAMS, 0)
        self._gaps: deque[Dropped] = deque()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def put(self, message: Numbered) -> None:
        """Give the message the next number of its stream and queue it."""
        with self._lock:
            seq = self._next[message.stream]
            self._next[message.stream] = seq + 1
            self._lines[message.stream].append(msgspec.structs.replace(message, seq=seq))
            self._trim()

    def take(self) -> Numbered | None:
        """Remove and return the next message to send."""
        with self._lock:
            for line in self._lines.values():
                if line:
                    return line.popleft()
        return None

    def give_back(self, messages: Sequence[Numbered]) -> None:
        """Queue messages again, oldest first, in front of all others of their stream."""
        with self._lock:
            for message in reversed(messages):
                self._lines[message.stream].appendleft(message)
            self._trim()

    def drop(self, message: Numbered, reason: str) -> None:
        """Count a message that the broker refused, and remember to declare it.

        A refused event is only counted: its declaration is an event too, and would be refused.
        """
        with self._lock:
            if message.stream == "event":
                self.dropped += 1
            else:
                self._drop(message, reason)

    def next_gap(self) -> Dropped | None:
        """Return a gap to declare, once, and only while there is room for the declaration."""
        with self._lock:
            return self._gaps.popleft() if self._gaps and len(self) < self._limit else None

    def next_numbers(self) -> dict[str, int]:
        """Return the number that each stream's next message will get."""
        with self._lock:
            return dict(self._next)

    def _trim(self) -> None:
        while len(self) > self._limit:
            line = next(line for line in reversed(self._lines.values()) if line)
            self._drop(line.popleft(), "queue full")

    def _drop(self, message: Numbered, reason: str) -> None:
        self.dropped += 1
        if isinstance(message, DroppedMessage):
            self._gaps.append(message.data)
        assert message.seq is not None
        last = self._gaps[-1] if self._gaps else None
        if (
            last is not None
            and (last.stream, last.reason) == (message.stream, reason)
            and last.last + 1 == message.seq
        ):
            self._gaps[-1] = msgspec.structs.replace(last, last=message.seq)
        else:
            self._gaps.append(Dropped(message.stream, message.seq, message.seq, reason))
