"""Every fault of the table has exactly one maker; stream faults deliver what their names say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_monitor.errors import InputError
from edge_monitor.offline import model_faults, picture_faults, stream_faults
from edge_monitor.offline.faults import EXTRAS, FAULTS, SEVERITIES, Stage, amount_at
from edge_monitor.offline.stream_faults import Delivery, deliveries

MAKERS = {Stage.PICTURE: picture_faults, Stage.MODEL: model_faults, Stage.STREAM: stream_faults}
STREAM = [fault.name for fault in FAULTS + EXTRAS if fault.stage is Stage.STREAM]
N = 300


def clean(n: int) -> list[Delivery]:
    return [Delivery(k, False, k, True, 0.0) for k in range(n)]


def test_table_has_the_24_faults_and_4_extras():
    assert len(FAULTS) == 24
    assert [fault.name for fault in EXTRAS] == ["true freeze", "stutter", "latency stall", "dropped frames"]
    assert len({fault.name for fault in FAULTS + EXTRAS}) == 28
    assert all(fault.text.endswith(".") for fault in FAULTS + EXTRAS)


def test_every_fault_has_exactly_the_maker_of_its_stage():
    for stage, maker in MAKERS.items():
        assert set(maker._KINDS) == {fault.name for fault in FAULTS + EXTRAS if fault.stage is stage}


def test_only_pictures_change_gradually():
    assert {fault.stage for fault in FAULTS + EXTRAS if fault.gradual} == {Stage.PICTURE}


@given(st.floats(0.0, 3.0))
def test_amounts_are_interpolated(level: float):
    assert amount_at(level, (0.0, 1.0, 2.0, 3.0)) == pytest.approx(level)


def test_amounts_at_the_severities_are_those_given():
    assert [amount_at(level, (9.0, 5.0, 4.0, 1.0)) for level in SEVERITIES] == [5.0, 4.0, 1.0]
    assert amount_at(0.5, (9.0, 5.0, 4.0, 1.0)) == 7.0


@pytest.mark.parametrize("level", [-0.1, 3.01, float("nan"), float("inf")])
def test_level_outside_0_to_3_is_refused(level: float):
    with pytest.raises(InputError, match=f"must be 0 to 3, not {level}"):
        deliveries("stutter", level, 0, 10)


def test_unknown_stream_fault_is_named():
    with pytest.raises(InputError, match="'fog' is none of frame reorder, true freeze"):
        deliveries("fog", 1.0, 0, 10)


@pytest.mark.parametrize("name", STREAM)
def test_level_0_delivers_every_frame_as_it_is(name: str):
    assert deliveries(name, 0.0, 0, N) == clean(N)


@pytest.mark.parametrize("name", STREAM)
@pytest.mark.parametrize("level", [0.5, 1.0, 2.0, 3.0])
def test_same_seed_same_deliveries(name: str, level: float):
    found = deliveries(name, level, 5, N)
    assert len(found) == N
    assert found != clean(N)
    assert found == deliveries(name, level, 5, N)
    if name != "true freeze":
        assert found != deliveries(name, level, 6, N)


def test_true_freeze_holds_the_scene_while_capture_times_go_on():
    found = deliveries("true freeze", 1.0, 0, N)
    assert found[0] == Delivery(0, False, 0, True, 0.0)
    assert found[1:] == [Delivery(0, True, k, True, 0.0) for k in range(1, N)]


@pytest.mark.parametrize(("level", "held"), [(1.0, 5), (2.0, 10), (3.0, 15)])
def test_stutter_holds_the_scene_for_so_many_frames(level: float, held: int):
    found = deliveries("stutter", level, 1, N)
    again = np.array([delivery.again for delivery in found])
    assert [delivery.t_capture_frame for delivery in found] == list(range(N))
    assert not again[0]
    assert again[1 : held + 1].all()
    starts = np.flatnonzero(np.diff(again.astype(int)) == 1)
    ends = np.flatnonzero(np.diff(again.astype(int)) == -1)
    assert (ends - starts[: len(ends)] == held).all()
    for k, delivery in enumerate(found):
        assert delivery.index == (max(start for start in starts if start < k) if again[k] else k)


@given(st.integers(0, 1000), st.floats(0.5, 3.0), st.integers(0, 100))
def test_reorder_swaps_neighbours_and_loses_none(seed: int, level: float, n: int):
    found = deliveries("frame reorder", level, seed, n)
    assert sorted(delivery.index for delivery in found) == list(range(n))
    assert all(abs(delivery.index - k) <= 1 for k, delivery in enumerate(found))
    assert all(delivery.index == delivery.t_capture_frame for delivery in found)


def test_share_of_reordered_and_of_dropped_frames_rises_with_level():
    for name, bounds in [("frame reorder", (0.06, 0.25, 0.65)), ("dropped frames", (0.03, 0.12, 0.35))]:
        for level, bound in zip(SEVERITIES, bounds, strict=True):
            found = deliveries(name, level, 0, 5000)
            bad = [delivery.index != k or not delivery.delivered for k, delivery in enumerate(found)]
            assert bound < np.mean(bad) < 2.2 * bound


def test_latency_stall_delays_a_few_frames_and_alters_nothing_else():
    for level, periods in zip(SEVERITIES, (2.0, 4.0, 8.0), strict=True):
        found = deliveries("latency stall", level, 0, N)
        assert {delivery.extra_latency for delivery in found} == {0.0, periods}
        assert found[0].extra_latency == periods
        assert 0.02 < np.mean([delivery.extra_latency > 0.0 for delivery in found]) < 0.3
        assert [delivery._replace(extra_latency=0.0) for delivery in found] == clean(N)
