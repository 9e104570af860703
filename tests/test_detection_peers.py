"""The detectors that the benchmark of detection compares with, and how scores become alarms."""

import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import cdist
from scipy.special import logsumexp, softmax
from sklearn.covariance import ledoit_wolf

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

import _detection_peer as base
import _detection_peers as peers
import _detection_transforms as transforms
from _detection_peer import Stream
from _detection_peers import PEERS
from _detection_transforms import TRANSFORMS, Fusion, Scale, Surprise, Threshold

WEIGHTS = np.random.default_rng(7).normal(size=(8, 4))
BIAS = 1.0 - 1.3 * WEIGHTS.sum(axis=0)  # features are about 1.3: every class is predicted now and then


def stream(n, seed, trip=300):
    """Clean frames of a made-up network: one scene value drives all taps."""
    rng = np.random.default_rng(seed)
    scene = rng.normal(size=(n, 3))

    def field(width, world):
        mix = np.random.default_rng(world).normal(size=(3, width))
        return np.exp(0.3 * scene @ mix + 0.1 * rng.normal(size=(n, width)))

    penultimate = field(8, 1)
    logits = penultimate @ WEIGHTS + BIAS
    return Stream(
        start=np.arange(n) % trip == 0,
        signals=field(4, 2),
        channels=field(12, 3),
        voxel_mean=field(10, 4),
        penultimate=penultimate,
        confidence=softmax(logits, axis=1).max(axis=1),
        logits=logits,
        picture=field(6, 5),
        colours=field(6, 6),
        difference=field(1, 8)[:, 0],
        guard=np.zeros(n, bool),
        overexposed=np.zeros(n, bool),
    )


def changed(clean, first, **fields):
    """Frames from ``first`` on with other fields."""
    mixed = {}
    for name, value in fields.items():
        mixed[name] = getattr(clean, name).copy()
        mixed[name][first:] = value[first:]
    return msgspec.structs.replace(clean, **mixed)


def fitted(name, clean):
    if name == "ADWIN":
        pytest.importorskip("river")
    peer = PEERS[name]()
    peer.fit(clean)
    return peer


def one_channel(values, factor):
    result = values.copy()
    result[:, 2] *= factor
    return result


def uncertain(s):
    return {"confidence": 0.25 + 0.01 * s.confidence}


SHIFTS = {
    "max softmax": uncertain,
    "energy": lambda s: {"logits": 0.01 * s.logits - 3.0},
    "Mahalanobis, penultimate": lambda s: {"penultimate": one_channel(s.penultimate, 6.0)},
    "KNN, penultimate": lambda s: {"penultimate": one_channel(s.penultimate, 20.0)},
    "ViM": lambda s: {"penultimate": s.penultimate + 15.0 * np.sign(WEIGHTS[:, 0] - 0.2)},
    "Mahalanobis, all layers": lambda s: {"channels": one_channel(s.channels, 0.05)},
    "z of mean activation": lambda s: {"signals": one_channel(s.signals, 10.0)},
    "ADWIN": uncertain,
    "frame difference": lambda s: {"difference": 0.001 * s.difference},
    "image quality": lambda s: {"picture": one_channel(s.picture, 0.05)},
    "input levels": lambda s: {"colours": one_channel(s.colours, 0.05)},
    "range supervision": lambda s: {"voxel_mean": one_channel(s.voxel_mean, 0.0) - 2.0},
}


@pytest.mark.parametrize("name", PEERS)
def test_a_shift_in_what_a_peer_looks_at(name):
    peer = fitted(name, stream(6000, 0))
    clean = stream(600, 1, trip=600)
    faulty = changed(clean, 300, **SHIFTS[name](clean))
    before, after = peer.score(clean), peer.score(faulty)
    np.testing.assert_array_equal(after[:300], before[:300])  # no look ahead
    if name == "ADWIN":
        assert (after[:300] == 0).all()
        assert after[300:400].max() >= 6.0  # a drift that even a confidence of 1e-6 finds
        assert (after[530:] == 0).all()  # held for a second, not for ever
    else:
        assert np.median(after[310:]) > np.nanquantile(before, 0.9)


