"""What the benchmark found, as it is stored: counts scene by scene, so that any interval can be had."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from statistics import mean, median

import msgspec
import numpy as np
from _detection_compare import FUSED, PeerResult, comparison_path
from _detection_config import ABLATIONS, BUDGETS, LIGHT, RATE_HZ, splits
from _detection_events import CLEAN, LISTED, Judged, load_events, load_outcomes
from _detection_peers import PEERS
from _detection_system import OTHER, Bench, alarms_path, load_map
from _detection_watch import Alarms

from edge_monitor.offline.drill import WITHIN_S, Outcome

FORMAT = 2
EXACT = frozenset({"frozen exact", "NaN/Inf", "blackout", "dead rows"})
"""Faults that have to be found without fail."""
TIMING = ("stutter", "latency stall", "dropped frames")
PACKAGES = ("numpy", "numba", "onnxruntime", "onnx", "scipy", "scikit-learn", "river")


class Share(msgspec.Struct, frozen=True):
    """Events found out of all that count, per scene."""

    hits: list[int]
    events: list[int]


class FaultRow(msgspec.Struct, frozen=True):
    """One fault at one severity and budget.

    ``within``: share detected within each of `WITHIN_S`; ``delay``: median frames of those detected;
    ``flag``: the one raised most; ``named``: share named right of those detected. Means of ``impact``, and of
    the two views' agreement and consistency at the end; None where not known.
    """

    fault: str
    severity: float
    ramp: bool
    budget: str
    events: int
    within: list[float]
    found: float
    delay: float | None
    flag: str | None
    named: float | None
    impact: float
    agreement: float | None
    consistency: float | None


class PeerShares(msgspec.Struct, frozen=True):
    """One peer at one budget; ``alarms``: false events on the fresh trips."""

    peer: str
    budget: str
    transform: str
    shares: dict[str, Share]
    alarms: int


class ConfigurationResult(msgspec.Struct, frozen=True):
    """All about one configuration.

    ``shares``: metric, then budget. ``splits``: first trip and number of trips. ``slowest_freeze``: the
    largest delay of frozen exact in frames, None when one was missed. ``delay``: median frames of the events
    detected. ``versions``: of Python and packages that measured it.
    """

    name: str
    model: str
    sha256: str
    world: int
    mode: str
    splits: dict[str, tuple[int, int]]
    shares: dict[str, dict[str, Share]]
    slowest_freeze: int | None
    delay: dict[str, float | None]
    faults: list[FaultRow]
    alarms: dict[str, dict[str, Alarms]]
    peers: list[PeerShares]
    head_accuracy: float | None
    seconds: dict[str, float]
    versions: dict[str, str]


class Results(msgspec.Struct, frozen=True):
    """The stored file."""

    format: int
    configurations: dict[str, ConfigurationResult]


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


Count = Callable[[Outcome], bool]


def _metrics() -> dict[str, tuple[Count, Count]]:
    """Metric of the calibrated head: which events count, and which of them are hits."""

    def within(seconds: float) -> Count:
        return lambda o: o.within(seconds, RATE_HZ)

    def listed(o: Outcome) -> bool:
        return not o.ramp and o.fault in LISTED

    def impacting(o: Outcome) -> bool:
        return listed(o) and o.impacting

    def detected(o: Outcome) -> bool:
        return listed(o) and o.delay is not None

    def of(fault: str) -> Count:
        return lambda o: not o.ramp and o.fault == fault

    freeze = of("true freeze")
    return {
        "impacting 1 s": (impacting, within(1.0)),
        "impacting 3 s": (impacting, within(3.0)),
        "all 1 s": (listed, within(1.0)),
        "all 3 s": (listed, within(3.0)),
        "exact": (lambda o: listed(o) and o.fault in EXACT, within(1.0)),
        "true freeze, moving": (lambda o: freeze(o) and o.moving is True, within(3.0)),
        "true freeze, not moving": (lambda o: freeze(o) and o.moving is False, within(3.0)),
        "flicker": (of("flicker"), within(3.0)),
        "named": (detected, lambda o: o.named == o.fault),
        "named, top 2": (detected, lambda o: o.fault in {o.named, o.named_second}),
        "named at once": (detected, lambda o: o.named_at_once == o.fault),
        "ramps": (lambda o: o.ramp, lambda o: o.delay is not None),
        "standing before onset": (listed, lambda o: o.standing),
        **{fault: (of(fault), within(3.0)) for fault in TIMING},
    }


def summarise(bench: Bench, seconds: dict[str, float]) -> ConfigurationResult:
    """Count everything that the stages have left in the cache."""
    judged = load_outcomes(bench, "test")
    ramps = load_outcomes(bench, "ramp")
    n_test, n_ramp = len(bench.plans("test")), len(bench.plans("ramp"))
    shares: dict[str, dict[str, Share]] = {}
    for name, (counts, hit) in _metrics().items():
        source, n = (ramps, n_ramp) if name == "ramps" else (judged, n_test)
        shares[name] = {b: share(_of(source, b, ""), counts, hit, n) for b in BUDGETS}
    variants = {"unknown types": _is_fold} | {name: name.__eq__ for name in (OTHER, LIGHT, *ABLATIONS)}
    for name, wanted in variants.items():
        shares[name] = {
            b: share(
                [j.outcome for j in judged if j.budget == b and wanted(j.head)],
                lambda o: o.impacting,
                lambda o: o.within(3.0, RATE_HZ),
                n_test,
            )
            for b in BUDGETS
        }
    frozen = [j.outcome.delay for j in judged if not j.head and j.outcome.fault == "frozen exact"]
    region_map = load_map(bench, "1 per hour")
    return ConfigurationResult(
        name=bench.configuration.name,
        model=bench.configuration.model,
        sha256=region_map.provenance.model_sha256,
        world=bench.configuration.world,
        mode=bench.mode.name,
        splits={
            name: (trips.start, len(trips)) for name, trips in splits(bench.configuration, bench.mode).items()
        },
        shares=shares,
        slowest_freeze=None if None in frozen else max(frozen, default=None),
        delay={b: _median_delay(_of(judged, b, "")) for b in BUDGETS},
        faults=fault_rows([*judged, *ramps]),
        alarms={
            part: {
                b: msgspec.json.decode(alarms_path(bench, b, part).read_bytes(), type=Alarms) for b in BUDGETS
            }
            for part in ("fresh", "judge")
        },
        peers=peer_shares(bench),
        head_accuracy=region_map.faults.accuracy if region_map.faults else None,
        seconds={name: round(value, 1) for name, value in seconds.items()},
        versions=versions(),
    )


def _median_delay(outcomes: Sequence[Outcome]) -> float | None:
    delays = [o.delay for o in outcomes if o.fault in LISTED and o.delay is not None]
    return median(delays) if delays else None


def _is_fold(head: str) -> bool:
    return head.startswith("fold")


def _of(judged: Sequence[Judged], budget: str, head: str) -> list[Outcome]:
    return [j.outcome for j in judged if j.budget == budget and j.head == head]


def share(outcomes: Sequence[Outcome], counts: Count, hit: Count, scenes: int) -> Share:
    """Count hits among the outcomes that count, scene by scene."""
    hits, events = [0] * scenes, [0] * scenes
    for outcome in outcomes:
        if counts(outcome):
            events[outcome.scene] += 1
            hits[outcome.scene] += hit(outcome)
    return Share(hits, events)


def fault_rows(judged: Sequence[Judged]) -> list[FaultRow]:
    """Table by fault, severity and budget under the calibrated head."""
    groups: dict[tuple[str, float, bool, str], list[Outcome]] = {}
    for j in judged:
        if not j.head:
            key = (j.outcome.fault, j.outcome.severity, j.outcome.ramp, j.budget)
            groups.setdefault(key, []).append(j.outcome)
    rows = []
    for (fault, severity, ramp, budget), outcomes in groups.items():
        found = [o for o in outcomes if o.delay is not None]
        flags = [o.flag for o in found if o.flag is not None]
        rows.append(
            FaultRow(
                fault=fault,
                severity=severity,
                ramp=ramp,
                budget=budget,
                events=len(outcomes),
                within=[mean(o.within(s, RATE_HZ) for o in outcomes) for s in WITHIN_S],
                found=len(found) / len(outcomes),
                delay=median(o.delay for o in found if o.delay is not None) if found else None,
                flag=max(sorted(set(flags)), key=flags.count) if flags else None,
                named=mean(o.named == fault for o in found) if found and fault != CLEAN else None,
                impact=mean(o.impact for o in outcomes),
                agreement=_mean([o.agreement for o in outcomes]),
                consistency=_mean([o.consistency for o in outcomes]),
            )
        )
    return rows


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def peer_shares(bench: Bench) -> list[PeerShares]:
    """Shares of every peer over the same events."""
    events = load_events(bench, "test")
    n = len(bench.plans("test"))
    found = msgspec.json.decode(comparison_path(bench).read_bytes(), type=list[PeerResult])
    everything = np.ones(events.scene.size, bool)
    rows = []
    for peer in found:
        delays = np.array([np.inf if delay is None else delay for delay in peer.delays])
        shares = {
            f"{name} {seconds:g} s": _by_scene(delays <= seconds * RATE_HZ, chosen, events.scene, n)
            for name, chosen in (("impacting", events.impacting), ("all", everything))
            for seconds in (1.0, 3.0)
        }
        rows.append(PeerShares(peer.peer, peer.budget, peer.transform, shares, peer.alarms))
    order = [*PEERS, FUSED]
    return sorted(rows, key=lambda row: (list(BUDGETS).index(row.budget), order.index(row.peer)))


def _by_scene(hit: np.ndarray, chosen: np.ndarray, scene: np.ndarray, n: int) -> Share:
    hits, events = (np.bincount(scene[mask], minlength=n).tolist() for mask in (hit & chosen, chosen))
    return Share(hits, events)
