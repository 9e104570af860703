"""Benchmarks of what follows a row: the monitor's step, its sinks, the whole of it, its process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np
from _bench_measure import Effort, UnavailableError, durations_us
from _bench_models import DEMO, one_thread
from _bench_rows import RATE_HZ, TAPS, synthetic_rows

from edge_monitor.config import HealthPageSettings, MonitorSettings, RecordingSettings, SinkSettings
from edge_monitor.fault_head import n_inputs
from edge_monitor.map_file import load_region_map, save_region_map
from edge_monitor.offline.calibrate import calibrate
from edge_monitor.offline.fault_bank import head_faults
from edge_monitor.offline.head_training import HIDDEN
from edge_monitor.offline.observe import Images, Observed
from edge_monitor.offline.tract_baseline import watch_tracts
from edge_monitor.pipeline import Monitor
from edge_monitor.region_map import FaultHead, Golden, Neutrality, RegionMap, Runtime, TapNeutrality
from edge_monitor.reports import FlagStatus
from edge_monitor.service import Watch, open_probe, open_sinks
from edge_monitor.sinks.queued import Sink
from edge_monitor.sources.scenes import Road
from edge_monitor.taps.onnx import open_session

WARM_UP = 512
"""Rows until every window of the monitor is full, and more."""
CHILD = Path(__file__).with_name("_bench_child.py")


@cache
def synthetic_map() -> RegionMap:
    """Region map of synthetic rows, with every tract watched and a fault head of random weights."""
    frames = np.zeros((1, *TAPS[0].shape), np.float32)
    golden = Golden(frames, np.zeros((1, 10)), np.zeros((1, len(TAPS))), 1e-5)
    rows = list(synthetic_rows(3000, seed=0))
    images = Images(frames, np.zeros((1, sum(tap.n_voxels for tap in TAPS), 3)))
    checks = tuple(TapNeutrality(tap.name, "float32", 0.0, 0.0, 0.0) for tap in TAPS[1:])
    neutrality = Neutrality("none", "none", 1, 0.0, 0.0, checks, ())
    origin = ("none", "0" * 64, "synthetic", 0, RATE_HZ, TAPS, rows, golden, Runtime.here())
    region_map = calibrate(Observed(*origin, b"", images, neutrality))
    traced = region_map.tracts
    known = msgspec.structs.replace(
        traced,
        strength=np.ones_like(traced.strength),
        fidelity=np.ones_like(traced.strength),
        gate=np.full_like(traced.gate, 0.5),
    )
    # Rows that vary independently have more directions than so few of them show: wider limits keep the
    # monitor calm on fresh ones, for what is measured is a healthy stream.
    learnt = region_map.residual
    wide = msgspec.structs.replace(learnt, whitening=0.5 * learnt.whitening, shift=0.5 * learnt.shift)
    rng = np.random.default_rng(0)
    n, names = n_inputs(TAPS), head_faults()
    head = FaultHead(
        names=names,
        mean=np.zeros(n),
        scale=np.ones(n),
        hidden=0.01 * rng.standard_normal((n + 1, HIDDEN)),
        output=0.01 * rng.standard_normal((HIDDEN + 1, 1 + len(names))),
        accuracy=None,
    )
    tracts = watch_tracts(known, TAPS, rows)
    evidence = msgspec.structs.replace(region_map.evidence, threshold=20.0 * region_map.evidence.threshold)
    crossmodal = msgspec.structs.replace(region_map.crossmodal, least_agreement=-np.inf)
    return msgspec.structs.replace(
        region_map, residual=wide, tracts=tracts, faults=head, evidence=evidence, crossmodal=crossmodal
    )


def monitor_step(percentile: float, *, light: bool = False) -> Callable[[Effort], list[float]]:
    """Percentile of the duration of `Monitor.step` in microseconds."""

    def measure(effort: Effort) -> list[float]:
        monitor = Monitor(synthetic_map(), MonitorSettings(light=light))
        rows = synthetic_rows(WARM_UP + effort.blocks * effort.repeats, seed=1)
        for row in islice(rows, WARM_UP):
            monitor.step(row)
        values = [
            float(np.percentile(durations_us(monitor.step, zip(islice(rows, effort.repeats))), percentile))
            for _ in range(effort.blocks)
        ]
        standing = [flag.code for flag in monitor.report.flags if flag.status is not FlagStatus.INACTIVE]
        if standing:
            raise AssertionError(
                f"healthy rows raise {standing}; their time says nothing of a healthy stream"
            )
        return values

    return measure


def health_page_write(effort: Effort) -> list[float]:
    """Median duration of `HealthPageSink.write` in microseconds."""
    return sink_write(effort, "health_page", pause_s=0.0)


def recording_write(effort: Effort) -> list[float]:
    """Median duration of handing a row to the recording's queue in microseconds.

    A pause between the rows keeps the queue short: from a full one rows are dropped, which is faster.
    """
    return sink_write(effort, "recording", pause_s=0.002)


def sink_write(effort: Effort, kind: str, pause_s: float) -> list[float]:
    monitor = Monitor(synthetic_map())
    rows = synthetic_rows(effort.blocks * effort.repeats, seed=1)

    def items() -> Iterator[tuple]:
        for row in islice(rows, effort.repeats):
            yield row, monitor.step(row)
            time.sleep(pause_s)

    with open_folder_sinks(synthetic_map(), kind) as (sink,):
        values = [float(np.median(durations_us(sink.write, items()))) for _ in range(effort.blocks)]
        if getattr(sink, "dropped", 0):
            raise AssertionError(f"{kind} dropped {sink.dropped} rows; their time says nothing")
    return values


@contextmanager
def open_folder_sinks(region_map: RegionMap, *kinds: str) -> Iterator[list[Sink]]:
    """Sinks as the service opens them, in a folder that is removed again."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "health_page": HealthPageSettings(f"{folder}/page"),
            "recording": RecordingSettings(folder),
        }
        chosen = SinkSettings(journal=False, **{kind: settings[kind] for kind in kinds})
        _, sinks = open_sinks(chosen, region_map, MonitorSettings())
        try:
            yield sinks
        finally:
            for sink in sinks:
                sink.close()


