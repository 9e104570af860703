"""tools/bench_detection: trips that are never mixed, rows from the cache, counting, and the page."""

import json
import runpy
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import msgspec
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

import _detection_collect as collecting
import _detection_compare as compare
import _detection_config as config
import _detection_events as happening
import _detection_goals as goals
import _detection_page as pages
import _detection_results as results
import _detection_streams as streams
import _detection_system as system
import _detection_watch as watching
from _detection_config import BUDGETS, CONFIGURATIONS, MODES, TripPlan
from _detection_events import CLEAN, EventRows, Judged
from _detection_peer import Stream
from _detection_results import ConfigurationResult, FaultRow, PeerShares, Results, Share
from _detection_transforms import Threshold
from _detection_watch import Alarms

from edge_monitor.offline.drill import Outcome
from edge_monitor.offline.faults import FAULTS
from edge_monitor.offline.injection import Injection, Injector, Range, levels_of
from edge_monitor.offline.observe import FIT_SHARE, SCENE_FRAMES, SCENE_LEAD
from edge_monitor.offline.scene import BEFORE
from edge_monitor.probe import Probe
from edge_monitor.sources.frames import FrameSource
from edge_monitor.taps.onnx import quiet_options
from edge_monitor.types import PICTURE

TOOLS = Path(__file__).parent.parent / "tools"
PER_10K, PER_HOUR = BUDGETS
JUDGED = ("fresh", "test", "ramp")  # splits on which nothing is chosen or fitted


def all_splits(mode):
    return {
        (name, split): set(trips)
        for name, configuration in CONFIGURATIONS.items()
        for split, trips in config.splits(configuration, MODES[mode]).items()
    }


@pytest.mark.parametrize("mode", MODES)
def test_no_two_splits_share_a_trip(mode):
    for (a, trips), (b, others) in combinations(all_splits(mode).items(), 2):
        assert not trips & others, (a, b)


@pytest.mark.parametrize("mode", MODES)
def test_trips_keep_the_convention_of_seeds(mode):
    for (_, split), trips in all_splits(mode).items():
        assert trips
        # 0-999 have trained the models, 1000-1999 calibrate; 2000-2299 were looked at before.
        allowed = range(2300, 10_000) if split in JUDGED else range(1000, 2000)
        assert trips <= set(allowed), split


def test_there_is_as_much_clean_driving_as_the_protocol_asks_for():
    mode = MODES["full"]
    assert (mode.pool + mode.fresh) * mode.frames / config.RATE_HZ / 3600 >= 12


@pytest.mark.parametrize("mode", MODES)
def test_the_bank_is_cut_from_the_rows_that_fit(mode):
    mode = MODES[mode]
    kept = mode.frames - BEFORE
    n_fit, _ = system.pool_parts(mode.pool * kept)
    assert n_fit == int(mode.pool * kept * FIT_SHARE)
    places = []
    for plan in config.trip_plans(CONFIGURATIONS["A"], mode, "pool"):
        trip = plan.seed - CONFIGURATIONS["A"].first
        for onset in plan.onsets:
            assert onset >= BEFORE + SCENE_LEAD
            assert onset + SCENE_FRAMES <= mode.frames
            places.append(trip * kept + onset - BEFORE)
    assert max(places) + SCENE_FRAMES <= n_fit
    assert 0.95 * mode.bank <= len(places) <= mode.bank


def test_judged_scenes_begin_when_all_windows_are_full():
    for configuration in CONFIGURATIONS.values():
        for split, length in {"test": 90, "ramp": 300, "design": 90}.items():
            for plan in config.trip_plans(configuration, MODES["full"], split):
                (onset,) = plan.onsets
                assert onset >= config.LEAD
                assert plan.frames == onset + plan.length == onset + length


def test_every_listed_fault_that_the_head_learns_is_left_out_once():
    assert [len(names) for names in config.folds()] == [5, 4, 4, 4, 4]
    left_out = [name for names in config.folds() for name in names]
    guarded = {"frozen exact", "NaN/Inf", "frame reorder"}
    assert sorted(left_out) == sorted({fault.name for fault in FAULTS} - guarded)


