"""Faults put into scenes: what the monitor says to them under every map, and the rows for the peers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import msgspec
import numpy as np
from _detection_collect import atomic, load_scenes, table_of
from _detection_config import ABLATIONS, BUDGETS, LEAD, LIGHT
from _detection_peer import Stream
from _detection_streams import joined, layout, stream_of
from _detection_system import OTHER, Bench, heads, injector_of, load_map
from _detection_watch import Said, Watcher

from edge_monitor.offline.drill import Case, Outcome, all_cases, broken_rows, judge
from edge_monitor.offline.faults import FAULTS
from edge_monitor.offline.injection import Injector, fork, warm
from edge_monitor.offline.scene import Scene
from edge_monitor.pipeline import Monitor
from edge_monitor.types import BoolArray, StatRow

CLEAN = "clean driving"
"""Stands for no fault at all."""
LISTED = frozenset(fault.name for fault in FAULTS)


class Judged(msgspec.Struct, frozen=True):
    """One case in one scene under one map."""

    budget: str
    head: str
    outcome: Outcome


class EventRows(msgspec.Struct, frozen=True, eq=False):
    """Rows of many events one after the other, each with its scene's lead: what judging peers needs of them.

    ``start``, ``guard``, ``overexposed`` (n,) as in `Stream`: an event begins where a start is. ``frame``
    (n,): frames since the onset, 1 at the first faulty one. For each event: ``scene``, ``impacting``.
    """

    start: BoolArray
    guard: BoolArray
    overexposed: BoolArray
    frame: np.ndarray
    scene: np.ndarray
    impacting: BoolArray


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
        judged, lead, events = _judge(bench, split, number, scene, tool)
        if split != "ramp":
            _keep_events(bench, split, number, lead, events)
        with atomic(outcomes_path(bench, split, number)) as part:
            part.write(msgspec.msgpack.encode(judged))
    return 1


def _judge(
    bench: Bench, split: str, number: int, scene: Scene, tool: Injector
) -> tuple[list[Judged], Stream, list[tuple[Outcome, Stream, np.ndarray]]]:
    warmed = {(budget, ""): _warmed(bench, scene, budget, "") for budget in BUDGETS}
    if split == "test":
        warmed |= {
            (b, head): _warmed(bench, scene, b, head)
            for b in BUDGETS
            for head in (*heads(), *ABLATIONS, LIGHT)
        }
    calibrated = next(iter(BUDGETS))
    watcher = Watcher(Monitor(load_map(bench, calibrated)))
    for row in scene.rows:
        watcher.step(row)
    clean = tool.rows(scene, [])
    own = {key: _own(monitor, clean) for key, monitor in warmed.items()}
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
        outcome = judge(recording, case, number, clean, rows, own[calibrated, ""])
        judged.append(Judged(calibrated, "", outcome))
        judged += [
            Judged(b, head, judge(fork(monitor), case, number, clean, rows, own[b, head]))
            for (b, head), monitor in warmed.items()
            if (b, head) != (calibrated, "") and (not head or _concerns(head, outcome))
        ]
        if split != "ramp" and case.fault in LISTED:
            frames = np.array([row.frame - scene.rows[-1].frame for row in rows])
            events.append((outcome, _stream(bench, rows, recording.said(), len(scene.rows)), frames))
    return judged, _stream(bench, scene.rows, watcher.said(), 0), events


def _own(monitor: Monitor, clean: Sequence[StatRow]) -> dict[str, int]:
    """Flags that a scene raises without any fault, and the first frame of each."""
    watcher = Watcher(fork(monitor))
    for row in clean:
        watcher.step(row)
    return {code: clean[i].frame for i, code in reversed(watcher.said().raised)}


def _stream(bench: Bench, rows: Sequence[StatRow], said: Said, first: int) -> Stream:
    """Peers' view of rows of a scene, ``said`` of which begins ``first`` rows earlier."""
    start = np.arange(first, first + len(rows)) == 0
    table = table_of(rows, layout(bench).taps)
    return stream_of(table, layout(bench), start, said.guard[first:], said.overexposed[first:])


def _warmed(bench: Bench, scene: Scene, budget: str, head: str) -> Monitor:
    monitor = Monitor(load_map(bench, budget, head))
    warm(monitor, scene)
    return monitor


def _concerns(head: str, outcome: Outcome) -> bool:
    """Whether an outcome under the calibrated head is to be judged under another one too."""
    if not outcome.impacting or outcome.fault not in LISTED:
        return False
    return head in {OTHER, LIGHT, *ABLATIONS} or outcome.fault in heads()[head][1]


def _keep_events(
    bench: Bench,
    split: str,
    number: int,
    lead: Stream,
    events: Sequence[tuple[Outcome, Stream, np.ndarray]],
) -> None:
    """Keep the events of one scene, and its lead once for all of them."""
    outcomes, streams, frames = zip(*events, strict=True)
    names, broken = Stream.__struct_fields__, joined(streams)
    with atomic(events_path(bench, split, number)) as part:
        np.savez(
            part,
            edges=np.cumsum([len(numbers) for numbers in frames])[:-1],
            scene=np.full(len(outcomes), number),
            impacting=np.array([outcome.impacting for outcome in outcomes]),
            frame=np.concatenate(frames),
            lead_frame=np.arange(1 - lead.start.size, 1),
            **{f"lead_{name}": getattr(lead, name) for name in names},
            **{name: getattr(broken, name) for name in names},
        )


def event_streams(bench: Bench, split: str) -> Iterator[Stream]:
    """Peers' view of one scene after the other: its events in turn, every one with the whole lead."""
    for stored in _kept_events(bench, split):
        yield Stream(**{name: _with_lead(stored, name) for name in Stream.__struct_fields__})


def load_events(bench: Bench, split: str) -> EventRows:
    """Events of all scenes of a split."""
    parts = [
        {name: _with_lead(stored, name) for name in ("start", "guard", "overexposed", "frame")}
        | {name: stored[name] for name in ("scene", "impacting")}
        for stored in _kept_events(bench, split)
    ]
    return EventRows(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def _kept_events(bench: Bench, split: str) -> Iterator[Mapping[str, np.ndarray]]:
    for k in range(len(bench.plans(split))):
        with np.load(events_path(bench, split, k)) as stored:
            yield stored


def _with_lead(stored: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    lead, events = stored[f"lead_{name}"], np.split(stored[name], stored["edges"])
    return np.concatenate([piece for event in events for piece in (lead, event)])


def load_outcomes(bench: Bench, split: str) -> list[Judged]:
    """Outcomes of all scenes of a split."""
    paths = [outcomes_path(bench, split, k) for k in range(len(bench.plans(split)))]
    return [item for path in paths for item in msgspec.msgpack.decode(path.read_bytes(), type=list[Judged])]


def outcomes_path(bench: Bench, split: str, number: int) -> Path:
    return bench.results / f"outcomes-{split}-{number}.msgpack"


def events_path(bench: Bench, split: str, number: int) -> Path:
    return bench.results / f"events-{split}-{number}.npz"
