"""Signs of life: what each kind of trouble in a stream of rows looks like."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_monitor.kernels.goertzel import GAP_LIMIT
from edge_monitor.taps.reducer import TapReducer, input_spec
from edge_monitor.types import OutputSummary, SpatialBlock, StatRow, TapSpec
from edge_monitor.vitals import HELD_FRAMES, LAG, LEAST_JUMP, MOVING_MPS, STALL_FRAMES, STEADY, VitalsTracker

RATE_HZ = 30.0
PERIOD_NS = 1e9 / RATE_HZ
INPUT = TapSpec("image", (1, 2, 4), (1, 1, 2))


def row(frame, at=None, *, capture=None, fingerprint=None, signals=None, nonfinite=(0, 0), output=None):
    """Frame that arrives ``at`` periods after the start, with content of its own unless told."""
    return StatRow(
        frame=frame,
        t_ns=int((frame if at is None else at) * PERIOD_NS),
        latency_ns=4_000_000,
        signals=np.array([frame, frame + 0.5] if signals is None else signals, float),
        nonfinite=np.array(nonfinite, np.int64),
        fingerprint=frame if fingerprint is None else fingerprint,
        t_capture_ns=None if capture is None else int(capture * PERIOD_NS),
        output=output,
    )


def follow(*rows, spec=INPUT):
    tracker = VitalsTracker(RATE_HZ, spec)
    return [tracker.update(r) for r in rows]


def test_a_clean_stream_has_nothing_to_report():
    for vitals in follow(*(row(i) for i in range(100))):
        assert (vitals.missing, vitals.repeated, vitals.stale, vitals.nonfinite) == (0, 0, 0, 0)
        assert (vitals.silence_ns, vitals.latency_ns) == (0, 4_000_000)
    assert vitals.rate_hz == pytest.approx(RATE_HZ, rel=1e-6)


@pytest.mark.parametrize(
    ("second", "missing"),
    [
        (row(1), 0),
        (row(4), 3),
        (row(4, at=1), 3),  # frame numbers show it
        (row(1, at=4), 3),  # time shows it
        (row(1, at=1.7), 0),  # late, but no frame is missing
        (row(1, at=1.8), 1),  # one is missing, and this one is early
        (row(1, at=0.1), 0),
        (row(1, at=-50), 0),  # a clock that jumped back
        (row(0, at=1), 0),  # a restarted frame counter
    ],
)
def test_missing_frames(second, missing):
    assert follow(row(0), second)[1].missing == missing


def test_age_follows_the_clock_of_the_stream_and_never_runs_back():
    """A recording played ten times as fast is as old as the drive it shows."""
    quick = [row(i, at=i / 10, capture=i) for i in range(31)]
    assert follow(*quick)[-1].age_ns == pytest.approx(1e9, abs=2)
    assert [v.age_ns for v in follow(row(0), row(1, at=-50), row(2, at=-49))][1] == 0


@given(start=st.integers(0, 10_000), gap=st.integers(1, 1000))
def test_every_missing_frame_counts_whatever_the_rounding_of_its_time(start, gap):
    assert follow(row(start), row(start + 1, at=start + gap))[1].missing == gap - 1


def test_capture_time_counts_when_both_rows_have_it():
    rows = (
        row(0, at=1000, capture=5),
        row(1, at=1001, capture=8),
        row(2, at=1002),
        row(3, at=1003, capture=9),
    )
    assert [vitals.missing for vitals in follow(*rows)] == [0, 2, 0, 0]


def test_repeated_input_is_not_stale_activations():
    same = {"fingerprint": 7, "signals": (1, 2)}
    vitals = follow(row(0, **same), row(1, **same), row(2, **same), row(3))
    assert [v.repeated for v in vitals] == [0, 1, 2, 0]
    assert [v.stale for v in vitals] == [0, 0, 0, 0]


def test_stale_activations_are_those_behind_a_changed_input():
    """Tap 0 is the input itself: it changes with the picture even when the network is deaf."""
    vitals = follow(*(row(i, signals=(i, 2.5)) for i in range(4)), row(4))
    assert [v.stale for v in vitals] == [0, 1, 2, 3, 0]
    assert [v.repeated for v in vitals] == [0, 0, 0, 0, 0]


def test_stale_means_the_same_bits():
    assert follow(row(0, signals=(0, 0.3)), row(1, signals=(1, np.nextafter(0.3, 1))))[1].stale == 0
    assert follow(row(0, signals=(0, np.nan)), row(1, signals=(1, np.nan)))[1].stale == 1


def test_non_finite_values_of_taps_and_output_add_up():
    output = OutputSummary(top1=0, confidence=None, entropy=None, nonfinite=2)
    assert follow(row(0, nonfinite=(3, 4), output=output))[0].nonfinite == 9


def test_the_output_head_is_passed_on():
    output = OutputSummary(top1=1, confidence=0.75, entropy=0.5, nonfinite=0)
    known, unknown = follow(row(0, output=output), row(1))
    assert (known.entropy, known.confidence) == (0.5, 0.75)
    assert (unknown.entropy, unknown.confidence) == (None, None)


def test_the_rate_is_unknown_at_first_and_follows_within_seconds():
    tracker = VitalsTracker(RATE_HZ, INPUT)
    assert tracker.update(row(0)).rate_hz is None
    assert tracker.update(row(1, at=0)).rate_hz is None  # two rows at one instant tell no rate
    for i in range(90):
        vitals = tracker.update(row(i + 2, at=2 * i))
    assert vitals.rate_hz == pytest.approx(15.0, rel=1e-3)
    for i in range(60):
        vitals = tracker.update(row(i + 92, at=180 + i))
    assert vitals.rate_hz == pytest.approx(30.0, rel=0.15)


def test_a_tick_tells_the_silence_and_keeps_the_rest():
    tracker = VitalsTracker(RATE_HZ, INPUT)
    assert tracker.tick(5) is None
    last = tracker.update(row(3, at=10, capture=2, nonfinite=(1, 0)))
    silent = tracker.tick(int(15 * PERIOD_NS))
    assert silent.silence_ns == pytest.approx(5 * PERIOD_NS, abs=2)
    assert msgspec.structs.replace(silent, silence_ns=0) == last
    assert tracker.tick(0).silence_ns == 0


def test_a_gap_is_told_once():
    tracker = VitalsTracker(RATE_HZ, INPUT)
    tracker.update(row(0))
    assert tracker.update(row(5)).missing == 4
    assert tracker.tick(int(6 * PERIOD_NS)).missing == 0
    assert tracker.update(row(6)).missing == 0


def test_reset_forgets_the_stream():
    tracker = VitalsTracker(RATE_HZ, INPUT)
    for i in range(3):
        tracker.update(row(i, fingerprint=1))
    tracker.reset()
    assert tracker.tick(10**12) is None
    vitals = tracker.update(row(50, fingerprint=1))
    assert (vitals.missing, vitals.repeated, vitals.rate_hz) == (0, 0, None)


def block(pixels):
    """Sums over the input's two voxels of four pixels each, and one tapped voxel."""
    sums = [(np.abs(x).sum(), x.sum(), (x * x).sum()) for x in np.split(np.array(pixels, float), 2)]
    return SpatialBlock(1, np.ones(2, bool), np.array([*sums, (1.0, 1.0, 1.0)]), np.ones(2))


