"""The governor: what it reads less of, in which order, and when it goes back."""

from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edge_monitor
from edge_monitor.config import FrameSettings
from edge_monitor.map_file import load_region_map
from edge_monitor.offline.injection import Injection, Injector, Range
from edge_monitor.offline.scene import BEFORE, Scene
from edge_monitor.pipeline import Monitor
from edge_monitor.reports import CHANNELS, FlagStatus
from edge_monitor.sources.frames import FrameSource
from edge_monitor.taps.governor import (
    BUDGET,
    CALM,
    LONGEST_TR,
    NARROWEST,
    OUTLIERS,
    RELAX,
    WINDOW,
    Governor,
    Step,
    ladder,
)
from edge_monitor.types import StatRow

PERIOD_NS = 1e9 / 30
BUDGET_NS = BUDGET * PERIOD_NS


def spend(governor, cost_ns, windows=1):
    """Let every frame of some windows cost the same; the step after each window."""
    steps = []
    for _ in range(windows):
        for _ in range(WINDOW):
            governor.scan()
            governor.spent(int(cost_ns))
        steps.append(governor.step)
    return steps


@given(st.integers(2, 40))
def test_fewer_taps_at_a_time_come_before_a_longer_repetition_time(n_taps):
    steps = ladder(n_taps)
    narrowest = min(NARROWEST, n_taps - 1)
    assert steps[0] == (n_taps - 1, 1)
    assert steps[-1] == (narrowest, LONGEST_TR)
    for before, after in pairwise(steps):
        if after.tr == 1:
            assert NARROWEST <= after.width < before.width <= 2 * after.width
        else:
            assert (after.width, after.tr) == (narrowest, 2 * before.tr)


@given(st.integers(2, 40), st.integers(0, 20))
def test_a_round_reads_every_tap_and_every_neighbour_beside_it(n_taps, step):
    """A layer is compared with what the one before it predicts: both have to be read in one frame."""
    governor = Governor(n_taps, PERIOD_NS)
    spend(governor, 2 * BUDGET_NS, min(step, len(ladder(n_taps)) - 1))
    width, tr = governor.step
    scans = np.array([governor.scan() for _ in range((n_taps + 1) * tr)])
    (scanned,) = np.nonzero(scans.any(axis=1))
    assert (np.diff(scanned) == tr).all()
    assert (scans[scanned].sum(axis=1) == 1 + width).all()
    assert scans[scanned, 0].all()
    assert scans.any(axis=0).all()
    assert (scans[:, 1:] & scans[:, :-1]).any(axis=0).all()


def test_within_the_budget_everything_is_read():
    governor = Governor(8, PERIOD_NS)
    assert set(spend(governor, 0.9 * BUDGET_NS, 50)) == {(7, 1)}
    assert governor.scan().all()


def test_over_budget_it_goes_down_step_by_step_and_no_further_than_the_last():
    governor = Governor(8, PERIOD_NS)
    steps = spend(governor, 1.1 * BUDGET_NS, 12)
    n = len(ladder(8)) - 1
    assert steps[:n] == list(ladder(8)[1:])
    assert set(steps[n:]) == {ladder(8)[-1]}


def test_it_stops_where_the_budget_is_kept():
    """Cost in proportion to what is read, 2.4 times the budget with all eight taps."""
    governor = Governor(8, PERIOD_NS)
    for _ in range(20 * WINDOW):
        governor.spent(int(2.4 * BUDGET_NS * governor.scan().sum() / 8))
    assert governor.step == (2, 1)


@pytest.mark.parametrize("cost", [10**10, -(10**10)], ids=["stopped for ten seconds", "clock set back"])
def test_a_few_absurd_costs_change_nothing(cost):
    """A suspended machine, a process that was not scheduled for a while; too low ones never do harm."""
    governor = Governor(8, PERIOD_NS)
    for i in range(10 * WINDOW):
        governor.scan()
        governor.spent(cost if i % WINDOW < OUTLIERS else int(0.5 * BUDGET_NS))
    assert governor.step == (7, 1)


def test_what_costs_too_much_in_one_frame_of_eight_is_seen():
    governor = Governor(8, PERIOD_NS)
    for i in range(WINDOW):
        governor.spent(int(40 * BUDGET_NS) if i % 8 == 0 else 0)
    assert governor.step == (4, 1)


def test_scans_count_in_full_where_there_are_few_of_them():
    """Not as outliers: 1.2 times the budget is over it, however few the frames that it is spent in."""
    governor = Governor(4, PERIOD_NS)
    while governor.step.tr < LONGEST_TR // 2:
        spend(governor, 2 * BUDGET_NS)
    for _ in range(WINDOW):
        governor.spent(int(1.2 * BUDGET_NS * governor.step.tr) if governor.scan().any() else 0)
    assert governor.step.tr == LONGEST_TR


def test_it_goes_back_after_a_calm_time_and_is_more_patient_when_that_was_too_early():
    governor = Governor(8, PERIOD_NS)
    low, high = 0.9 * RELAX * BUDGET_NS, 1.5 * BUDGET_NS
    spend(governor, high)
    assert governor.step == (4, 1)
    assert spend(governor, low, CALM) == [(4, 1)] * (CALM - 1) + [(7, 1)]
    spend(governor, high)
    assert governor.step == (4, 1)
    assert spend(governor, low, 2 * CALM) == [(4, 1)] * (2 * CALM - 1) + [(7, 1)]


def test_a_cost_between_the_limits_keeps_the_step():
    governor = Governor(8, PERIOD_NS)
    spend(governor, 1.5 * BUDGET_NS)
    assert set(spend(governor, 0.7 * BUDGET_NS, 5 * CALM)) == {(4, 1)}


