"""The running monitor: the only file that touches the world's clock and signals."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType

import msgspec
import numpy as np

from edge_monitor.config import Config, MonitorSettings, SinkSettings
from edge_monitor.errors import InputError, about
from edge_monitor.map_file import load_region_map, to_bytes
from edge_monitor.observer import Observer
from edge_monitor.pipeline import Monitor
from edge_monitor.probe import Probe
from edge_monitor.region_map import RegionMap, Runtime
from edge_monitor.reports import HealthReport
from edge_monitor.sinks.health_page import HealthPageSink
from edge_monitor.sinks.journal import JournalSink
from edge_monitor.sinks.mqtt import MqttSink
from edge_monitor.sinks.queued import QueuedSink, Sink
from edge_monitor.sinks.recording import RecordingSink
from edge_monitor.sources.frames import FrameSource
from edge_monitor.taps.known_model import load_known_model
from edge_monitor.taps.model_file import serving_runtime
from edge_monitor.types import MonitorInput, Tick

STEP_SAMPLES = 4096
"""Durations of `Monitor.feed` that are kept for their median."""
STOP_S = 0.1
"""Longest wait between two looks at whether `Service.stop` was called."""
TELL_S = 1.0
"""Pause between two looks at what the sinks complain about."""


class Watch:
    """A monitor with its sinks: whatever is fed goes through the one and then to all the others.

    Parameters
    ----------
    monitor : Monitor
    sinks : sequence of Sink
        Written in this order; none of them blocks or raises.

    Attributes
    ----------
    confirmed : int
        Flags confirmed so far.
    """

    def __init__(self, monitor: Monitor, sinks: Sequence[Sink]) -> None:
        self.monitor = monitor
        self.sinks = tuple(sinks)
        self.confirmed = 0
        self._pages = [sink for sink in sinks if isinstance(sink, HealthPageSink)]
        self._steps_ns = np.zeros(STEP_SAMPLES, np.int64)
        self._fed = 0

    def feed(self, item: MonitorInput) -> HealthReport:
        """Feed the monitor and tell every sink."""
        start_ns = time.perf_counter_ns()
        report = self.monitor.feed(item)
        step_ns = time.perf_counter_ns() - start_ns
        self._steps_ns[self._fed % STEP_SAMPLES] = step_ns
        self._fed += 1
        self.confirmed += sum(transition.after == "confirmed" for transition in report.transitions)
        for page in self._pages:
            page.step_ns = step_ns
            page.dropped_records = sum(
                getattr(sink, "dropped", 0) + getattr(sink, "failed", 0) for sink in self.sinks
            )
        for sink in self.sinks:
            sink.write(item, report)
        return report

    def step_us_p50(self) -> float:
        """Median duration of `Monitor.feed` in microseconds, NaN before the first."""
        steps = self._steps_ns[: min(self._fed, STEP_SAMPLES)]
        return float(np.median(steps)) / 1e3 if steps.size else float("nan")

    def close(self) -> None:
        """Close every sink; each of them bounds its own time."""
        for sink in self.sinks:
            sink.close()


class Served(msgspec.Struct, frozen=True):
    """What a run of the service came to."""

    frames: int
    flags: int
    step_us_p50: float
    recording: str | None


class Service:
    """Runs a model of its own under watch, as a plain foreground process.

    Parameters
    ----------
    config : Config

    Raises
    ------
    InputError
        The map, the model, the frames or a sink cannot be used; the key of the configuration comes first, and
        nothing was started.
    """

    def __init__(self, config: Config) -> None:
        # Everything that can be refused is, before a sink makes its file.
        with about("region_map"):
            region_map = load_region_map(config.region_map)
        with about("model.path"):
            model, name = load_known_model(config.model.path, region_map)
        with about("source"):
            region_map.require_frame_rate(config.source.frame_rate_hz)
            self._frames = FrameSource(config.source, region_map.input_shape)
        self._config = config
        # No threading.Event: a signal handler that sets the one its own thread is waiting on may deadlock.
        self._stopping = False
        versions = Runtime.here(serving_runtime(model, name))
        self.recording, sinks = open_sinks(
            config.sinks, region_map, config.monitor, _hash(config), versions=versions
        )
        self._watch = Watch(Monitor(region_map, config.monitor), sinks)
        try:
            with about("model.path"):
                self._probe = open_probe(model, region_map, self._watch, threads=config.model.threads)
        except BaseException:  # Ctrl-C too must leave a whole recording
            self._watch.close()
            raise

    def stop(self, signum: int = 0, frame: FrameType | None = None) -> None:  # noqa: ARG002 - a signal handler's arguments
        """End `run` after the current frame; fit as a signal handler."""
        self._stopping = True

    def run(self) -> Served:
        """Serve until the frames end or `stop` is called; closes every sink in any case."""
        settings, probe, watch = self._config.source, self._probe, self._watch
        period_s = 1.0 / settings.frame_rate_hz
        due_s = time.monotonic()
        served = 0
        served_all = threading.Event()
        teller = threading.Thread(target=_tell_troubles, args=(watch.sinks, served_all), daemon=True)
        teller.start()
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self.stop)
            for frame in self._frames:
                if settings.realtime:
                    # After a stall the next frame is due now, not all the missed ones at once.
                    due_s = max(due_s + period_s, time.monotonic() - period_s)
                    while not self._stopping and (rest_s := due_s - time.monotonic()) > 0.0:
                        time.sleep(min(rest_s, STOP_S))
                if self._stopping:
                    break
                probe.note(t_capture_ns=frame.t_capture_ns, **frame.context)
                probe.feed(frame.array)
                if not probe.attached:
                    watch.feed(Tick(time.monotonic_ns()))
                served += 1
        finally:
            watch.close()
            served_all.set()
            teller.join(TELL_S)
        return Served(served, watch.confirmed, watch.step_us_p50(), self.recording)


def _tell_troubles(sinks: Sequence[Sink], served_all: threading.Event) -> None:
    """Tell on standard error when a sink begins to complain, complains anew, and when it is well again.

    In a thread of its own: standard error may be a pipe that nobody reads
    (test_cli.py::test_standard_error_that_nobody_reads_stops_nothing).
    """
    told: list[str | None] = [None] * len(sinks)
    last = False
    while not last:
        last = served_all.wait(TELL_S)
        errors = [getattr(sink, "error", None) for sink in sinks]
        with contextlib.suppress(OSError, ValueError):  # nobody is left to be told
            for before, error in zip(told, errors, strict=True):
                if error != before:
                    line = f"info over: {before}" if error is None else f"warning {error}"
                    print(line, file=sys.stderr, flush=True)
        told = errors


def open_probe(
    model: str | Path | bytes, region_map: RegionMap, watch: Watch, *, threads: int = 1
) -> Observer:
    """Tapped model of our own, of either kind, that feeds ``watch``.

    Raises
    ------
    ModelError
        The file cannot be read or tapped.
    MapError
        The map is of another model.
    InputError
        The runtime for it is not installed.
    """
    return Probe.open(model, threads=threads, region_map=region_map, on_row=watch.feed, on_event=watch.feed)


def open_sinks(
    settings: SinkSettings,
    region_map: RegionMap,
    monitor: MonitorSettings,
    config_hash: str = "",
    *,
    versions: Runtime | None = None,
) -> tuple[str | None, list[Sink]]:
    """Open the sinks that are configured; the path of the recording comes first.

    Raises
    ------
    InputError
        A sink's file cannot be made, the setting's key comes first; those opened before are closed again.
    """
    sinks: list[Sink] = []
    recording: str | None = None
    map_bytes = to_bytes(region_map)
    hashes = {
        "model": region_map.provenance.model_sha256,
        "map": hashlib.sha256(map_bytes).hexdigest(),
        "config": config_hash,
    }
    running: dict[str, str] = msgspec.to_builtins(versions or Runtime.here())
    try:
        if settings.health_page is not None:
            with about("sinks.health_page.path"):
                sinks.append(HealthPageSink(settings.health_page.path, settings.health_page.data_id))
        if settings.journal:
            sinks.append(QueuedSink(JournalSink()))
        if settings.recording is not None:
            tap_names = tuple(tap.name for tap in region_map.taps)
            metadata = {
                "device": os.uname().nodename,
                "model": region_map.provenance.model,
                **{f"{key}_sha256": value for key, value in hashes.items()},
                "monitor_settings": msgspec.json.encode(monitor).decode(),
                **running,
            }
            with about("sinks.recording.folder"):
                recording = str(_recording_path(Path(settings.recording.folder)))
                sinks.append(QueuedSink(RecordingSink(Path(recording), map_bytes, metadata, tap_names)))
        if settings.mqtt is not None:
            with about("sinks.mqtt"):
                sinks.append(MqttSink(settings.mqtt, versions=running, hashes=hashes))
    except BaseException:  # as in Service: what is open is closed, whatever ends this
        for sink in sinks:
            sink.close()
        raise
    return recording, sinks


def _recording_path(folder: Path) -> Path:
    """Name a new recording after the time of day, which people look for; never an existing file.

    Raises
    ------
    InputError
        The folder is missing and cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(folder, f"is no directory and cannot be made one: {error.strerror}") from error
    stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    candidates = (folder / f"{stamp}{suffix}.mcap" for suffix in ("", *(f"-{i}" for i in range(2, 100))))
    return next(path for path in candidates if not path.exists())


def _hash(config: Config) -> str:
    return hashlib.sha256(msgspec.json.encode(config)).hexdigest()
