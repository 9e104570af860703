"""What is odd about the clean frames themselves: pictures that never vary, or that repeat bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from edge_monitor.types import StatRow

FEW = 0.01
"""Up to this share of repeated frames is not worth a word: a black tunnel, a cut of a few frames."""


def frame_remarks(rows: Sequence[StatRow]) -> Iterator[str]:
    """Say so when frames repeat, as far as their fingerprints tell."""
    marks = [row.fingerprint for row in rows]
    repeats = len(marks) - len(set(marks))
    if len(marks) > 1 and repeats == len(marks) - 1:
        yield f"all {len(marks)} frames are the same picture bit for bit: nothing that varies can be learnt"
        return
    if repeats <= FEW * len(marks):
        return
    held = sum(before == mark for before, mark in pairwise(marks))
    yield (
        f"{repeats} of {len(marks)} frames repeat an earlier one bit for bit, {held} of them the one just "
        "before: they count as hours of clean frames and add nothing"
    )
    if held > FEW * len(marks):
        yield "INPUT_FROZEN takes held frames for a fault, unless monitor: {repeats_by_nature: true}"
