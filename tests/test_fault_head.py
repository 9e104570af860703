"""The fault head among the stages: what it sees, when it speaks, and what it says."""

import itertools

import msgspec
import naive
import numpy as np
import pytest

from edge_monitor.errors import MapError
from edge_monitor.fault_head import LEAST_CONFIDENCE, FaultHeadTracker, gather, n_inputs
from edge_monitor.region_map import FaultHead
from edge_monitor.reports import BandPowers, Connectivity, Vitals
from edge_monitor.types import BANDS, TapSpec

TAPS = (
    TapSpec("input", (3, 8, 8), (3, 2, 2), picture=(2, 2)),
    TapSpec("conv", (6, 4, 4), (3, 2, 2)),
    TapSpec("dense", (5, 1, 1), (2, 1, 1)),
)
N_FEATURES, N_INPUT = sum(tap.n_features for tap in TAPS), TAPS[0].n_features
N = n_inputs(TAPS)
NAMES = ("blur", "snow", "tear")


def findings(rng, **changes):
    """What one frame told: connectivity, bands, vitals."""
    shift = rng.normal(size=1 + N_INPUT)
    connectivity = Connectivity(
        residual=np.ones(3),
        departure=rng.normal(size=N_FEATURES),
        shift=shift,
        tract_z=np.zeros(0),
        alarming=np.zeros(0, bool),
        under=np.zeros(0, bool),
        root=None,
        weakest=None,
        residual_score=1.0,
        shift_score=float(shift[0]),
        tract_score=None,
    )
    bands = BandPowers(
        power=np.ones((3, len(BANDS))),
        z=rng.normal(size=(3, len(BANDS))),
        state=np.zeros(3, np.int64),
        held=np.zeros(3, np.int64),
        score=1.0,
        line=rng.normal(size=3),
        line_score=1.0,
        structure=rng.normal(size=(3, 5)),
    )
    vitals = Vitals(0, 0, 0, 0, 30.0, 0, 0, entropy=rng.random(), confidence=rng.random(), stall=rng.normal())
    parts = (connectivity, bands, vitals)
    return [
        msgspec.structs.replace(part, **{k: v for k, v in changes.items() if k in part.__struct_fields__})
        for part in parts
    ]


def head(seed=0, names=NAMES):
    rng = np.random.default_rng(seed)
    return FaultHead(
        names=names,
        mean=rng.normal(size=N),
        scale=rng.uniform(0.5, 2, N),
        hidden=rng.normal(0, N**-0.5, (N + 1, 8)),
        output=rng.normal(0, 1, (9, 1 + len(names))),
        accuracy=None,
    )


def sees(place):
    """A head whose faults are seen from one input alone: above its mean it is clean, below it is snow."""
    hidden, output = np.zeros((N + 1, 2)), np.zeros((3, 1 + len(NAMES)))
    hidden[place] = 1.0, -1.0
    output[0, 0] = output[1, 2] = 5.0
    return FaultHead(NAMES, np.zeros(N), np.ones(N), hidden, output, None)


def test_every_input_has_its_place():
    """In the order that the docstring states; one number in each group makes a difference in one place."""
    rng = np.random.default_rng(1)
    connectivity, bands, vitals = findings(rng)
    out = np.full(N, -7.0)
    gather(connectivity, bands, vitals, out)
    expected = [connectivity.departure, connectivity.shift[1:], bands.z.ravel(), bands.line]
    expected += [bands.structure.ravel(), [vitals.stall, vitals.entropy, vitals.confidence]]
    np.testing.assert_array_equal(out, np.concatenate(expected))


def test_what_is_not_known_is_nan():
    out = np.zeros(N)
    gather(*findings(np.random.default_rng(2), stall=None, entropy=None, confidence=None), out)
    assert np.isnan(out[-3:]).all()
    assert np.isfinite(out[:-3]).all()


