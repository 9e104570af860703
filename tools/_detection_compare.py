"""The peers on the same rows as the monitor, each with guards, gate and its best transform."""

from __future__ import annotations

import itertools
from pathlib import Path

import msgspec
import numpy as np
from _detection_collect import atomic
from _detection_config import BUDGETS, RATE_HZ
from _detection_events import EventRows, event_streams, load_events
from _detection_peer import Stream
from _detection_peers import PEERS
from _detection_streams import clean_stream
from _detection_system import Bench
from _detection_transforms import TRANSFORMS, Fusion, Scale, Surprise, Threshold, count_events, threshold_for

from edge_monitor.types import BoolArray, FloatArray

FUSED = "all peers fused"
CLEAN_PARTS, EVENT_PARTS = ("tune", "fresh"), ("design", "test")


class Contest(msgspec.Struct, frozen=True, eq=False):
    """Streams on which peers are judged: clean parts, and events of scenes."""

    clean: dict[str, Stream]
    events: dict[str, EventRows]

    @classmethod
    def load(cls, bench: Bench) -> Contest:
        clean = {part: clean_stream(bench, part) for part in CLEAN_PARTS}
        return cls(clean, {split: load_events(bench, split) for split in EVENT_PARTS})

    def stream(self, part: str) -> Stream | EventRows:
        return self.clean[part] if part in self.clean else self.events[part]


class PeerResult(msgspec.Struct, frozen=True):
    """One peer at one budget: its transform, delay of every test event, and false alarms on fresh rows.

    A delay is in frames, the first faulty one counted as 1; None where nothing was found.
    """

    peer: str
    budget: str
    transform: str
    delays: list[int | None]
    alarms: int


def keep_scores(bench: Bench, peer: str) -> int:
    """Fit a peer and keep its scores of all parts."""
    target = scores_path(bench, peer)
    if not target.exists():
        detector = PEERS[peer]()
        detector.fit(clean_stream(bench, "fit"))
        scores = {part: detector.score(clean_stream(bench, part)) for part in CLEAN_PARTS}
        for split in EVENT_PARTS:
            scores[split] = np.concatenate([detector.score(s) for s in event_streams(bench, split)])
        with atomic(target) as part:
            np.savez(part, **scores)
    return 1


def scores_path(bench: Bench, peer: str) -> Path:
    return bench.results / f"peer-{peer.replace(' ', '-').replace(',', '')}.npz"


def keep_comparison(bench: Bench) -> int:
    """Judge all peers, and all of them fused, at both budgets."""
    if comparison_path(bench).exists():
        return 1
    contest = Contest.load(bench)
    results = []
    columns: dict[str, dict[str, dict[str, FloatArray]]] = {}
    for peer in PEERS:
        stored = np.load(scores_path(bench, peer))
        columns[peer] = _transformed(contest, {part: stored[part] for part in stored.files})
    for budget in BUDGETS:
        best = {peer: _choose(contest, columns[peer], budget) for peer in PEERS}
        for peer, transform in best.items():
            surprise = Surprise.fit(columns[peer][transform]["tune"])
            scores = {part: surprise(values) for part, values in columns[peer][transform].items()}
            results.append(_judge(contest, scores, peer, budget, transform))
        tune = contest.clean["tune"]
        chosen = [columns[peer][transform] for peer, transform in best.items()]
        events = _allowed(tune, budget)
        fusion = Fusion([c["tune"] for c in chosen], tune.start, tune.overexposed, True, events)
        scores = {
            part: fusion.score([c[part] for c in chosen], contest.stream(part).overexposed)
            for part in (*CLEAN_PARTS, *EVENT_PARTS)
        }
        results.append(_judge(contest, scores, FUSED, budget, "each its own"))
    with atomic(comparison_path(bench)) as part:
        part.write(msgspec.json.encode(results))
    return 1


def comparison_path(bench: Bench) -> Path:
    return bench.results / "peers.json"


def _transformed(contest: Contest, scores: dict[str, FloatArray]) -> dict[str, dict[str, FloatArray]]:
    """Scores of every part after every transform."""
    scale = Scale.fit(scores["tune"])
    return {
        name: {part: transform(scale(values), contest.stream(part).start) for part, values in scores.items()}
        for name, transform in TRANSFORMS.items()
    }


def _choose(contest: Contest, columns: dict[str, dict[str, FloatArray]], budget: str) -> str:
    """Transform that finds most impacting events of the design scenes within 3 s."""
    found = {}
    for name, parts in columns.items():
        surprise = Surprise.fit(parts["tune"])
        threshold = _threshold(contest, surprise(parts["tune"]), budget)
        delays = _delays(contest.events["design"], surprise(parts["design"]), threshold)
        hits = [delay is not None and delay <= 3.0 * RATE_HZ for delay in delays]
        found[name] = int(np.sum(np.array(hits) & contest.events["design"].impacting))
    return max(found, key=lambda name: found[name])


def _allowed(stream: Stream, budget: str) -> float:
    """False events that a budget allows on a stream, less one, as `thresholds.fit_thresholds` counts them."""
    return max(int(BUDGETS[budget] * stream.start.size / RATE_HZ / 3600.0 + 1e-9) - 1, 0)


def _threshold(contest: Contest, scores: FloatArray, budget: str) -> Threshold:
    tune = contest.clean["tune"]
    return threshold_for(scores, tune.start, tune.overexposed, True, _allowed(tune, budget))


def _judge(
    contest: Contest, scores: dict[str, FloatArray], peer: str, budget: str, transform: str
) -> PeerResult:
    threshold = _threshold(contest, scores["tune"], budget)
    fresh = contest.clean["fresh"]
    alarm = threshold.alarm(scores["fresh"], fresh.overexposed, fresh.guard)
    delays = _delays(contest.events["test"], scores["test"], threshold)
    return PeerResult(peer, budget, transform, delays, count_events(alarm, fresh.start))


def _delays(events: EventRows, scores: FloatArray, threshold: Threshold) -> list[int | None]:
    """Frames from each onset to the first alarm; None when none comes or one stood already."""
    alarm: BoolArray = threshold.alarm(scores, events.overexposed, events.guard)
    edges = [*np.flatnonzero(events.start).tolist(), events.start.size]
    delays: list[int | None] = []
    for first, last in itertools.pairwise(edges):
        after = events.frame[first:last] > 0
        standing = alarm[first:last][~after][-1]
        found = events.frame[first:last][after & alarm[first:last]]
        delays.append(int(found[0]) if found.size and not standing else None)
    return delays
