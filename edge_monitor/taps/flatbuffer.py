"""FlatBuffers wire format, as little of it as reading a model file and repointing its vectors needs.

Source: the "Internals" page of the FlatBuffers documentation. A file begins with the distance to its
root table and four characters that name its kind. A table begins with the signed distance back to its
vtable, which says where in the table each field lies (0: absent, its default holds). Tables, vectors
and strings lie behind what refers to them, by an unsigned distance. All numbers are little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Literal

_SIZES = {"b": 1, "B": 1, "H": 2, "i": 4, "I": 4, "f": 4, "q": 8, "Q": 8}
Code = Literal["b", "B", "H", "i", "I", "f", "q", "Q"]
"""Number types, by the letters of the standard library's ``struct``."""

# What a file may cost: vectors decoded, in sizes of the file, for a sound one refers to hardly any of
# them twice (test_overlapping_vectors_are_refused), and in bytes, for all but the weights is small.
_MAX_READINGS, _MAX_DECODED = 8, 1 << 24


class FlatBuffer:
    """Bytes of a flatbuffer, every read of which is checked against their end.

    Parameters
    ----------
    data : bytes
        The whole file.
    identifier : bytes
        The four characters that name its kind.

    Raises
    ------
    ValueError
        The file is of another kind or shorter than its head. So do all methods, of tables too, when
        something lies outside the file.
    """

    def __init__(self, data: bytes, identifier: bytes) -> None:
        if data[4:8] != identifier:
            raise ValueError(f"identifier {data[4:8]!r} instead of {identifier!r}")
        self._data = data
        self._undecoded = min(_MAX_READINGS * len(data), _MAX_DECODED)

    def root(self) -> Table:
        return Table(self, self.number("I", 0))

    def check(self, start: int, n_bytes: int) -> None:
        if start < 0 or start + n_bytes > len(self._data):
            raise ValueError(f"bytes {start} to {start + n_bytes} of {len(self._data)}")

    def number(self, code: Code, position: int) -> int:
        self.check(position, _SIZES[code])
        return int(struct.unpack_from(f"<{code}", self._data, position)[0])

    def span(self, position: int, size: int) -> tuple[int, int]:
        """First byte and number of elements, of ``size`` bytes each, of the vector at ``position``."""
        length = self.number("I", position)
        self.check(position + 4, length * size)
        return position + 4, length

    def vector(self, code: Code, position: int) -> tuple[Any, ...]:
        """Elements of the vector at ``position``."""
        start, length = self.span(position, _SIZES[code])
        self._pay(length * _SIZES[code])
        return struct.unpack_from(f"<{length}{code}", self._data, start)

    def text(self, position: int) -> str:
        """Return the string at ``position``; what is no UTF-8 in it is replaced."""
        start, length = self.span(position, 1)
        self._pay(length)
        return self._data[start : start + length].decode("utf-8", "replace")

    def _pay(self, n_bytes: int) -> None:
        self._undecoded -= n_bytes
        if self._undecoded < 0:
            raise ValueError("more to read than a file of this size can hold")


class Table:
    """One table; fields are asked for by number."""

    def __init__(self, buffer: FlatBuffer, position: int) -> None:
        self._buffer, self._start = buffer, position
        self._vtable = position - buffer.number("i", position)
        self._vtable_size = buffer.number("H", self._vtable)
        if self._vtable_size < 4:  # as everywhere in a run of zeros
            raise ValueError(f"no table at byte {position}")
        buffer.check(position, buffer.number("H", self._vtable + 2))

    def position(self, field: int) -> int | None:
        """Byte at which a field lies, None when it is absent."""
        slot = 4 + 2 * field
        if slot + 2 > self._vtable_size:
            return None
        distance = self._buffer.number("H", self._vtable + slot)
        return self._start + distance if distance else None

    def number(self, field: int, code: Code) -> int:
        """Return an integer, 0 when it is absent."""
        position = self.position(field)
        return 0 if position is None else self._buffer.number(code, position)

    def target(self, field: int) -> int | None:
        """Byte to which a field refers, None when it is absent."""
        position = self.position(field)
        return None if position is None else position + self._buffer.number("I", position)

    def table(self, field: int) -> Table | None:
        target = self.target(field)
        return None if target is None else Table(self._buffer, target)

    def tables(self, field: int) -> Iterator[Table]:
        """Tables of a vector of tables, none when it is absent."""
        target = self.target(field)
        if target is not None:
            for place, distance in enumerate(self._buffer.vector("I", target), 1):
                yield Table(self._buffer, target + 4 * place + distance)

    def vector(self, field: int, code: Code) -> tuple[Any, ...]:
        """Numbers of a vector, none when it is absent."""
        target = self.target(field)
        return () if target is None else self._buffer.vector(code, target)

    def n_bytes(self, field: int) -> int:
        """Length of a vector of bytes, which is not decoded; 0 when it is absent."""
        target = self.target(field)
        return 0 if target is None else self._buffer.span(target, 1)[1]

    def text(self, field: int) -> str:
        """Return a string, empty when it is absent."""
        target = self.target(field)
        return "" if target is None else self._buffer.text(target)
