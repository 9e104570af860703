"""The stages of the benchmark, one after the other, their tasks in several processes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context

from _detection_compare import keep_comparison, keep_scores
from _detection_config import BUDGETS
from _detection_events import judge_scene
from _detection_peers import PEERS
from _detection_system import (
    Bench,
    calibrated,
    collect_trip,
    heads,
    keep_alarms,
    keep_maps,
    other_bank,
)
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

Task = Callable[[], int]

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def stages(bench: Bench) -> dict[str, list[Task]]:
    """Tasks of every stage; those of one stage do not need each other."""
    scenes = [(split, k) for split in ("test", "ramp", "design") for k in range(len(bench.plans(split)))]
    trips = [plan for split in ("fresh", "test", "ramp", "design") for plan in bench.plans(split)]
    return {
        "drive": [partial(collect_trip, bench, plan) for plan in bench.plans("pool")],
        "calibrate": [partial(calibrated, bench), *(partial(collect_trip, bench, plan) for plan in trips)],
        "bank": [partial(other_bank, bench), partial(keep_maps, bench, "")],
        "heads": [partial(keep_maps, bench, head) for head in heads()],
        "alarms": [partial(keep_alarms, bench, b, part) for part in ("fresh", "judge") for b in BUDGETS],
        "faults": [partial(judge_scene, bench, split, k) for split, k in scenes],
        "peers": [partial(keep_scores, bench, peer) for peer in sorted(PEERS, key="ADWIN".__ne__)],
        "compare": [partial(keep_comparison, bench)],
    }


def run(bench: Bench, processes: int, console: Console) -> dict[str, float]:
    """Run all stages; the seconds that each took, in all runs. What is in the cache is not made again."""
    for name in THREADS:  # the processes shall not fight for the cores
        os.environ[name] = "1"
    kept = bench.results / "seconds.json"
    seconds: dict[str, float] = json.loads(kept.read_text()) if kept.exists() else {}
    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        for name, tasks in stages(bench).items():
            bar = progress.add_task(_title(bench, name), total=len(tasks))
            started = time.perf_counter()
            try:
                _run_all(tasks, processes, partial(progress.advance, bar))
            finally:
                seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started
                kept.write_text(json.dumps(seconds))
    return seconds


def _title(bench: Bench, stage: str) -> str:
    return f"{bench.configuration.name} {bench.mode.name}: {stage}"


def _run_all(tasks: Sequence[Task], processes: int, advance: Callable[[], None]) -> None:
    """Run tasks in new processes, which forget what they held when the stage is done."""
    with ProcessPoolExecutor(min(processes, len(tasks)), mp_context=get_context("spawn")) as executor:
        futures = [executor.submit(task) for task in tasks]
        try:
            for future in as_completed(futures):
                future.result()
                advance()
        except BaseException:
            executor.shutdown(cancel_futures=True)
            raise