@pytest.mark.parametrize("name", PEERS)
def test_scores_do_not_depend_on_chunks_and_repeat(name, monkeypatch):
    clean, judged = stream(3000, 0), stream(1000, 1)
    once = fitted(name, clean).score(judged)
    assert once.shape == (1000,)
    assert once.dtype == np.float64
    for module in (base, peers):
        monkeypatch.setattr(module, "CHUNK", 77)
    np.testing.assert_allclose(fitted(name, clean).score(judged), once, rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("max softmax", "confidence"),
        ("energy", "logits"),
        ("Mahalanobis, penultimate", "penultimate"),
        ("KNN, penultimate", "penultimate"),
        ("ViM", "logits"),
        ("Mahalanobis, all layers", "channels"),
        ("z of mean activation", "signals"),
        ("ADWIN", "confidence"),
        ("frame difference", "difference"),
        ("image quality", "picture"),
        ("input levels", "colours"),
        ("range supervision", "voxel_mean"),
    ],
)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_says_nothing_and_teaches_nothing(name, field, bad):
    clean, judged = stream(3000, 0), stream(200, 1)
    values = getattr(clean, field).copy()
    values[5] = bad
    broken = fitted(name, msgspec.structs.replace(clean, **{field: values}))
    values = getattr(judged, field).copy()
    values[50] = bad
    scores = broken.score(msgspec.structs.replace(judged, **{field: values}))
    settles = getattr(broken, "settles", 0)
    assert np.flatnonzero(np.isnan(scores)).tolist() == [*range(settles), 50]


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("Mahalanobis, penultimate", "penultimate"),
        ("Mahalanobis, all layers", "channels"),
        ("z of mean activation", "signals"),
        ("image quality", "picture"),
        ("range supervision", "channels"),
    ],
)
def test_a_dead_feature_is_quiet_until_it_wakes(name, field):
    def dead(s, value):
        values = getattr(s, field).copy()
        values[:, 1] = value
        return msgspec.structs.replace(s, **{field: values})

    peer = fitted(name, dead(stream(3000, 0), 0.0))
    judged = stream(300, 1)
    quiet, awake = peer.score(dead(judged, 0.0)), peer.score(dead(judged, 1.0))
    assert np.isfinite(quiet[2:]).all()
    assert np.nanmin(awake) > np.nanmax(quiet)


# Parity with formulas written out.


def test_softmax_and_energy():
    judged = stream(50, 1)
    p = np.exp(judged.logits) / np.exp(judged.logits).sum(axis=1, keepdims=True)
    wrong = msgspec.structs.replace(judged, logits=-judged.logits)  # the healthy layer's are not the answer
    np.testing.assert_allclose(PEERS["max softmax"]().score(wrong), 1 - p.max(axis=1), atol=1e-14)
    energy = -np.log(np.exp(judged.logits).sum(axis=1))
    np.testing.assert_allclose(PEERS["energy"]().score(judged), energy, rtol=1e-12)


def test_mahalanobis_is_the_distance_to_the_nearest_predicted_class():
    clean, judged = stream(2000, 0), stream(60, 1)
    predicted = clean.logits.argmax(axis=1)
    classes = [c for c in range(4) if (predicted == c).sum() >= peers.CLASS_ROWS]
    assert len(classes) >= 2
    means = {c: clean.penultimate[predicted == c].mean(axis=0) for c in classes}
    rows = [x - means[c] for x, c in zip(clean.penultimate, predicted, strict=True) if c in means]
    rows = np.array(rows)
    covariance = ledoit_wolf(rows, assume_centered=True)[0] + 1e-4 * (rows**2).mean() * np.eye(8)
    inverse = np.linalg.inv(covariance)
    expected = [min((x - m) @ inverse @ (x - m) for m in means.values()) for x in judged.penultimate]
    np.testing.assert_allclose(fitted("Mahalanobis, penultimate", clean).score(judged), expected, rtol=1e-9)


def test_mahalanobis_of_all_layers():
    clean, judged = stream(2000, 0), stream(60, 1)
    mean = clean.channels.mean(axis=0)
    floor = 0.03 * mean + 1e-3 * np.median(mean)
    logs, center = np.log(clean.channels + floor), np.log(clean.channels + floor).mean(axis=0)
    inverse = np.linalg.inv(ledoit_wolf(logs)[0] + 1e-4 * np.eye(12))
    expected = cdist(np.log(judged.channels + floor), center[None], "mahalanobis", VI=inverse)[:, 0] ** 2
    np.testing.assert_allclose(fitted("Mahalanobis, all layers", clean).score(judged), expected, rtol=1e-8)