def frame_share(effort: Effort) -> list[float]:
    """Percent of a 33.3 ms period that probe, monitor, health page and recording cost per frame.

    Processor time of all threads, writing the recording included, on the demo model and road; a plain
    run of the model is taken off.
    """
    map_path = DEMO.with_name("demo_map.npz")
    if not (DEMO.is_file() and map_path.is_file()):
        raise UnavailableError(f"{DEMO} or {map_path.name} is missing")
    plain = open_session(DEMO.read_bytes(), (), one_thread())
    region_map = load_region_map(map_path)
    monitor = Monitor(region_map)
    name = plain.get_inputs()[0].name
    road = Road(2000)
    n_frames = 200  # fewer than the recording's queue holds: none is dropped
    shares = []
    for _ in range(1 + max(2, effort.blocks // 3)):
        scenes = list(islice(road, n_frames))
        feeds = [
            {name: np.ascontiguousarray(scene.image.transpose(2, 0, 1)[None], np.float32)} for scene in scenes
        ]
        start = time.process_time()
        for feed in feeds:
            plain.run(None, feed)
        plain_s = time.process_time() - start
        with open_folder_sinks(region_map, "health_page", "recording") as sinks:
            watch = Watch(monitor, sinks)
            probe = open_probe(DEMO, region_map, watch)
            start = time.process_time()
            for scene, feed in zip(scenes, feeds, strict=True):
                probe.note(scene.t_capture_ns, speed_mps=scene.speed_mps, exposure=scene.exposure)
                probe.run(None, feed)
            watch.close()
            watched_s = time.process_time() - start
        if probe.unobserved or any(getattr(sink, "dropped", 0) for sink in sinks):
            raise AssertionError("not every frame was watched and recorded")
        shares.append(100 * (watched_s - plain_s) / n_frames * 30)
    return shares[1:]  # the monitor's windows fill in the first


def memory_over(mode: str) -> Callable[[Effort], list[float]]:
    """Peak MiB of a process that steps a monitor over that of one that does what ``mode`` says."""

    def measure(effort: Effort) -> list[float]:
        n_rows = str(50 * effort.repeats)
        with saved_map() as path:
            start_child("serve", path, "1")  # fills the kernels' cache
            return [
                start_child("serve", path, n_rows)[1] - start_child(mode)[1] for _ in range(effort.processes)
            ]

    return measure


def start_to_ready(effort: Effort) -> list[float]:
    """Seconds from starting Python to a monitor that is ready, kernels cached."""
    with saved_map() as path:
        start_child("serve", path, "1")  # fills the kernels' cache
        return [start_child("serve", path, "1")[0] for _ in range(effort.processes)]


@contextmanager
def saved_map() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        save_region_map(synthetic_map(), f"{folder}/map.npz")
        yield f"{folder}/map.npz"


def start_child(*arguments: str) -> tuple[float, float]:
    """Run the child; seconds to its READY, and its peak memory in MiB."""
    start = time.perf_counter()
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, str(CHILD), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        process.stdout.readline()
        elapsed = time.perf_counter() - start
        peak = process.stdout.read()
    if process.returncode:
        raise UnavailableError(f"{CHILD.name} {' '.join(arguments)} ended with {process.returncode}")
    return elapsed, float(peak)
