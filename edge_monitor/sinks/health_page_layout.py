"""Layout of the health page; ``firmware_configs/health_page.h`` is its twin in C.

A sequence lock, then one block under AUTOSAR's end-to-end protection profile 4 (length, counter,
data id, CRC; big-endian as the profile says), with a little-endian payload. The sequence is odd
while the block is being written.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from edge_monitor.kernels.crc import TABLES, crc32

FORMAT = 2

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
    ("scanned_taps", "I"),
    ("scan_period", "I"),
    ("worst_flag", "32s"),
)
"""Payload: name and `struct` code of each field; every field lies at a multiple of its size."""

HEADER = struct.Struct(">HHII")  # length, counter, data id, CRC
PAYLOAD = struct.Struct("<" + "".join(code for _, code in FIELDS))
BLOCK = 4  # where the protected block starts, behind the sequence
CRC_AT = 8  # where the CRC lies within the block
LENGTH = HEADER.size + PAYLOAD.size
SIZE = BLOCK + LENGTH
"""Bytes of the whole page, sequence included."""
MAX_SIZE = 512
"""No format of the page is larger (design section 7); a larger file is something else."""


def block_crc(block: NDArray[np.uint8]) -> int:
    """Return the CRC over a block except its CRC field, as profile 4 has it."""
    return crc32(crc32(0, block[:CRC_AT], TABLES), block[CRC_AT + 4 :], TABLES)
