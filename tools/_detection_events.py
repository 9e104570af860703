"""Faults put into scenes: what the monitor says to them under every map, and the rows for the peers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import msgspec
import numpy as np
from _detection_collect import atomic, load_scenes, table_of
from _detection_config import ABLATIONS, BUDGETS, LEAD
from _detection_peers import Stream
from _detection_streams import joined, layout, stream_of
from _detection_system import OTHER, Bench, heads, injector_of, load_map
from _detection_watch import Watcher

from edge_monitor.offline.drill import Case, Outcome, all_cases, broken_rows, judge
from edge_monitor.offline.faults import FAULTS
from edge_monitor.offline.injection import Injector, fork, warm
from edge_monitor.offline.scene import Scene
from edge_monitor.pipeline import Monitor

PEERS_LEAD = 60
"""Clean rows before the onset that peers see."""
CLEAN = "clean driving"
"""Stands for no fault at all."""
LISTED = frozenset(fault.name for fault in FAULTS)


class Judged(msgspec.Struct, frozen=True):
    """One case in one scene under one map."""

    budget: str
    head: str
    outcome: Outcome


class EventRows(msgspec.Struct, frozen=True, eq=False):
    """Rows of many events one after the other, for the peers.

    Every event has `PEERS_LEAD` rows of lead. ``stream``: its ``start`` is where each event begins.
    ``frame`` (n,): frames since the onset, 1 at the first faulty one. For each event: ``scene``, ``fault``,
    ``impacting``.
    """

    stream: Stream
    frame: np.ndarray
    scene: np.ndarray
    fault: np.ndarray
    impacting: np.ndarray


@lru_cache(maxsize=2)
def scenes_of(bench: Bench, split: str) -> list[Scene]:
    return load_scenes(bench.plans(split), bench.rows, LEAD)


injector = lru_cache(maxsize=1)(injector_of)


def cases_of(split: str) -> list[Case]:
    """Cases that a split's scenes are for; design scenes only choose the peers' transforms."""
    cases = [case for case in all_cases() if case.ramp == (split == "ramp")]
    return [case for case in cases if case.fault in LISTED] if split == "design" else cases


def judge_scene(bench: Bench, split: str, number: int) -> int:
    """Put every case of a split into one of its scenes, and keep what came of it."""
    if not outcomes_path(bench, split, number).exists():
        scene, tool = scenes_of(bench, split)[number], injector(bench)
        judged, events = _judge(bench, split, number, scene, tool)
        if split != "ramp":
            _keep_events(bench, split, number, events)
        with atomic(outcomes_path(bench, split, number)) as part:
            part.write(msgspec.msgpack.encode(judged))
    return 1


def _judge(
    bench: Bench, split: str, number: int, scene: Scene, tool: Injector
) -> tuple[list[Judged], list[tuple[Outcome, Stream, np.ndarray]]]:
    warmed = {(budget, ""): _warmed(bench, scene, budget, "") for budget in BUDGETS}
    if split == "test":
        warmed |= {
            (b, head): _warmed(bench, scene, b, head) for b in BUDGETS for head in (*heads(), *ABLATIONS)
        }
    calibrated = next(iter(BUDGETS))
    watcher = Watcher(Monitor(load_map(bench, calibrated)))
    for row in scene.rows:
        watcher.step(row)
    lead = scene.rows[-PEERS_LEAD:]
    clean = tool.rows(scene, [])
    judged, events = [], []
    if split == "test":
        nothing = Case(CLEAN, 0.0)
        judged += [
            Judged(budget, "", judge(fork(warmed[budget, ""]), nothing, number, clean, clean))
            for budget in BUDGETS
        ]
    for place, case in enumerate(cases_of(split)):
        rows = broken_rows(tool, scene, case, seed=1000 * bench.plans(split)[number].seed + place)
        recording = fork(watcher)
        outcome = judge(recording, case, number, clean, rows)
        judged.append(Judged(calibrated, "", outcome))
        judged += [
            Judged(budget, head, judge(fork(warmed[budget, head]), case, number, clean, rows))
            for budget, head in warmed
            if (budget, head) != (calibrated, "") and (not head or _concerns(head, outcome))
        ]
        if split != "ramp" and case.fault in LISTED:
            said = recording.said()
            shown = slice(-len(lead) - len(rows), None)
            start = np.arange(len(lead) + len(rows)) == 0
            table = table_of([*lead, *rows], layout(bench).taps)
            stream = stream_of(table, layout(bench), start, said.guard[shown], said.overexposed[shown])
            frames = np.array([row.frame - lead[-1].frame for row in [*lead, *rows]])
            events.append((outcome, stream, frames))
    return judged, events


def _warmed(bench: Bench, scene: Scene, budget: str, head: str) -> Monitor:
    monitor = Monitor(load_map(bench, budget, head))
    warm(monitor, scene)
    return monitor


def _concerns(head: str, outcome: Outcome) -> bool:
    """Whether an outcome under the calibrated head is to be judged under another one too."""
    if not outcome.impacting or outcome.fault not in LISTED:
        return False
    return head == OTHER or head in ABLATIONS or outcome.fault in heads()[head][1]


def _keep_events(
    bench: Bench, split: str, number: int, events: Sequence[tuple[Outcome, Stream, np.ndarray]]
) -> None:
    outcomes, streams, frames = zip(*events, strict=True)
    stream = joined(streams)
    with atomic(events_path(bench, split, number)) as part:
        np.savez(
            part,
            frame=np.concatenate(frames),
            scene=np.full(len(outcomes), number),
            fault=np.array([outcome.fault for outcome in outcomes]),
            impacting=np.array([outcome.impacting for outcome in outcomes]),
            **{name: getattr(stream, name) for name in Stream.__struct_fields__},
        )


def load_events(bench: Bench, split: str) -> EventRows:
    """Events of all scenes of a split."""
    parts = [dict(np.load(events_path(bench, split, k))) for k in range(len(bench.plans(split)))]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    stream = Stream(**{name: columns.pop(name) for name in Stream.__struct_fields__})
    return EventRows(stream, **columns)


def load_outcomes(bench: Bench, split: str) -> list[Judged]:
    """Outcomes of all scenes of a split."""
    paths = [outcomes_path(bench, split, k) for k in range(len(bench.plans(split)))]
    return [item for path in paths for item in msgspec.msgpack.decode(path.read_bytes(), type=list[Judged])]


def outcomes_path(bench: Bench, split: str, number: int) -> Path:
    return bench.results / f"outcomes-{split}-{number}.msgpack"


def events_path(bench: Bench, split: str, number: int) -> Path:
    return bench.results / f"events-{split}-{number}.npz"
