"""Scenes cut out of a passing stream, and out of a user's own frames."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
import small_world
from maps import minimal_map
from small_world import same_picture

import edge_monitor
from edge_monitor.config import FrameSettings
from edge_monitor.errors import InputError, MapError
from edge_monitor.offline.drill_scenes import LEAD, CleanScenes
from edge_monitor.offline.scene import BEFORE, SceneCutter
from edge_monitor.sources.frames import Frame, FrameSource

EACH = BEFORE + LEAD + 300


def stream(n):
    return [Frame(np.full((1, 2), i, np.float32), 1000 * i, {"i": float(i)}) for i in range(n)]


def cut(onsets, length, n, lead=5):
    cutter = SceneCutter(onsets, length)
    noise = iter(range(10**6))
    for i, frame in enumerate(stream(n)):
        cutter.add(i, frame, lambda i=i: np.full((1, 2), i + next(noise) / 1e3, np.float32))
    return cutter.scenes(list(range(n)), lead)


def test_a_scene_holds_what_lies_around_its_onset():
    first, second = cut([BEFORE, 40], 6, 100)
    assert first.frames[:, 0].tolist() == list(range(BEFORE + 6))
    assert second.frames[:, 0].tolist() == list(range(40 - BEFORE, 46))
    assert [context["i"] for context in second.contexts] == second.frames[:, 0].tolist()
    assert second.rows == [35, 36, 37, 38, 39]  # the last clean one is that before the onset
    assert first.length == second.length == 6


def test_the_frame_of_the_onset_is_the_one_shown_again():
    (scene,) = cut([40], 6, 100)
    assert scene.again.shape == (6, 2)
    assert np.floor(scene.again).tolist() == [[40, 40]] * 6
    assert len(np.unique(scene.again[:, 0])) == 6  # each time with noise of its own


def test_scenes_may_overlap_and_one_that_is_cut_off_is_left_out():
    assert [scene.rows[-1] for scene in cut([30, 33, 95], 6, 100)] == [29, 32]


def test_a_source_that_cannot_show_a_scene_again_gives_none():
    cutter = SceneCutter([BEFORE], 2)
    for i, frame in enumerate(stream(BEFORE + 2)):
        cutter.add(i, frame, lambda: None)
    assert cutter.scenes(list(range(30)), 5)[0].again is None


def scenes(n=1, n_frames=700, seed=1, **changes):
    settings = FrameSettings(**{"frames": str(small_world.frame_file(n_frames, seed)), **changes})
    return CleanScenes(small_world.model_file(), small_world.region_map(), settings, n)


def test_scenes_of_a_file_are_those_a_probe_would_have_seen_in_one_run():
    """Rows of the second scene, which starts in mid-stream, are those of a run through the whole file."""
    whole = small_world.observed().rows
    settings = FrameSettings(frames=str(small_world.frame_file()))
    cutter = CleanScenes(small_world.model_file(), small_world.region_map(), settings, 2)
    assert len(cutter) == 2
    frames = np.load(small_world.frame_file())
    found = list(cutter)
    assert [scene.rows[0].frame for scene in found] == [BEFORE, 650 + BEFORE]
    for scene in found:
        assert len(scene.rows) == LEAD
        assert scene.length == 300
        onset = scene.rows[-1].frame + 1
        np.testing.assert_array_equal(scene.frames, frames[onset - BEFORE : onset + 300])
        assert all(same_picture(row, whole[row.frame]) for row in scene.rows)
        steps = {b.t_capture_ns - a.t_capture_ns for a, b in zip(scene.rows, scene.rows[1:], strict=False)}
        assert steps <= {33_333_333, 33_333_334}
        assert {row.latency_ns for row in scene.rows} == {0}


def test_scenes_are_read_anew_each_time_and_one_at_a_time(monkeypatch):
    cutter = scenes(n=2, n_frames=1300, seed=0)
    read = []
    iterate = FrameSource.__iter__

    def counted(self):
        for frame in iterate(self):
            read.append(frame.t_capture_ns)
            yield frame

    monkeypatch.setattr(FrameSource, "__iter__", counted)
    first = next(iter(cutter))
    assert len(read) == EACH  # nothing behind the first scene was touched
    assert same_picture(first.rows[0], next(iter(cutter)).rows[0])


def test_the_road_gives_a_speed_and_can_be_shown_again(demo_model):
    settings = FrameSettings(frames="demo:1400", limit=EACH)
    scene = next(iter(CleanScenes(*demo_model, settings, 1)))
    assert {"speed_mps", "exposure"} <= scene.contexts[-1].keys()
    onset = scene.frames[BEFORE]
    assert scene.again.shape == (300, *onset.shape)
    noise = np.abs(scene.again - onset).mean()
    moved = np.abs(scene.frames[BEFORE + 60] - onset).mean()
    assert 0.0 < noise < moved


@pytest.fixture
def demo_model():
    model = Path(edge_monitor.__file__).parent / "data" / "demo_model.onnx"
    return model, minimal_map(model.read_bytes())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n": 0}, "scenes: 0 is below 1"),
        ({"n": 2}, f"700 frames, 2 scenes need {2 * EACH} \\({EACH} each\\); they are enough for 1"),
        ({"n": 1, "limit": 600}, f"600 frames, 1 scenes need {EACH}"),
        ({"n": 1, "loop": True}, "has no end"),
    ],
)
def test_too_few_frames_are_refused_with_the_number_needed(changes, words):
    with pytest.raises(InputError, match=words):
        scenes(**changes)


def test_frames_that_are_not_finite_are_refused_wherever_they_are(tmp_path):
    frames = np.load(small_world.frame_file(700, 1)).copy()
    frames[EACH - 1, 0, 3, 3] = np.nan
    np.save(tmp_path / "nan.npy", frames)
    settings = FrameSettings(frames=str(tmp_path / "nan.npy"))
    cutter = CleanScenes(small_world.model_file(), small_world.region_map(), settings, 1)
    with pytest.raises(InputError, match=f"frame {EACH - 1} holds NaN or Inf"):
        list(cutter)


def test_a_map_of_another_model_is_refused():
    known = small_world.region_map()
    other = msgspec.structs.replace(
        known, provenance=msgspec.structs.replace(known.provenance, model_sha256="0" * 64)
    )
    settings = FrameSettings(frames=str(small_world.frame_file(700, 1)))
    with pytest.raises(MapError, match="belongs to"):
        CleanScenes(small_world.model_file(), other, settings, 1)
