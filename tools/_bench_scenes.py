"""Benchmark of the demo road: frames per second of one core."""

from __future__ import annotations

import time
from itertools import islice

from _bench_measure import Effort

from edge_monitor.sources.scenes import FRAME_RATE_HZ, Road

TRIP = 2000


def render_rate(effort: Effort) -> list[float]:
    """Frames per second of processor time, a minute's drive a block; a first minute warms up."""
    road = Road(TRIP)
    rates = []
    for _ in range(effort.blocks + 1):
        start_s = time.process_time()
        frames = sum(1 for _ in islice(road, 60 * FRAME_RATE_HZ))
        rates.append(frames / (time.process_time() - start_s))
    return rates[1:]