def test_at_the_last_step_the_rotation_goes_on():
    """However long it stays over budget, no tap is forgotten."""
    governor = Governor(8, PERIOD_NS)
    spend(governor, 2 * BUDGET_NS, 10)
    scans = np.zeros(8, np.int64)
    for _ in range(100 * WINDOW):
        scans += governor.scan()
        governor.spent(int(2 * BUDGET_NS))
    assert scans[0] == 100 * WINDOW // LONGEST_TR
    assert scans[1:].min() > scans[0] / 8


def test_calm_at_the_top_is_no_step_back_and_makes_patient_again():
    governor = Governor(8, PERIOD_NS)
    low, high = 0.9 * RELAX * BUDGET_NS, 1.5 * BUDGET_NS
    spend(governor, low, CALM)
    spend(governor, high)
    assert spend(governor, low, CALM)[-1] == (7, 1)
    spend(governor, high)  # too early
    assert spend(governor, low, 2 * CALM)[-1] == (7, 1)
    spend(governor, low, 3 * CALM)
    spend(governor, high)
    assert spend(governor, low, CALM)[-1] == (7, 1)


# -- what it costs: when the monitor of the demo model speaks ------------------------------------------

DATA = Path(edge_monitor.__file__).parent / "data"
RATE_HZ = 30
MINUTE, ONSET = 60 * RATE_HZ, 30 * RATE_HZ
SCANNED = ("residual", "shift", "faults")
"""Evidence that waits for scans; the rest is there at once, or waits for signals and picture."""


@pytest.fixture(scope="module")
def region_map():
    return load_region_map(DATA / "demo_map.npz")


@pytest.fixture(scope="module")
def minute(region_map):
    """One minute of a road that the map has not seen."""
    settings = FrameSettings(frames="demo:1450", limit=BEFORE + MINUTE)
    frames = list(FrameSource(settings, region_map.taps[0].shape))
    n_taps = len(region_map.taps)
    t_ns = frames[BEFORE - 1].t_capture_ns
    start = StatRow(0, t_ns, 0, np.zeros(n_taps), np.zeros(n_taps, np.int64), 0, t_capture_ns=t_ns)
    pictures = np.stack([frame.array[0] for frame in frames])
    return Scene(frames=pictures, again=None, rows=[start], contexts=[frame.context for frame in frames])


@pytest.fixture(scope="module")
def injector(region_map, minute):
    model = (DATA / "demo_model.onnx").read_bytes()
    return Injector(model, region_map.taps, Range.of(minute.frames), RATE_HZ)


@pytest.fixture(scope="module")
def clean(injector, minute):
    return injector.rows(minute, [])


def thinned(rows, taps, step):
    """Rows as the probe gives them while the governor stays at one step; what is not read is NaN."""
    governor = Governor(len(taps), PERIOD_NS)
    while governor.step != step:
        spend(governor, 2 * BUDGET_NS)
    for row in rows:
        scan = governor.scan()
        spatial = None
        if scan.any():
            voxels, channels = row.spatial.voxels.copy(), row.spatial.channels.copy()
            voxels[~np.repeat(scan, [tap.n_voxels for tap in taps])] = np.nan
            channels[~np.repeat(scan, [tap.n_channels for tap in taps])] = np.nan
            spatial = msgspec.structs.replace(row.spatial, taps=scan, voxels=voxels, channels=channels)
        yield msgspec.structs.replace(row, spatial=spatial)


def test_the_demo_model_has_these_steps(region_map):
    assert ladder(len(region_map.taps)) == ((3, 1), (2, 1), (2, 2), (2, 4), (2, 8))


@pytest.mark.parametrize(
    ("step", "spoken_after"),
    [
        (Step(3, 1), (7, 89, 89)),
        (Step(2, 1), (14, 89, 89)),
        (Step(2, 2), (28, 178, 178)),
        (Step(2, 4), (56, 356, 356)),
        (Step(2, 8), (112, 712, 712)),  # 24 s, as SAFETY.md says
    ],
)
def test_when_evidence_speaks_and_that_clean_driving_raises_nothing(region_map, clean, step, spoken_after):
    monitor = Monitor(region_map)
    first = {}
    for i, row in enumerate(thinned(clean, region_map.taps, step)):
        report = monitor.step(row)
        assert all(flag.status is FlagStatus.INACTIVE for flag in report.flags), (i, report.reasons)
        for channel, ratio in zip(CHANNELS, report.evidence.ratio, strict=True):
            if np.isfinite(ratio):
                first.setdefault(channel, i)
    assert tuple(first.pop(channel) for channel in SCANNED) == spoken_after
    at_once = {"input", "spatial", "output", "tracts"}
    assert first == dict.fromkeys(at_once, 0) | {"jump": 2, "stall": 27, "temporal": 31, "line": 63}


@pytest.mark.parametrize(("step", "within_s"), [(Step(3, 1), 0.5), (Step(2, 8), 3.0)])
def test_dirt_on_the_lens_is_raised_at_the_first_step_and_the_last(
    region_map, injector, minute, step, within_s
):
    length = ONSET + round(within_s * RATE_HZ)
    scene = msgspec.structs.replace(minute, frames=minute.frames[: BEFORE + length])
    dirt = Injection("lens blob", (0.0,) * ONSET + (2.0,) * (length - ONSET), seed=0)
    monitor = Monitor(region_map)
    confirmed = []
    for i, row in enumerate(thinned(injector.rows(scene, [dirt]), region_map.taps, step)):
        report = monitor.step(row)
        confirmed += [(t.code, i >= ONSET) for t in report.transitions if t.after == "confirmed"]
    assert ("INPUT_SHIFTED", True) in confirmed
    assert all(late for _, late in confirmed)
