"""The goals of the benchmark of detection, and means over configurations with their intervals."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from _detection_config import ABLATIONS, LIGHT, folds
from _detection_results import TIMING, ConfigurationResult, PeerShares, Share

DRAWS = 2000
FREEZE_FRAMES = 3
"""An exact freeze has to be found within so many frames."""

Value = tuple[float, float, float]
"""Value with its 95 % interval."""


def _left_out() -> str:
    sizes = sorted({len(names) for names in folds()})
    return f"{' or '.join(map(str, sizes))} of {sum(len(names) for names in folds())} that the head learns"


LEFT_OUT = _left_out()


class Goal(msgspec.Struct, frozen=True):
    """One row of the table of goals: what, its metric, least percentage at each budget (None: no goal)."""

    text: str
    metric: str
    least: tuple[float | None, float | None]


GOALS = (
    Goal("impacting events within 1 s", "impacting 1 s", (95, 91)),
    Goal("impacting events within 3 s", "impacting 3 s", (97, 94)),
    Goal("all events within 1 s", "all 1 s", (86, 78)),
    Goal("all events within 3 s", "all 3 s", (90, 83)),
    Goal(f"types left out of the training ({LEFT_OUT}), impacting, 3 s", "unknown types", (94, 85)),
    Goal("trained on other injectors only, impacting, 3 s", "other injectors", (96, 91)),
    Goal("exact freeze, NaN/Inf, blackout, dead rows within 1 s", "exact", (100, 100)),
    Goal("true freeze while moving, 3 s", "true freeze, moving", (95, 80)),
    Goal("flicker, 3 s", "flicker", (100, 85)),
    Goal("named right in the first 3 s, at their end, of those detected", "named", (88, None)),
    Goal("among the two likeliest in the first 3 s, of those detected", "named, top 2", (95, None)),
    Goal("named right when the flag was raised, of those detected", "named at once", (None, None)),
    Goal("10 s ramps found before their end", "ramps", (None, None)),
    *(Goal(f"{fault}, 3 s", fault, (None, None)) for fault in TIMING),
    *(Goal(f"{ablation}, impacting, 3 s", ablation, (None, None)) for ablation in (*ABLATIONS, LIGHT)),
    Goal("true freeze, vehicle standing or stopping, 3 s: no claim", "true freeze, not moving", (None, None)),
    Goal("alarm stood before the onset: a miss", "standing before onset", (None, None)),
)
AHEAD = (10.0, 12.0)
"""Points by which the best peer is to be beaten."""


def estimate(shares: Sequence[Sequence[Share]]) -> Value | None:
    """Mean over configurations of a share, or of one share less another, with its 95 % interval.

    The interval comes from drawing whole scenes. A configuration without any event that counts is left out;
    None when no one is left.
    """
    rng = np.random.default_rng(0)
    values, drawn_values = [], []
    for of_configuration in shares:
        if not all(sum(share.events) for share in of_configuration):
            continue
        n = len(of_configuration[0].events)
        drawn = rng.integers(0, n, (DRAWS, n))
        value, spread = 0.0, np.zeros(DRAWS)
        for sign, share in zip((1.0, -1.0), of_configuration, strict=False):
            hits, events = np.array(share.hits, float), np.array(share.events, float)
            counted = events[drawn].sum(axis=1)
            ratio = np.divide(
                hits[drawn].sum(axis=1),
                counted,
                out=np.full(DRAWS, hits.sum() / events.sum()),
                where=counted > 0,
            )
            value += sign * hits.sum() / events.sum()
            spread += sign * ratio
        values.append(value)
        drawn_values.append(spread)
    if not values:
        return None
    low, high = np.percentile(np.mean(drawn_values, axis=0), [2.5, 97.5])
    return float(np.mean(values)), float(low), float(high)


def best_peer(configurations: Sequence[ConfigurationResult], budget: str) -> tuple[str, Value | None]:
    """Name of the best peer, and by how much the monitor is ahead of it."""
    metric = "impacting 3 s"
    own = [c.shares[metric][budget] for c in configurations]
    leads = {}
    for name in peer_names(configurations):
        theirs = [peer_of(c, name, budget).shares[metric] for c in configurations]
        leads[name] = estimate([list(pair) for pair in zip(own, theirs, strict=True)])
    known = {name: lead for name, lead in leads.items() if lead is not None}
    if not known:
        return "–", None
    best = min(known, key=lambda name: known[name][0])
    return best, known[best]


def peer_names(configurations: Sequence[ConfigurationResult]) -> list[str]:
    return list(dict.fromkeys(peer.peer for c in configurations for peer in c.peers))


def peer_of(c: ConfigurationResult, name: str, budget: str) -> PeerShares:
    return next(peer for peer in c.peers if (peer.peer, peer.budget) == (name, budget))
