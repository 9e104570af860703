"""What the benchmark of detection measures: configurations, their trips, budgets, faults left out."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
from _venv import ROOT

from edge_monitor.config import FrameSettings
from edge_monitor.offline.fault_bank import head_faults
from edge_monitor.offline.faults import FAULTS
from edge_monitor.offline.observe import FIT_SHARE, SCENE_FRAMES, SCENE_LEAD
from edge_monitor.offline.scene import BEFORE
from edge_monitor.sources.frames import ROADS

RATE_HZ = 30.0
BUDGETS = {"1 per 10 000 frames": RATE_HZ * 0.36, "1 per hour": 1.0}
"""Budget to false alarms per hour."""
LEAD = 600
"""Clean frames before a judged fault, for the monitor and for the peers: all windows are full."""
LATEST = 1800
EVENT_FRAMES, RAMP_FRAMES = 90, 300
"""Frames of a scene from its onset on: sudden faults, and those that grow."""
N_FOLDS = 5
ABLATIONS = {
    "without fault head": ("faults",),
    "without fault head and picture channels": ("faults", "shift", "stall", "input"),
}
"""Channels that are switched off; the others share the budget. The second still has what knows the input
besides: its spectral line, the residual of the first tap against it, and the exact guards."""
LIGHT, LIGHT_LACKS = "light setting", ("residual", "shift", "faults", "tracts")
"""The monitor's own light setting, and the channels that it leaves silent; thresholds stay as they are."""


class Configuration(msgspec.Struct, frozen=True):
    """A network on a road; trips to calibrate on from ``first``, to judge on from ``judge``."""

    name: str
    model: str
    world: int
    first: int
    judge: int

    @property
    def path(self) -> Path:
        return ROOT / self.model

    def frames(self, seed: int, limit: int) -> FrameSettings:
        """One trip."""
        road = next(name for name, world in ROADS.items() if world == self.world)
        return FrameSettings(frames=f"{road}:{seed}", frame_rate_hz=RATE_HZ, limit=limit, realtime=False)


CONFIGURATIONS = {
    "A": Configuration("A", "edge_monitor/data/demo_model.onnx", 0, 1100, 4300),
    "B": Configuration("B", "tests/bench/models/residual-1.onnx", 0, 1300, 4500),
    "C": Configuration("C", "tests/bench/models/depthwise-2.onnx", 1, 1500, 4700),
}


class Mode(msgspec.Struct, frozen=True):
    """How much is measured: trips of clean driving and their frames, scenes to break."""

    name: str
    pool: int
    fresh: int
    frames: int
    bank: int
    design: int
    test: int
    ramp: int


MODES = {
    mode.name: mode
    for mode in (
        Mode("full", pool=27, fresh=14, frames=36_000, bank=192, design=8, test=32, ramp=8),
        Mode("quick", pool=2, fresh=1, frames=36_000, bank=16, design=2, test=6, ramp=2),
        Mode("tiny", pool=1, fresh=1, frames=9_000, bank=4, design=1, test=2, ramp=1),
    )
}


class TripPlan(msgspec.Struct, frozen=True):
    """What to collect of one trip: its rows, and pictures from each onset on."""

    seed: int
    frames: int
    onsets: tuple[int, ...]
    length: int


def splits(configuration: Configuration, mode: Mode) -> dict[str, range]:
    """Trips of every split; no two share one, and none has trained a model (0 ... 999)."""
    first, judge = configuration.first, configuration.judge
    return {
        "pool": range(first, first + mode.pool),
        "design": range(first + 100, first + 100 + mode.design),
        "fresh": range(judge, judge + mode.fresh),
        "test": range(judge + 50, judge + 50 + mode.test),
        "ramp": range(judge + 150, judge + 150 + mode.ramp),
    }


def trip_plans(configuration: Configuration, mode: Mode, split: str) -> list[TripPlan]:
    """Plan of every trip of a split."""
    seeds = splits(configuration, mode)[split]
    if split == "fresh":
        return [TripPlan(seed, mode.frames, (), 0) for seed in seeds]
    if split == "pool":
        onsets = bank_onsets(mode)
        return [TripPlan(seed, mode.frames, onsets[k], SCENE_FRAMES) for k, seed in enumerate(seeds)]
    length = RAMP_FRAMES if split == "ramp" else EVENT_FRAMES
    plans = []
    for seed in seeds:
        onset = int(np.random.default_rng([seed, 17]).integers(LEAD, LATEST))
        plans.append(TripPlan(seed, onset + length, (onset,), length))
    return plans


def bank_onsets(mode: Mode) -> list[tuple[int, ...]]:
    """Onsets of the bank's scenes in every trip of the pool, evenly spaced over the part that fits."""
    kept = mode.frames - BEFORE  # the first frames of a trip are left out of the pool
    end = int(mode.pool * kept * FIT_SHARE)
    onsets: list[list[int]] = [[] for _ in range(mode.pool)]
    for k in range(mode.bank):
        trip, place = divmod(int((k + 0.5) * end / mode.bank), kept)
        last = min(kept, end - trip * kept) - SCENE_FRAMES
        onsets[trip].append(BEFORE + min(max(place, SCENE_LEAD), last))
    return [tuple(sorted(set(places))) for places in onsets]


def folds() -> list[tuple[str, ...]]:
    """Faults that each fold leaves out of the head's training: every listed one that it learns, once."""
    names = np.array([fault.name for fault in FAULTS if fault.name in head_faults()])
    order = np.random.default_rng(24).permutation(names.size)
    return [tuple(names[np.sort(part)].tolist()) for part in np.array_split(order, N_FOLDS)]