def test_neighbours():
    clean, judged = stream(1500, 0), stream(60, 1)  # all of them fit into the bank
    unit = [s.penultimate / np.linalg.norm(s.penultimate, axis=1)[:, None] for s in (judged, clean)]
    expected = np.sort(cdist(*unit), axis=1)[:, peers.Neighbours.k - 1]
    np.testing.assert_allclose(fitted("KNN, penultimate", clean).score(judged), expected, atol=2e-3)


def test_vim():
    """With the layer's true weights, which the detector does not see."""
    clean, judged = stream(2000, 0), stream(60, 1)
    origin = -np.linalg.pinv(WEIGHTS.T) @ BIAS
    _, _, directions = np.linalg.svd(clean.penultimate - origin)

    def residual(s):
        x = s.penultimate - origin
        return np.linalg.norm(x - x @ directions[:4].T @ directions[:4], axis=1)

    alpha = clean.logits.max(axis=1).mean() / residual(clean).mean()
    expected = alpha * residual(judged) - logsumexp(judged.logits, axis=1)
    np.testing.assert_allclose(fitted("ViM", clean).score(judged), expected, rtol=1e-8, atol=1e-8)


def test_frame_difference_is_two_sided_and_skips_the_first_frame():
    clean = stream(3000, 0)
    peer = fitted("frame difference", clean)
    factors = np.array([1.0, 1.0, 0.01, 100.0])
    judged = msgspec.structs.replace(stream(4, 1), difference=np.median(clean.difference) * factors)
    scores = peer.score(judged)
    assert np.isnan(scores[0])
    assert scores[1] < 0.1
    assert min(scores[2:]) > 5
    logs = np.log(clean.difference)
    deviation = np.median(np.abs(logs - np.median(logs)))
    assert scores[3] == pytest.approx(np.log(100) / deviation, rel=0.02)


def test_image_quality_waits_for_its_second_difference():
    scores = fitted("image quality", stream(3000, 0)).score(stream(600, 1))
    assert np.flatnonzero(np.isnan(scores)).tolist() == [0, 1, 300, 301]


def test_range_supervision_counts_widths_outside():
    clean = stream(5000, 0)
    peer = fitted("range supervision", clean)
    assert (peer.score(clean) == 0).all()  # every frame was learnt from, not a sample
    low, high = clean.channels.min(axis=0), clean.channels.max(axis=0)
    judged = stream(1, 1)
    judged = msgspec.structs.replace(judged, channels=clean.channels[:1], voxel_mean=clean.voxel_mean[:1])
    judged.channels[0, 3] = high[3] + 0.5 * (high[3] - low[3])
    judged.channels[0, 4] = low[4] - 2.0 * (high[4] - low[4])
    np.testing.assert_allclose(peer.score(judged), [2.5])


def test_adwin_forgets_at_the_start_of_a_trip():
    pytest.importorskip("river")
    judged = msgspec.structs.replace(stream(600, 0), confidence=np.repeat([0.999, 0.25], 300))
    assert (PEERS["ADWIN"]().score(judged) == 0).all()
    one_trip = msgspec.structs.replace(judged, start=np.arange(600) == 0)
    scores = PEERS["ADWIN"]().score(one_trip)
    assert scores[:300].max() == 0
    assert scores[300:].max() >= 18


# Transforms.


@st.composite
def score_streams(draw, max_size=60):
    n = draw(st.integers(1, max_size))
    # Small integers: ties happen, and sums are exact.
    scores = draw(hnp.arrays(np.float64, n, elements=st.sampled_from([*range(-2, 6), np.nan])))
    return scores, draw(
        hnp.arrays(np.bool_, n, elements=st.booleans() if n < 9 else st.sampled_from([0] * 9 + [1]))
    )


def naive(name, scores, start):
    result, trip, level = [], [], 0.0
    for score, first in zip(scores, start, strict=True):
        if first:
            trip, level = [], 0.0
        trip.append(score)
        if np.isnan(score):
            result.append(np.nan)
            continue
        level = min(max(level + score - 0.5, 0), transforms.CUSUM_CAP)
        least = min(x for x in trip[-4:] if not np.isnan(x))
        mean = np.mean([x for x in trip[-12:] if not np.isnan(x)])
        result.append({"raw": score, "min 4": least, "mean 12": mean, "CUSUM": level}[name])
    return np.array(result)


