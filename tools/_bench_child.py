"""What the process benchmarks start; prints READY, then its peak memory in MiB.

``imports``: the libraries alone. ``compiler``: these, and one compiled function. ``serve MAP ROWS``:
a monitor that takes in so many rows.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(mode: str, *arguments: str) -> None:
    if mode == "serve":
        serve(*arguments)
    else:
        import numba  # noqa: PLC0415
        import numpy as np  # noqa: F401, PLC0415
        import onnxruntime  # noqa: F401, PLC0415

        if mode == "compiler":
            numba.njit("float64(float64)")(abs_plus_one)
        print("READY", flush=True)
    print(peak_mib())


def serve(map_path: str, n_rows: str) -> None:
    # As the service imports it, with all its sinks; and as it runs a model, which is none of its own.
    import onnxruntime  # noqa: F401, PLC0415

    from edge_monitor.service import Monitor, Watch  # noqa: PLC0415

    watch = Watch(Monitor.load(map_path), ())
    print("READY", flush=True)
    from _bench_rows import synthetic_rows  # noqa: PLC0415

    for row in synthetic_rows(int(n_rows), seed=1):
        watch.feed(row)


def abs_plus_one(x: float) -> float:
    return abs(x) + 1.0


def peak_mib() -> float:
    """Peak resident memory. Not ``ru_maxrss``: Linux starts that at the parent's own."""
    status = Path("/proc/self/status").read_text()
    kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(kib) / 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