PLAN = TripPlan(seed=900, frames=60, onsets=(30,), length=20)  # a training trip: no result comes from it


@pytest.fixture(scope="module")
def trip(tmp_path_factory):
    """A short trip, collected; and the same as the probe and the source give it."""
    folder = tmp_path_factory.mktemp("rows")
    configuration = CONFIGURATIONS["C"]
    assert collecting.collect(configuration, PLAN, folder) == PLAN.frames
    rows = []
    probe = Probe.onnx(configuration.path, on_row=rows.append, sess_options=quiet_options())
    frames = list(FrameSource(configuration.frames(PLAN.seed, PLAN.frames), (3, 48, 48)))
    for frame in frames:
        probe.note(t_capture_ns=frame.t_capture_ns, **frame.context)
        probe.run(None, {"image": frame.array})
    return folder, configuration, probe.taps, rows, frames


def test_rows_from_the_cache_are_the_probes_own(trip):
    folder, _, _, rows, _ = trip
    rebuilt = collecting.rows_of(collecting.open_table(PLAN, folder), first=7)
    assert len(rebuilt) == len(rows) == PLAN.frames
    for number, (row, own) in enumerate(zip(rebuilt, rows, strict=True)):
        for name in ("signals", "nonfinite", "picture"):
            np.testing.assert_array_equal(getattr(row, name), getattr(own, name))
        np.testing.assert_array_equal(row.spatial.voxels, own.spatial.voxels)
        np.testing.assert_array_equal(row.spatial.channels, own.spatial.channels)
        np.testing.assert_array_equal(row.spatial.taps, own.spatial.taps)
        assert row.spatial.frames == own.spatial.frames
        assert (row.fingerprint, row.output, row.context) == (own.fingerprint, own.output, own.context)
        assert row.frame == 7 + number
        assert abs(row.t_capture_ns - own.t_capture_ns - 7e9 / 30) <= 1
        assert row.signals.flags.writeable  # the kernels take no array that is read-only
        assert row.spatial.voxels.flags.c_contiguous
    assert rebuilt[0].picture.tobytes() != rebuilt[-1].picture.tobytes()


def test_a_table_of_rows_gives_the_rows_again(trip):
    _, _, taps, rows, _ = trip
    unknown = msgspec.structs.replace(rows[3], output=None)
    vague = msgspec.structs.replace(
        rows[4], output=msgspec.structs.replace(rows[4].output, confidence=None, entropy=None, nonfinite=2)
    )
    rebuilt = collecting.rows_of(collecting.table_of([unknown, vague], taps))
    assert rebuilt[0].output is None
    assert rebuilt[1].output == vague.output


def test_trips_follow_one_another_without_their_first_frames(trip):
    folder, _, _, rows, _ = trip
    stream = collecting.stream_rows(collecting.stream_tables([PLAN, PLAN], folder))
    n = PLAN.frames - BEFORE
    assert [row.frame for row in stream] == list(range(2 * n))
    assert np.all(np.diff([row.t_ns for row in stream]) > 33_000_000)
    for row in (stream[0], stream[n]):
        np.testing.assert_array_equal(row.picture, rows[BEFORE].picture)
        assert np.isfinite(row.picture).all()


def test_scenes_are_the_sources_frames(trip):
    folder, _, _, rows, frames = trip
    (scene,) = collecting.load_scenes([PLAN], folder, lead=10)
    first = PLAN.onsets[0] - BEFORE
    own = np.concatenate([frame.array for frame in frames[first : first + BEFORE + PLAN.length]])
    np.testing.assert_array_equal(scene.frames, own)
    assert scene.length == PLAN.length
    assert scene.contexts == [frame.context for frame in frames[first : first + BEFORE + PLAN.length]]
    assert [row.frame for row in scene.rows[-2:]] == [8, 9]
    np.testing.assert_array_equal(scene.rows[-1].signals, rows[PLAN.onsets[0] - 1].signals)
    shown_again = scene.again - scene.frames[BEFORE - 1]
    assert 0 < np.abs(shown_again).mean() < 8  # the sensor's noise and nothing else
    assert len({picture.tobytes() for picture in scene.again}) == PLAN.length


