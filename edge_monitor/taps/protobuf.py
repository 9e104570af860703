"""Protocol Buffers wire format, as little of it as reading and extending a model file needs.

Source: the encoding page of the Protocol Buffers documentation. A message is a sequence of
(tag, value); the tag is a varint that holds field number and wire type. Decoders merge repeated
occurrences of a message, so appending bytes to a message extends it.
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10


def read_fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (field number, value) of every field of a message, in file order.

    Varints arrive as unsigned integers; strings, bytes, messages and fixed-width numbers as views
    of ``message``, never copied.

    Raises
    ------
    ValueError
        The bytes are no message: truncated, an unknown wire type, field number 0.
    """
    position = 0
    while position < len(message):
        tag, position = _read_varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        if number == 0:
            raise ValueError(f"field number 0 at byte {position - 1}")
        if wire_type == _VARINT:
            value, position = _read_varint(message, position)
            yield number, value
            continue
        if wire_type == _BYTES:
            length, position = _read_varint(message, position)
        elif wire_type in (_FIXED64, _FIXED32):
            length = 8 if wire_type == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire_type} at byte {position - 1}")
        end = position + length
        if end > len(message):
            raise ValueError(f"field {number} ends {end - len(message)} bytes beyond the end")
        yield number, message[position:end]
        position = end


def submessages(message: memoryview, number: int) -> Iterator[memoryview]:
    """Every occurrence of one message or string field."""
    for field, value in read_fields(message):
        if field == number and isinstance(value, memoryview):
            yield value


def texts(message: memoryview, number: int) -> tuple[str, ...]:
    """Every occurrence of one string field."""
    return tuple(str(value, "utf-8") for value in submessages(message, number))


def read_varints(value: int | memoryview) -> list[int]:
    """Elements of one occurrence of a repeated varint field, which may be packed.

    Raises
    ------
    ValueError
        A packed element does not end.
    """
    if isinstance(value, int):
        return [value]
    elements, position = [], 0
    while position < len(value):
        element, position = _read_varint(value, position)
        elements.append(element)
    return elements


def bytes_field(number: int, payload: bytes | memoryview) -> bytes:
    """Encode one field of type string, bytes or message."""
    return _varint(number << 3 | _BYTES) + _varint(len(payload)) + payload


def encode_field(number: int, value: int | memoryview) -> bytes:
    """Encode a field as `read_fields` gives it, but for numbers of a fixed width, which come as bytes."""
    if isinstance(value, int):
        return _varint(number << 3 | _VARINT) + _varint(value)
    return bytes_field(number, bytes(value))


def _read_varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return the unsigned varint at ``position`` and the position behind it."""
    value = 0
    for index, byte in enumerate(message[position : position + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position + index + 1
    raise ValueError(f"varint at byte {position} does not end")


def _varint(value: int) -> bytes:
    """Encode an unsigned integer, seven bits a byte, lowest first."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