@pytest.mark.parametrize(
    ("pixels", "repeated"),
    [
        ([255.0] * 8, 0),
        ([0.0] * 8, 0),
        ([0.1] * 8, 0),
        ([255.0] * 7 + [254.0], 3),
        ([7.0] * 4 + [9.0] * 4, 0),
    ],
)
def test_a_flat_picture_repeats_without_a_fault(pixels, repeated):
    """Over-exposed to pure white at a tunnel's exit, a live camera sends the same bits again."""
    rows = [msgspec.structs.replace(row(i, fingerprint=5), spatial=block(pixels)) for i in range(4)]
    assert follow(*rows)[-1].repeated == repeated


@pytest.mark.parametrize(("pixel", "repeated"), [(255.0, 0), (254.0, 3)])
def test_a_flat_picture_is_known_in_frames_that_are_not_scanned(pixel, repeated):
    spec = input_spec("x", (3, 8, 8))
    reducer = TapReducer((spec,), ())
    frame = np.full((3, 8, 8), 255.0)
    frame[1, 5, 6] = pixel
    rows = []
    for i in range(4):
        reducer.load_input(frame)
        rows.append(msgspec.structs.replace(row(i, fingerprint=5), picture=reducer.reduce().picture))
    assert follow(*rows, spec=spec)[-1].repeated == repeated


