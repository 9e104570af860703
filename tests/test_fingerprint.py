"""The fingerprint kernel against its twin."""

import naive
import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_monitor.kernels.fingerprint import fingerprint

EXAMPLES = 15 if numba.config.DISABLE_JIT else 150


@given(st.binary(max_size=640).map(lambda data: data[: len(data) // 32 * 32]))
@settings(max_examples=EXAMPLES, deadline=None)
def test_fingerprint_equals_definition(data):
    assert int(fingerprint(np.frombuffer(bytearray(data), np.uint64))) == naive.fingerprint(data)


def flipped(words, *bits):
    other = words.copy()
    for bit in bits:
        other[bit // 64] ^= np.uint64(1 << bit % 64)
    return int(fingerprint(other))


def test_every_bit_counts():
    words = np.random.default_rng(3).integers(0, 2**64, 8, np.uint64)
    clean = int(fingerprint(words))
    changes = [(flipped(words, bit) ^ clean).bit_count() for bit in range(512)]
    assert min(changes) >= 12  # 0 would be a bit that does not count; 32 +- 4 is a perfect hash
    assert np.mean(changes) == pytest.approx(32, abs=1)


def test_two_changes_do_not_cancel():
    """Top bits are the weak spot of multiplication: a float's sign is one."""
    words = np.zeros(16, np.uint64)
    tops = [64 * i + 63 for i in range(16)]
    seen = {flipped(words, a, b) for a in tops for b in tops if a < b} | {int(fingerprint(words))}
    assert len(seen) == 16 * 15 // 2 + 1


def test_order_and_length_count():
    words = np.arange(12, dtype=np.uint64)
    swapped = words.reshape(3, 4)[::-1].ravel()  # the same words in every lane
    longer = np.append(words, np.zeros(4, np.uint64))
    assert len({int(fingerprint(w)) for w in (words, swapped, longer)}) == 3