@pytest.mark.parametrize("fault", ["gaussian noise", "fog", "defocus", "wrong normalisation", "lens blob"])
def test_a_fault_of_next_to_no_strength_changes_nothing(trip, fault):
    """Scaling a picture there and back must not be what the monitor detects."""
    folder, configuration, taps, rows, _ = trip
    (scene,) = collecting.load_scenes([PLAN], folder, lead=10)
    # A range in which the scene lies: what is beyond the pictures that calibration saw would be clipped.
    images = np.concatenate([collecting.load_images([PLAN], folder), scene.frames])
    images[:, 2] = np.maximum(images[:, 2], 2.0)  # a channel that never is all black
    tool = Injector(configuration.path.read_bytes(), taps, Range.of(images), config.RATE_HZ)
    broken = tool.rows(scene, [Injection(fault, levels_of(1e-6, scene.length), 1)])
    first = PLAN.onsets[0]
    own = rows[first : first + scene.length]
    assert [row.fingerprint for row in broken] == [row.fingerprint for row in own]
    strong = tool.rows(scene, [Injection(fault, levels_of(3.0, scene.length), 1)])
    assert not {row.fingerprint for row in strong} & {row.fingerprint for row in broken}


def test_a_fault_leaves_numbers_on_the_cameras_steps():
    values = np.arange(2.0, 256.0, dtype=np.float32)
    full = Range.of(np.stack([values, values * 0.25 - 3.0])[None, :, None, :])
    assert full.steps.ravel().tolist() == [253, 253]
    unit = np.broadcast_to(np.linspace(0.0, 1.0, 999, dtype=np.float32), (2, 1, 999))
    shown = full.from_unit(unit, unit.shape)
    np.testing.assert_array_equal(np.unique(shown[0]), values)
    np.testing.assert_allclose(np.unique(shown[1]), values * 0.25 - 3.0, rtol=1e-6)


def test_a_trip_in_the_cache_is_not_driven_again(trip, monkeypatch):
    folder, configuration, *_ = trip
    monkeypatch.setattr(collecting.Probe, "onnx", None)
    assert collecting.collect(configuration, PLAN, folder) == PLAN.frames
    with pytest.raises(TypeError):
        collecting.collect(configuration, msgspec.structs.replace(PLAN, seed=901), folder)


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    with collecting.atomic(tmp_path / "whole") as part:
        part.write(b"all of it")
        assert not (tmp_path / "whole").exists()

    def stop_half_way():
        with collecting.atomic(tmp_path / "broken") as part:
            part.write(b"some")
            raise KeyError

    with pytest.raises(KeyError):
        stop_half_way()
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


def test_the_cache_is_keyed_by_what_code_does(tmp_path):
    model, code = tmp_path / "model", tmp_path / "code.py"
    model.write_bytes(b"m")

    def digest(text):
        code.write_text(text)
        return collecting.digest(model, [code])

    first = digest('"""One."""\nX = 1\n')
    assert digest('"""Another."""\n\nX = (1)  # the same\n') == first
    assert digest('"""One."""\nX = 2\n') != first
    model.write_bytes(b"n")
    assert digest('"""One."""\nX = 1\n') != first