@pytest.mark.parametrize("seed", range(4))
def test_lock_step_with_its_twin(seed):
    known = head(seed)
    tracker, rng, history = FaultHeadTracker(known, TAPS), np.random.default_rng(3), []
    for frame in range(60):
        parts = findings(rng, **({"stall": None, "line": np.full(3, np.nan)} if frame % 5 == 1 else {}))
        history.append(np.empty(N))
        gather(*parts, history[-1])
        guess = tracker.update(*parts)
        score, probability = naive.perceptron(history, known.mean, known.scale, known.hidden, known.output)
        order = probability.argsort()[::-1]
        assert guess.score == pytest.approx(score, rel=1e-3, abs=1e-3)
        assert guess.confidence == pytest.approx(probability[order[0]], rel=1e-3, abs=1e-4)
        if probability[order[0]] - probability[order[1]] > 1e-3:
            assert guess.name == (NAMES[order[0]] if guess.confidence >= LEAST_CONFIDENCE else None)
        if probability[order[1]] - probability[order[2]] > 1e-3:
            assert guess.second == NAMES[order[1]]


@pytest.mark.parametrize("place", [0, N_FEATURES, N - 4, N - 3, N - 1])
def test_a_fault_is_told_from_clean_driving_and_named(place):
    tracker = FaultHeadTracker(sees(place), TAPS)
    rng = np.random.default_rng(4)
    for sign in (1.0, -1.0):
        for _ in range(40):
            parts = findings(rng)
            values = np.zeros(N)
            values[place] = 3.0 * sign
            guess = tracker.update(*spread(parts, values))
        if sign > 0:
            assert guess.score < -5.0
        else:
            assert guess.score > 5.0
            assert (guess.name, guess.confidence > 0.9) == ("snow", True)


def spread(parts, values):
    """Findings with these inputs of the head."""
    connectivity, bands, vitals = parts
    sizes = (N_FEATURES, N_INPUT, 3 * len(BANDS), 3, 15)
    departure, shift, z, line, structure, rest = np.split(values, list(itertools.accumulate(sizes)))
    return (
        msgspec.structs.replace(connectivity, departure=departure, shift=np.r_[0.0, shift]),
        msgspec.structs.replace(bands, z=z.reshape(3, -1), line=line, structure=structure.reshape(3, -1)),
        msgspec.structs.replace(vitals, stall=rest[0], entropy=rest[1], confidence=rest[2]),
    )


def test_nothing_is_said_until_the_shift_is_known():
    tracker, rng = FaultHeadTracker(head(), TAPS), np.random.default_rng(5)
    for _ in range(5):
        guess = tracker.update(*findings(rng, shift_score=None))
        assert (guess.score, guess.name, guess.second) == (None, None, None)
    assert tracker.update(*findings(rng)).score is not None


def test_reset_forgets_what_was_seen():
    used, fresh = FaultHeadTracker(head(), TAPS), FaultHeadTracker(head(), TAPS)
    rng = np.random.default_rng(6)
    for _ in range(30):
        used.update(*findings(rng))
    used.reset()
    for _ in range(10):
        parts = findings(rng)
        first, second = used.update(*parts), fresh.update(*parts)
        assert msgspec.structs.asdict(first) == msgspec.structs.asdict(second)


def test_without_a_head_there_is_no_guess():
    tracker = FaultHeadTracker(None, TAPS)
    tracker.reset()
    assert tracker.update(*findings(np.random.default_rng(7))) is None


def test_one_fault_has_no_second():
    guess = FaultHeadTracker(head(names=("blur",)), TAPS).update(*findings(np.random.default_rng(8)))
    assert (guess.name, guess.confidence, guess.second) == ("blur", 1.0, None)


@pytest.mark.parametrize("name", ["mean", "scale", "hidden", "output"])
def test_a_head_for_other_taps_is_refused_by_name(name):
    short = msgspec.structs.replace(head(), **{name: getattr(head(), name)[:-1]})
    with pytest.raises(MapError, match=r"faults\.\w+: shape \(.*\), expected \(.*\)"):
        FaultHeadTracker(short, TAPS)
    with pytest.raises(MapError, match=r"faults.mean: shape \(\d+,\), expected \(\d+,\)"):
        FaultHeadTracker(head(), TAPS[:-1])