def test_a_block_without_the_input_does_not_show_that_it_is_flat():
    """Sums of a tap that took no part are 0, as those of a black picture are."""
    without = msgspec.structs.replace(block([0.0] * 8), taps=np.array([False, True]))
    rows = [msgspec.structs.replace(row(i, fingerprint=5), spatial=without) for i in range(4)]
    assert follow(*rows)[-1].repeated == 3


@pytest.mark.parametrize(
    ("second", "backwards"),
    [
        (row(1), False),
        (row(1, at=0), False),  # at the same instant
        (row(1, at=-0.001), True),
        (row(1, at=1, capture=-1), False),  # no common clock but ours
        (row(0, at=1), False),  # a restarted frame counter
    ],
)
def test_time_that_runs_back(second, backwards):
    assert [v.backwards for v in follow(row(0), second)] == [False, backwards]


def test_a_frame_taken_earlier_and_delivered_later_runs_back():
    """Two buffers change places: our own clock goes on, the camera's does not."""
    rows = [row(i, capture=taken) for i, taken in enumerate((10, 11, 13, 12, 14))]
    assert [v.backwards for v in follow(*rows)] == [False, False, False, True, False]


# A scene that stands still although the vehicle drives.

FAST = 20.0
WARM = LAG + STALL_FRAMES - 1
"""Frames of driving before the stall is known."""


def seen(frame, short=0.01, long=0.05, jump=0.0, speed=FAST):
    """A row whose thumbnail moved so much over 1 and over 16 frames, and whose scene jumped."""
    context = {} if speed is None else {"speed_mps": speed}
    return msgspec.structs.replace(row(frame), picture=np.array([0.0, short, long, jump]), context=context)


def stalls(*rows):
    return [vitals.stall for vitals in follow(*rows)]


def test_the_stall_is_a_mean_of_logs_once_the_vehicle_has_driven_long_enough():
    found = stalls(*(seen(i, 0.01, 0.01 + 0.002 * i) for i in range(60)))
    assert found[:WARM] == [None] * WARM
    for i in range(WARM, 60):
        expected = np.mean([np.log(0.01 / (0.01 + 0.002 * k)) for k in range(i - STALL_FRAMES + 1, i + 1)])
        assert found[i] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("speed", [None, 0.0, MOVING_MPS, np.nan])
def test_a_vehicle_that_stands_or_tells_no_speed_has_no_stall(speed):
    assert stalls(*(seen(i, speed=speed) for i in range(60))) == [None] * 60


def test_a_stop_makes_the_stall_unknown_until_the_vehicle_has_driven_again():
    found = stalls(*(seen(i, speed=0.0 if i == 40 else FAST) for i in range(100)))
    assert found[39] is not None
    assert found[40 : 41 + WARM] == [None] * (WARM + 1)
    assert found[41 + WARM] is not None


@pytest.mark.parametrize("missing", [GAP_LIMIT, GAP_LIMIT + 1])
def test_a_long_gap_makes_the_stall_unknown(missing):
    """The thumbnails of before the gap are too old to compare with."""
    found = stalls(*(seen(i + missing * (i >= 40)) for i in range(100)))
    assert found[39] is not None
    if missing == GAP_LIMIT:
        assert None not in found[39:]
    else:
        assert found[40 : 40 + WARM] == [None] * WARM
        assert found[40 + WARM] is not None


@pytest.mark.parametrize(("short", "long"), [(np.nan, 0.1), (0.1, np.nan), (0.0, 0.1), (0.1, 0.0)])
def test_motion_that_is_not_known_or_none_at_all_starts_the_stall_anew(short, long):
    """A black picture, and a pixel that is no number."""
    found = stalls(*(seen(i, *((short, long) if i == 40 else ())) for i in range(80)))
    assert found[40 : 40 + STALL_FRAMES] == [None] * STALL_FRAMES
    assert found[40 + STALL_FRAMES] == pytest.approx(np.log(0.2))


def test_one_hard_cut_does_not_fill_the_stall():
    """Over one frame it is as large as over 16."""
    found = stalls(*(seen(i, *((0.5, 0.5) if i == 50 else ())) for i in range(80)))
    assert max(found[50:]) - found[49] == pytest.approx(-np.log(0.2) / STALL_FRAMES)


def test_a_row_without_a_picture_has_no_stall():
    assert stalls(*(msgspec.structs.replace(seen(i), picture=None) for i in range(60))) == [None] * 60


# A scene that is displaced at once.