def test_peers_see_the_rows_and_the_logits_are_the_models(trip):
    _, configuration, taps, rows, _ = trip
    source, weights = streams.last_dense(configuration.path)
    assert source == taps[-1].name
    table = collecting.table_of(rows, taps)
    flags = np.zeros(len(rows), bool)
    stream = streams.stream_of(table, streams.Layout(taps, weights), flags, flags, flags)
    odds = np.exp(stream.logits - stream.logits.max(axis=1, keepdims=True))
    answer = odds / odds.sum(axis=1, keepdims=True)
    assert answer.argmax(axis=1).tolist() == [row.output.top1 for row in rows]
    entropy = -(answer * np.log(answer)).sum(axis=1)  # tells even where the winner is all but certain
    np.testing.assert_allclose(entropy, [row.output.entropy for row in rows], rtol=1e-2, atol=1e-6)
    # Two means over the same elements: of a tap by voxels and by channels, all ReLUs, so |a| = a.
    stem = taps[1]
    by_voxel = stream.voxel_mean[:, : stem.n_voxels] @ stem.voxel_counts() / stem.size
    np.testing.assert_allclose(by_voxel, stream.channels[:, : stem.n_channels].mean(axis=1), rtol=1e-9)
    np.testing.assert_allclose(by_voxel, stream.signals[:, 1], rtol=1e-9)
    assert stream.confidence.tolist() == [row.output.confidence for row in rows]
    np.testing.assert_allclose(answer.max(axis=1), stream.confidence, atol=1e-4)
    assert stream.colours.shape == (len(rows), 3 * 4 * 4)
    assert stream.picture.shape == (len(rows), len(PICTURE) * 3 * 3)
    assert np.isnan(stream.difference[0])
    assert np.isfinite(stream.difference[1:]).all()


@pytest.mark.parametrize(
    ("frames", "events"),
    [([], 0), ([5], 1), ([5, 94], 1), ([5, 95], 2), ([5, 94, 183], 1), ([400, 5, 6], 2)],
)
def test_alarms_closer_than_three_seconds_are_one_event(frames, events):
    assert watching.count_events(frames) == events


def test_false_alarms_by_flag_and_while_standing():
    standing = np.zeros(108_000, bool)
    standing[500:36_500] = True
    raised = [(10, "A"), (20, "B"), (600, "A"), (50_000, "A"), (50_050, "A")]
    alarms = watching.alarms_of(raised, standing)
    assert (alarms.events, alarms.hours) == (3, 1.0)
    assert alarms.flags == {"A": 3, "B": 1}
    assert (alarms.standing_events, alarms.standing_hours) == (1, pytest.approx(1 / 3))


def test_a_bank_without_some_faults(tmp_path):
    names = ("fog", "frozen with noise", "defocus")
    labels = np.array([1, 2, 3, 2, 3])
    np.savez(
        tmp_path / "bank-both.npz", names=names, inputs=np.arange(5.0)[:, None], labels=labels, scenes=labels
    )
    bench = system.Bench(CONFIGURATIONS["A"], MODES["tiny"], tmp_path, tmp_path)
    bank = system.open_bank(bench, "both", ("frozen with noise",))
    assert bank.names == ("fog", "defocus")
    assert bank.labels.tolist() == [1, 2, 2]
    assert bank.inputs[:, 0].tolist() == [0.0, 2.0, 4.0]
    assert system.open_bank(bench, "both").labels.tolist() == labels.tolist()


def numbered(first, n, starts):
    """Stream whose signals number its rows."""
    columns = dict.fromkeys(Stream.__struct_fields__, np.arange(first, first + n, dtype=float)[:, None])
    marks = {"start": np.arange(n) < starts, "guard": np.zeros(n, bool), "overexposed": np.zeros(n, bool)}
    return Stream(**columns | marks)


def test_every_event_has_the_whole_lead_of_its_scene(tmp_path):
    mode = msgspec.structs.replace(MODES["tiny"], test=2)
    bench = system.Bench(CONFIGURATIONS["A"], mode, tmp_path, tmp_path)
    for scene in range(2):
        found = [
            (outcome(impact=0.5), numbered(100, 3, 0), np.array([1, 2, 3])),
            (outcome(impact=0.0), numbered(200, 2, 0), np.array([2, 3])),  # a frame is lost
        ]
        happening._keep_events(bench, "test", scene, numbered(10 * scene, 4, 1), found)
    first, second = happening.event_streams(bench, "test")
    assert first.signals[:, 0].tolist() == [0, 1, 2, 3, 100, 101, 102, 0, 1, 2, 3, 200, 201]
    assert second.signals[:5, 0].tolist() == [10, 11, 12, 13, 100]
    rows = happening.load_events(bench, "test")
    assert rows.frame.tolist() == 2 * [-3, -2, -1, 0, 1, 2, 3, -3, -2, -1, 0, 2, 3]
    assert np.flatnonzero(rows.start).tolist() == [0, 7, 13, 20]
    assert rows.scene.tolist() == [0, 0, 1, 1]
    assert rows.impacting.tolist() == [True, False] * 2