@pytest.mark.parametrize("name", TRANSFORMS)
@given(score_streams())
def test_transforms(name, drawn):
    scores, start = drawn
    np.testing.assert_allclose(TRANSFORMS[name](scores, start), naive(name, scores, start), rtol=1e-14)


def test_cusum_is_capped(monkeypatch):
    monkeypatch.setattr(transforms, "CUSUM_CAP", 5.0)
    scores = np.array([9.0, 9.0, -2.0, np.nan, -9.0])
    np.testing.assert_array_equal(transforms.cusum(scores, np.zeros(5, bool)), [5, 5, 2.5, np.nan, 0])


def test_scale():
    scale = Scale.fit(np.array([1.0, 3.0, np.nan]))
    np.testing.assert_array_equal(scale(np.array([1.0, 2.0, 5.0])), [-1, 0, 3])
    assert Scale.fit(np.full(4, 3.0)) == Scale(3.0, 1.0)
    assert Scale.fit(np.array([np.nan])) == Scale(0.0, 1.0)


def test_surprise_of_an_exponential_is_the_excess_over_its_start():
    rng = np.random.default_rng(0)
    surprise = Surprise.fit(2.0 + 3.0 * rng.exponential(size=400_000))
    x = np.array([1.0, 2.0, 5.0, 11.0, 17.9, 32.0, np.nan])
    np.testing.assert_allclose(surprise(x), [0, 0, 1, 3, 5.3, 10, np.nan], atol=0.35)
    np.testing.assert_allclose(surprise(x[2:4]), [1, 3], atol=0.02)


@given(hnp.arrays(np.float64, st.integers(1, 300), elements=st.integers(-3, 3).map(float)))
def test_surprise_rises_with_the_score_and_is_the_empirical_share(clean):
    surprise = Surprise.fit(clean)
    x = np.linspace(-4, 6, 81)
    values = surprise(x)
    assert np.isfinite(values).all()
    assert (np.diff(values) >= 0).all()
    below = np.sort(clean)[int(0.995 * (clean.size - 1))]
    share = np.array([(clean >= score).mean() for score in x[x <= below]])
    np.testing.assert_allclose(values[x <= below], -np.log(share), rtol=1e-12, atol=1e-12)
    assert surprise(np.array([below + 1.0]))[0] > values[x <= below].max()


def test_surprise_of_a_silent_detector():
    assert np.isnan(Surprise.fit(np.full(5, np.nan))(np.zeros(3))).all()


# Events and thresholds.


def naive_events(alarm, start):
    count, last = 0, None
    for i, (on, first) in enumerate(zip(alarm, start, strict=True)):
        if first:
            last = None
        if on:
            count += last is None or i - last >= 90
            last = i
    return count


@st.composite
def sparse_streams(draw):
    """Long enough for several events: mostly background, trips and peaks at drawn places."""
    n = draw(st.integers(1, 1200))
    places = st.lists(st.integers(0, n - 1), max_size=25)
    scores = np.random.default_rng(draw(st.integers(0, 9))).integers(0, 3, n).astype(np.float64)
    for place in draw(places):
        scores[place : place + draw(st.sampled_from([1, 3, 120]))] = draw(st.integers(2, 12))
    scores[draw(places)] = np.nan
    start, overexposed = np.zeros((2, n), bool)
    start[draw(places)] = True
    for place in draw(places)[:3]:
        overexposed[place : place + 50] = True
    return scores, start, overexposed


@given(sparse_streams(), st.integers(1, 12))
def test_count_events(drawn, level):
    scores, start, _ = drawn
    assert transforms.count_events(scores > level, start) == naive_events(scores > level, start)


def test_events_are_separate_from_90_frames_on():
    alarm = np.zeros(400, bool)
    alarm[[10, 99]] = True
    assert transforms.count_events(alarm, np.zeros(400, bool)) == 1
    alarm[99], alarm[100] = False, True
    assert transforms.count_events(alarm, np.zeros(400, bool)) == 2
    alarm[[189, 190]] = True  # one chain with what began at 100
    assert transforms.count_events(alarm, np.zeros(400, bool)) == 2
    assert transforms.count_events(alarm, np.arange(400) == 150) == 3
    assert transforms.count_events(np.zeros(400, bool), np.zeros(400, bool)) == 0