def jumps(displaced):
    """Jump after every row, as the row before shows how clear each displacement was."""
    return [vitals.jump for vitals in follow(*(seen(i, jump=d) for i, d in enumerate(displaced)))]


def test_a_jump_is_known_a_frame_later_and_held():
    found = jumps([0.0] * 20 + [3.0] + [0.0] * 20)
    assert found[:2] == [None, None]
    assert found[2:21] == [0.0] * 19
    assert found[21 : 21 + HELD_FRAMES] == [3.0 - LEAST_JUMP] * HELD_FRAMES
    assert set(found[21 + HELD_FRAMES :]) == {0.0}


def test_a_faint_displacement_is_no_jump_however_rare_it_is():
    """Noise explains as much by chance, and calibration may have seen none of it."""
    assert max(jumps([0.0] * 20 + [LEAST_JUMP] + [0.0] * 20)[2:]) == 0.0
    assert max(jumps([0.0] * 20 + [LEAST_JUMP + 0.25] + [0.0] * 20)[2:]) == 0.25


@pytest.mark.parametrize(("picture", "known"), [(3.0, 3), (0.0, 0), (np.nan, None), (None, None)])
def test_dead_rows_are_those_of_the_picture(picture, known):
    statistics = None if picture is None else np.array([picture, 0.1, 0.1, 0.0])
    assert follow(msgspec.structs.replace(row(0), picture=statistics))[0].dead_rows == known


def test_driving_that_displaces_every_frame_is_no_jump():
    """A sharp curve; what stands out from it does."""
    assert max(jumps([1.0, 1.2] * 20)[2:]) == 0.0
    assert max(jumps([0.5] * 20 + [3.0] + [0.5] * 20)[2:]) == pytest.approx(3.0 - STEADY * 0.5 - LEAST_JUMP)


def test_a_lost_frame_does_not_make_a_jump_unseen():
    rows = [seen(i + (i >= 24), jump=3.0 if i == 20 else 0.0) for i in range(40)]
    found = [vitals.jump for vitals in follow(*rows)]
    assert found[21:28] == [3.0 - LEAST_JUMP] * 7
    assert not any(found[32:])


def test_a_camera_of_half_the_rate_jumps_with_every_second_frame_and_yet_never():
    """Each of its pictures comes twice, the second time without any displacement."""
    rows = [
        msgspec.structs.replace(seen(i, jump=1.0 if i % 2 == 0 else 0.0), fingerprint=i // 2)
        for i in range(60)
    ]
    assert set([vitals.jump for vitals in follow(*rows)][6:]) <= {0.0, None}


@pytest.mark.parametrize("gap", [1, GAP_LIMIT + 1])
def test_over_a_gap_there_is_no_jump(gap):
    """The vehicle drove on meanwhile."""
    rows = [seen(i + gap * (i >= 20), jump=3.0 if i == 20 else 0.0) for i in range(40)]
    found = [vitals.jump for vitals in follow(*rows)]
    assert not any(found)
    assert set(found[2:20] + found[23:]) == {0.0}


def test_a_jump_that_is_not_known_starts_anew():
    found = jumps([0.0] * 10 + [3.0] + [np.nan] + [0.0] * 10)
    assert set(found[11:]) == {0.0}
    assert [v.jump for v in follow(*(msgspec.structs.replace(seen(i), picture=None) for i in range(9)))] == [
        None
    ] * 9


def driven(n, speed, noise=0.02, seed=5):
    """Stall after every picture of a scene that moves ``speed`` pixels a frame, with fresh noise."""
    rng = np.random.default_rng(seed)
    x = np.arange(2 * n + 32)
    scene = 0.5 + 0.1 * sum(np.sin(2 * np.pi * x / w + rng.uniform(0, 7)) for w in (90, 140, 260))
    reducer, tracker = TapReducer((input_spec("image", (3, 32, 32)),), ()), VitalsTracker(RATE_HZ, INPUT)
    for i in range(n):
        picture = np.broadcast_to(scene[speed * i : speed * i + 32], (3, 32, 32))
        reducer.load_input(picture + noise * rng.normal(size=picture.shape))
        known = msgspec.structs.replace(row(i), picture=reducer.reduce().picture, context={"speed_mps": FAST})
        yield tracker.update(known).stall


def test_a_moving_scene_is_told_from_noise_over_a_still_one():
    still, moving = (list(driven(90, speed))[WARM:] for speed in (0, 2))
    assert max(abs(stall) for stall in still) < 0.1
    assert max(moving) < -1.0