def test_flags_of_a_scene_itself_count_from_their_first_frame_on(monkeypatch, trip):
    rows = trip[3]

    class Said:
        raised = ((1, "A"), (3, "B"), (5, "A"))

    class Watcher:
        def __init__(self, monitor):
            self.seen, self.said = [], Said
            assert monitor == "copy"
            self.step = self.seen.append

    monkeypatch.setattr(happening, "fork", lambda monitor: f"{monitor}y")
    monkeypatch.setattr(happening, "Watcher", Watcher)
    first = rows[10].frame
    assert happening._own("cop", rows[10:20]) == {"A": first + 1, "B": first + 3}


def events(frame, overexposed=False):
    """Two events with two clean rows each; scores are given beside."""
    n = len(frame)
    start = np.isin(np.arange(n), [0, n // 2])
    bright = np.full(n, overexposed)
    return EventRows(start, np.zeros(n, bool), bright, np.array(frame), np.arange(2), np.ones(2, bool))


@pytest.mark.parametrize(
    ("scores", "delays"),
    [
        ([0, 0, 0, 9, 0, 0, 0, 0], [3, None]),  # the first frame of the fault is lost, and counts
        ([9, 0, 9, 0, 0, 9, 9, 9], [2, None]),  # an alarm that stands at the onset
        ([0, 9, 9, 9, 9, 0, 0, 9], [None, 3]),
    ],
)
def test_delays_of_peers(scores, delays):
    rows = events([-1, 0, 2, 3, -1, 0, 1, 3])
    assert compare._delays(rows, np.array(scores, float), Threshold(5.0, 20.0)) == delays
    bright = events([-1, 0, 2, 3, -1, 0, 1, 3], overexposed=True)
    assert compare._delays(bright, np.array(scores, float), Threshold(5.0, 20.0)) == [None, None]


def outcome(fault="fog", delay=5, scene=0, severity=1.0, impact=0.5, **fields):
    values = {"ramp": False, "moving": True, "standing": False, "flag": "F" if delay else None}
    values |= {"named": fault, "named_second": None, "named_at_once": None}
    values |= {"agreement": 0.5, "consistency": None} | fields
    return Outcome(fault=fault, severity=severity, scene=scene, impact=impact, delay=delay, **values)


def test_shares_by_scene():
    outcomes = [outcome(delay=30), outcome(delay=31, scene=2), outcome(delay=None, scene=2, impact=0.0)]
    counts, hit = results._metrics()["all 1 s"]
    assert results.share(outcomes, counts, hit, 3) == Share([1, 0, 0], [1, 0, 2])
    counts, hit = results._metrics()["impacting 3 s"]
    assert results.share(outcomes, counts, hit, 3) == Share([1, 0, 1], [1, 0, 1])


def test_extras_and_ramps_do_not_count_as_events():
    apart = [outcome("stutter"), outcome("true freeze"), outcome(ramp=True), outcome(CLEAN)]
    metrics = results._metrics()
    for name in ("all 1 s", "impacting 3 s", "named"):
        assert results.share(apart, *metrics[name], 1) == Share([0], [0])
    assert results.share(apart, *metrics["true freeze, moving"], 1) == Share([1], [1])
    assert results.share(apart, *metrics["stutter"], 1) == Share([1], [1])


def test_rows_by_fault():
    judged = [
        Judged(PER_HOUR, "", outcome(delay=10, flag="F")),
        Judged(PER_HOUR, "", outcome(delay=20, flag="G", scene=1, named="defocus")),
        Judged(PER_HOUR, "", outcome(delay=60, flag="G", scene=2, agreement=None)),
        Judged(PER_HOUR, "", outcome(delay=None, scene=3, impact=0.1)),
        Judged(PER_HOUR, "fold 0", outcome(delay=1, scene=3)),
    ]
    (row,) = results.fault_rows(judged)
    assert (row.fault, row.budget, row.events) == ("fog", PER_HOUR, 4)
    assert row.within == [0.25, 0.5, 0.75]
    assert (row.delay, row.flag, row.found) == (20, "G", 0.75)
    assert row.named == pytest.approx(2 / 3)
    assert (row.impact, row.agreement, row.consistency) == (pytest.approx(0.4), 0.5, None)


def test_intervals_come_from_whole_scenes():
    sure = Share([3, 2, 0], [3, 2, 0])
    assert goals.estimate([[sure]]) == (1.0, 1.0, 1.0)
    half = Share([4, 0] * 10, [4] * 20)  # scenes are all or nothing
    value, low, high = goals.estimate([[half]])
    assert value == 0.5
    assert 0.2 < low < 0.35  # 20 scenes, not 80 events: 0.5 - 1.96 x 0.11
    assert high == pytest.approx(1 - low, abs=0.06)
    assert goals.estimate([[half], [sure]])[0] == 0.75
    assert goals.estimate([[half, half]]) == (0.0, 0.0, 0.0)  # drawn together, a difference is paired
    assert goals.estimate([[Share([0], [0])]]) is None
    assert goals.estimate([[Share([0], [0])], [sure]])[0] == 1.0


def configuration_result(name, hits):
    names = [*results._metrics(), "unknown types", system.OTHER, *config.ABLATIONS, config.LIGHT]
    shares = {metric: {budget: Share([hits, 10], [10, 10]) for budget in BUDGETS} for metric in names}
    row = FaultRow("fog", 1.0, False, PER_10K, 2, [0.0, 0.5, 1.0], 1.0, 17.0, "F", 0.5, 0.3, 0.8, None)
    alarms = {PER_10K: Alarms(40, 4.0, {"F": 40}, 0, 0.5), PER_HOUR: Alarms(12, 4.0, {"F": 12}, 0, 0.5)}
    peer = {
        "impacting 3 s": Share([2, 4], [10, 10]),
        **{metric: Share([1, 2], [10, 10]) for metric in ("impacting 1 s", "all 1 s", "all 3 s")},
    }
    return ConfigurationResult(
        name=name,
        model="some/model.onnx",
        sha256="00",
        world=0,
        mode="full",
        splits={"pool": (1100, 27), "test": (2350, 2)},
        shares=shares,
        slowest_freeze=2,
        delay=dict.fromkeys(BUDGETS, 7.5),
        faults=[row],
        alarms={"fresh": alarms, "judge": alarms},
        peers=[PeerShares("energy", budget, "raw", peer, 80) for budget in BUDGETS],
        head_accuracy=0.9,
        seconds={"drive": 60.0},
        versions={"python": "3.11"},
    )


@pytest.fixture
def stored():
    found = {"A": configuration_result("A", 10), "B": configuration_result("B", 8)}
    return Results(results.FORMAT, found)


def row_of(page, text):
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {text} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_page_says_what_was_found_and_which_goals_are_met(stored):
    page = pages.page(msgspec.json.decode(msgspec.json.encode(stored), type=Results))
    table = page[page.index("## Goals") : page.index("## False alarms")]
    cells = row_of(table, "impacting events within 1 s")
    assert cells[1].startswith("95.0 [")
    assert [cells[2], cells[3], cells[5], cells[6]] == ["≥ 95 %", "yes", "≥ 91 %", "yes"]
    cells = row_of(table, "impacting events within 3 s")
    assert [cells[2], cells[3], cells[6]] == ["≥ 97 %", "**no**", "yes"]
    assert row_of(table, "slowest exact freeze, frames")[1:4] == ["2", "≤ 3", "yes"]
    cells = row_of(table, "ahead of the best peer, impacting, 3 s")
    assert cells[1].startswith("65.0 [")  # 95 less 30
    assert cells[1].endswith("(energy)")
    cells = row_of(table, "false alarms per hour on fresh trips")
    assert cells[1].startswith("10.00 [")
    assert (cells[3], cells[6]) == ("yes", "**no**")
    assert "Measured: A (`model`, world 0), B (`model`, world 0) in full mode.\n" in table
    assert "rough" not in page
    assert row_of(page, "fog")[:9] == ["fog", "1", "4", "30%", "0%", "50%", "100%", "100%", "17"]
    assert "pool 1100–1126; test 2350–2351" in page


def test_page_marks_a_missed_freeze_and_a_rough_run(stored):
    other = msgspec.structs.replace(stored.configurations["A"], slowest_freeze=None, mode="quick")
    page = pages.page(Results(results.FORMAT, {"A": other}))
    assert row_of(page, "slowest exact freeze, frames")[1:4] == ["one missed", "≤ 3", "**no**"]
    both = {"A": other, "B": stored.configurations["B"]}
    page = pages.page(Results(results.FORMAT, both))
    assert "A (`model`, world 0) in quick mode, so that the numbers are rough; B (`model`" in page
    trips = page[page.index("## Trips") :]
    assert [row_of(trips, name)[3] for name in "AB"] == ["quick", "full"]


def test_every_table_is_rectangular(stored):
    for block in pages.page(stored).split("\n\n"):
        lines = block.strip().splitlines()
        if lines[0].startswith("|"):
            assert len({line.count("|") for line in lines}) == 1, lines[0]


# As the script runs, but in the interpreter of the tests instead of the checkout's own environment.
LAUNCH = f"""
import runpy, sys
sys.path.insert(0, {str(TOOLS)!r})
if __name__ == "__main__":
    runpy.run_path({str(TOOLS / "bench_detection")!r}, run_name="bench")["main"](sys.argv[1:])
"""


def bench(*arguments):
    command = [sys.executable, "-c", LAUNCH, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_unknown_configuration():
    finished = bench("--config", "A,Z")
    assert finished.returncode == 2
    assert "--config Z: there are A, B, C" in finished.stderr


@pytest.fixture
def program(tmp_path, monkeypatch):
    """The program's main function, which stores into an empty folder and measures nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    main = runpy.run_path(str(TOOLS / "bench_detection"), run_name="bench")["main"]
    main.__globals__["STORED"] = tmp_path / "detection.json"
    main.__globals__["run"] = None
    return main


def refusal(program, capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        program(arguments)
    assert left.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_bad_input_is_refused_in_one_line(program, capsys, tmp_path):
    file = tmp_path / "detection.json"
    assert f"--page: {file} does not exist" in refusal(program, capsys, "--page")
    assert "--processes 0: at least 1" in refusal(program, capsys, "--processes", "0")
    assert "--write: results of the tiny mode" in refusal(program, capsys, "--mode", "tiny", "--write")
    file.write_text('{"format": 2')
    assert "truncated" in refusal(program, capsys, "--page")
    file.write_bytes(msgspec.json.encode(Results(1, {})))
    assert "format 1, not 2" in refusal(program, capsys, "--write")


def test_quick_results_do_not_replace_full_ones(program, capsys, tmp_path, stored):
    (tmp_path / "detection.json").write_bytes(msgspec.json.encode(stored))
    said = refusal(program, capsys, "--write", "--config", "C,B")
    assert "detection.json holds full results of B: kept" in said
    with pytest.raises(TypeError):  # nothing forbids to measure
        program(["--write", "--config", "C"])
    program(["--page"])
    assert (tmp_path / "detection.md").read_text() == pages.page(stored)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_everything_can_be_measured_and_is_kept(tmp_path):
    arguments = ("--mode", "tiny", "--json", "--cache", tmp_path)
    first = bench(*arguments)
    assert first.returncode == 0, first.stderr
    found = json.loads(first.stdout)["configurations"]["A"]
    assert sum(found["shares"]["all 3 s"][PER_HOUR]["events"]) == 2 * 72
    assert len(found["peers"]) == 2 * (len(compare.PEERS) + 1)
    assert found["alarms"]["fresh"][PER_HOUR]["hours"] == pytest.approx(8982 / 108_000)
    again = json.loads(bench(*arguments).stdout)["configurations"]["A"]
    assert again.pop("seconds") != found.pop("seconds")
    assert again == found
