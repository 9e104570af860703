"""Windows of reports against NumPy on the same numbers."""

import numpy as np
import pytest
from handmade import MS, bands, consistency, evidence, probe_event, regions, report, row, vitals
from hypothesis import given
from hypothesis import strategies as st

from edge_monitor.reports import HealthState
from edge_monitor.sinks.metric_window import Spread, WindowBuilder
from edge_monitor.types import Tick

NAN = float("nan")


def test_nothing_in_nothing_out():
    assert WindowBuilder().build(skipped=3) is None


def test_counts_times_and_the_worst_state():
    builder = WindowBuilder()
    builder.update(row(1), report(1, vital=vitals(missing=2, nonfinite=1, latency_ns=4 * MS)))
    builder.update(row(2), report(2, state=HealthState.FAIL, vital=vitals(nonfinite=5, latency_ns=9 * MS)))
    builder.update(row(3), report(3, state=HealthState.WARN, vital=vitals(rate_hz=29.5)))
    window = builder.build(skipped=7)
    assert (window.t_first_ns, window.t_last_ns) == (33 * MS, 99 * MS)
    assert (window.frames, window.missing, window.nonfinite, window.skipped) == (3, 2, 6, 7)
    assert (window.state, window.rate_hz, window.latency_ns_max) == ("FAIL", 29.5, 9 * MS)
    assert (window.scores, window.ratios, window.power) == ({}, {}, [])
    assert builder.build(skipped=7) is None


def test_ticks_and_events_are_no_frames():
    builder = WindowBuilder()
    builder.update(Tick(1), report(1, state=HealthState.STALE, vital=vitals(missing=9, nonfinite=9)))
    builder.update(probe_event(), report(2))
    window = builder.build(skipped=0)
    assert (window.frames, window.missing, window.nonfinite, window.latency_ns_max) == (0, 0, 0, None)
    assert window.state == "STALE"


def test_scores_have_their_names():
    builder = WindowBuilder()
    builder.update(
        row(),
        report(
            bands=bands([[1.0] * 5], 1.0),
            regions=regions(2.0, 3.0),
            consistency=consistency(4.0),
            evidence=evidence([5.0, 6.0, NAN, 8.0, 9.0, 9.5, 10.0, 11.0, NAN, 13.0, 14.0]),
        ),
    )
    window = builder.build(skipped=0)
    assert {name: spread.mean for name, spread in window.scores.items()} == {
        "temporal": 1.0,
        "spatial": 2.0,
        "input": 3.0,
        "consistency": 4.0,
    }
    assert {name: spread.mean for name, spread in window.ratios.items()} == {
        "residual": 5.0,
        "shift": 6.0,
        "faults": 8.0,
        "stall": 9.0,
        "jump": 9.5,
        "input": 10.0,
        "spatial": 11.0,
        "output": 13.0,
        "tracts": 14.0,
    }


scores = st.one_of(st.none(), st.floats(-1e6, 1e6), st.just(NAN))


@given(st.lists(scores, min_size=1, max_size=30))
def test_mean_and_maximum_of_what_is_known(values):
    builder = WindowBuilder()
    for value in values:
        builder.update(row(), report(regions=regions(value, None)))
    known = np.array([v for v in values if v is not None and np.isfinite(v)])
    got = builder.build(skipped=0).scores
    if known.size == 0:
        assert got == {}
    else:
        assert got["spatial"] == Spread(pytest.approx(known.mean(), rel=1e-9, abs=1e-9), known.max())


@given(st.data(), st.integers(1, 4), st.integers(1, 8))
def test_mean_power_leaves_out_what_is_not_warm(data, taps, frames):
    value = st.one_of(st.just(NAN), st.floats(0, 1e9))
    flat = data.draw(st.lists(value, min_size=frames * taps * 5, max_size=frames * taps * 5))
    power = np.reshape(flat, (frames, taps, 5))
    builder = WindowBuilder()
    for one in power:
        builder.update(row(), report(bands=bands(one, None)))
    got = builder.build(skipped=0).power
    for tap in range(taps):
        for band in range(5):
            known = [p for p in power[:, tap, band] if p == p]
            assert got[tap][band] == (pytest.approx(np.mean(known)) if known else None)
