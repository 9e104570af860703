"""64-bit fingerprint of the sampled input: equal frames have equal ones, one changed bit never does.

Four independent lanes hide the multiplier's latency. Each lane takes in a word by a round like that
of XXH64 [1]_ (multiply, xor, rotate, multiply); the lanes are then joined one by one and avalanched [2]_.
Every step is one-to-one in the running value and in the word alike, so a change of words of one lane
only, above all a single changed bit, always changes the result (test_fingerprint.py::test_every_bit_counts).
All arithmetic is modulo 2^64. Not a cryptographic hash.

References
----------
.. [1] Y. Collet, "xxHash fast digest algorithm", specification 0.1.1, 2018.
.. [2] D. Stafford, "Better bit mixing: improving on MurmurHash3's 64-bit finalizer", 2011 (variant 13).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_monitor.kernels._jit import kernel

LANES = 4

# Unsigned constants: Numba would turn uint64 combined with a signed integer into float64.
_PRIME_1 = np.uint64(0x9E3779B185EBCA87)
_PRIME_2 = np.uint64(0xC2B2AE3D27D4EB4F)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_27, _30, _31, _33 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(33)


@kernel("uint64(uint64, uint64)")
def absorb(lane: np.uint64, word: np.uint64) -> np.uint64:
    """One round: the running value after ``word``."""
    mixed = lane ^ (word * _PRIME_2)
    return ((mixed << _31) | (mixed >> _33)) * _PRIME_1


@kernel("uint64(uint64[::1])")
def fingerprint(words: NDArray[np.uint64]) -> np.uint64:
    """Hash of ``words`` (n,) uint64, n a multiple of `LANES`."""
    a, b, c, d = _PRIME_1, _PRIME_2, _MIX_1, _MIX_2
    for i in range(0, words.size, LANES):
        a = absorb(a, words[i])
        b = absorb(b, words[i + 1])
        c = absorb(c, words[i + 2])
        d = absorb(d, words[i + 3])
    joined = absorb(absorb(absorb(a, b), c), d)
    joined = (joined ^ (joined >> _30)) * _MIX_1
    joined = (joined ^ (joined >> _27)) * _MIX_2
    return joined ^ (joined >> _31)
