"""Which bins make up a band, in exact fractions."""

from fractions import Fraction

import naive
import numpy as np
import pytest

from edge_monitor.band_plan import EDGES_HZ, WINDOWS, BandPlan
from edge_monitor.errors import InputError

# At the fractions an edge lies on a bin, and division in floats slips to the bin above.
RATES = ["7", "10", "16", "2048/49", "1664/45", "960/13", "29.97", "30", "60", "100", "200", "256", "1000"]
PLAN = BandPlan.make("nyquist", 30.0)


@pytest.mark.parametrize("scale", ["nyquist", "hz"])
@pytest.mark.parametrize("rate", RATES)
def test_bins_are_exactly_those_within_the_edges(scale, rate):
    plan = BandPlan.make(scale, float(Fraction(rate)))
    stretch = Fraction(rate) / 200 if scale == "nyquist" else 1
    for band, window in enumerate(WINDOWS):
        edges = [Fraction(edge) * stretch for edge in EDGES_HZ[band]]
        expected = naive.band_bins(edges, window, Fraction(rate), top=band == 4)
        assert list(range(*plan.bins[band])) == expected
        assert plan.observable[band] == bool(expected)
        assert plan.edges_hz[band] == pytest.approx([float(edge) for edge in edges])


def test_gamma_ends_at_nyquist_and_hz_keeps_what_a_camera_can_see():
    assert PLAN.edges_hz[-1].tolist() == pytest.approx([4.5, 15.0])
    assert PLAN.bins[-1, 1] == 17
    assert PLAN.observable.all()
    assert BandPlan.make("hz", 30.0).observable.tolist() == [True, True, True, True, False]


@pytest.mark.parametrize(
    ("scale", "rate"), [("Nyquist", 30.0), ("hz", 0.0), ("hz", -1.0), ("hz", np.nan), ("hz", np.inf)]
)
def test_a_plan_that_makes_no_sense_is_refused(scale, rate):
    with pytest.raises(InputError, match="Nyquist" if scale == "Nyquist" else "frame rate"):
        BandPlan.make(scale, rate)
