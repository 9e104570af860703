import naive
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edge_monitor.kernels.crc import TABLES, crc32


def crc(data, before=0):
    return crc32(before, np.frombuffer(bytearray(data), np.uint8), TABLES)


def test_check_value_of_the_standard():
    assert crc(b"123456789") == 0x1697D06A
    assert naive.crc32_p4(b"123456789") == 0x1697D06A


def test_equals_its_definition_at_every_length():
    data = np.random.default_rng(0).integers(0, 256, 70, np.uint8).tobytes()
    for n in range(len(data) + 1):
        assert crc(data[:n]) == naive.crc32_p4(data[:n])


@given(st.lists(st.binary(max_size=20), max_size=6))
def test_continues_where_it_stopped(parts):
    so_far, before = b"", 0
    for part in parts:
        so_far += part
        before = crc(part, before)
        assert before == naive.crc32_p4(so_far)


@given(st.binary(min_size=1, max_size=180), st.data())
def test_every_burst_of_up_to_32_bits_shows(data, draw):
    bits = len(data) * 8
    start = draw.draw(st.integers(0, bits - 1))
    burst = draw.draw(st.integers(1, 2 ** min(32, bits - start) - 1))
    damaged = (int.from_bytes(data, "little") ^ burst << start).to_bytes(len(data), "little")
    assert crc(damaged) != crc(data)