@settings(max_examples=200)
@given(sparse_streams(), st.booleans(), st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0, 5.0]))
def test_threshold_is_the_lowest_within_the_budget(drawn, gate, events):
    scores, start, overexposed = drawn
    threshold = transforms.threshold_for(scores, start, overexposed, gate, events)
    gated = gate and bool((overexposed & ~np.isnan(scores)).any())
    ordinary = np.where(overexposed, np.nan, scores) if gated else scores
    if gated:
        assert threshold.overexposed == 1.25 * scores[overexposed & ~np.isnan(scores)].max()
    else:
        assert threshold.overexposed == threshold.ordinary
    none = np.zeros(scores.shape, bool)
    alarm = threshold.alarm(scores, overexposed, none)
    assert naive_events(alarm, start) <= events
    candidates = np.unique(ordinary[~np.isnan(ordinary)])
    if candidates.size == 0:
        assert threshold.ordinary == np.inf
        return
    assert threshold.ordinary in candidates
    for higher in candidates[candidates >= threshold.ordinary]:
        assert naive_events(ordinary > higher, start) <= events
    lower = candidates[candidates < threshold.ordinary]
    if lower.size:
        assert naive_events(ordinary > lower[-1], start) > events


@pytest.mark.parametrize(("apart", "lowest"), [(89, 0.0), (90, 3.0)])
@pytest.mark.parametrize("first_is_higher", [True, False])
def test_threshold_joins_peaks_less_than_90_frames_apart(apart, lowest, first_is_higher):
    scores, never = np.zeros(300), np.zeros(300, bool)
    scores[[50, 50 + apart]] = (4.0, 3.0) if first_is_higher else (3.0, 4.0)
    assert transforms.threshold_for(scores, never, never, False, 1).ordinary == lowest


def test_threshold_takes_in_all_ties_before_it_counts():
    scores, never = np.zeros(300), np.zeros(300, bool)
    scores[[0, 200]] = 5.0
    scores[[100, 150]] = 4.0  # the first is a third event, until the second joins it to the one at 200
    assert transforms.threshold_for(scores, never, never, False, 2).ordinary == 0.0


def test_guards_and_gate_decide_beside_the_score():
    scores = np.array([1.0, 3.0, 3.0, 9.0, np.nan, np.nan])
    overexposed = np.array([0, 0, 1, 1, 0, 0], bool)
    guard = np.array([0, 0, 0, 0, 1, 0], bool)
    alarm = Threshold(2.0, 5.0).alarm(scores, overexposed, guard)
    assert alarm.tolist() == [False, True, False, True, True, False]


def fusion_case():
    rng = np.random.default_rng(3)
    start = np.arange(20_000) % 2000 == 0
    columns = [rng.exponential(size=20_000), 5 + 0.01 * rng.normal(size=20_000), np.zeros(20_000)]
    overexposed = np.arange(20_000) % 5000 < 200
    return columns, start, overexposed


def test_fusion_gives_every_column_the_same_share():
    columns, start, overexposed = fusion_case()
    fusion = Fusion(columns, start, overexposed, True, 6)
    scores = fusion.score(columns, overexposed)
    for column in columns[:2]:  # each alone, at 2 of the 6 events
        surprise = Surprise.fit(column)(column)
        alone = transforms.threshold_for(surprise, start, overexposed, True, 2)
        alarm = alone.alarm(surprise, overexposed, np.zeros(20_000, bool))
        assert transforms.count_events(alarm, start) == 2
        assert (scores[alarm] > 1).all()
        np.testing.assert_allclose(surprise / alone.of(overexposed) <= scores * (1 + 1e-12), True)
    assert transforms.count_events(scores > 1, start) == 4
    assert scores[overexposed].max() == pytest.approx(1 / 1.25)


@pytest.mark.parametrize("which", range(3))
def test_fusion_hears_any_column_and_ignores_the_silent(which):
    columns, start, overexposed = fusion_case()
    columns.append(np.full(20_000, np.nan))
    fusion = Fusion(columns, start, overexposed, False, 4)
    now = [np.array([column[0], 50.0 if i == which else column[1]]) for i, column in enumerate(columns)]
    scores = fusion.score(now, np.zeros(2, bool))
    assert scores[0] < 1 < scores[1]
    silent = fusion.score([np.full(2, np.nan)] * 4, np.zeros(2, bool))
    assert np.isnan(silent).all()
