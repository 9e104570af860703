"""tools/cifar10_study: the camera's stream, what is kept apart, and that a seed gives the same page."""

import json
import os
import re
import runpy
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import models
import msgspec
import numpy as np
import pytest

TOOLS = Path(__file__).parent.parent / "tools"
sys.path.insert(0, str(TOOLS))

import _cifar10_stream as stream  # noqa: E402
import _cifar10_summary as summary  # noqa: E402
import _cifar10_worlds as worlds  # noqa: E402
from _cifar10_measure import Effort, measure  # noqa: E402
from _cifar10_page import study_page  # noqa: E402
from _cifar10_worlds import CALIBRATE, JUDGE  # noqa: E402

from edge_monitor.offline.observe import silent  # noqa: E402
from edge_monitor.offline.page import to_html  # noqa: E402

TINY = Effort(stream_frames=720, clips=1, clip_frames=560, pairs=2, impact_images=4, judged_images=6)

# As the script runs, but in the interpreter of the tests instead of the checkout's own environment.
LAUNCH = f"""
import runpy, sys
sys.path.insert(0, {str(TOOLS)!r})
runpy.run_path({str(TOOLS / "cifar10_study")!r}, run_name="tool")["main"](sys.argv[1:])
"""


def photographs(n, seed, size=16):
    """Unrelated images of four by four patches."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(30, 220, (n, 3, 4, 4))
    return np.kron(coarse, np.ones((size // 4, size // 4))).astype(np.float32)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    model = tmp_path_factory.mktemp("world") / "cnn.onnx"
    model.write_bytes(models.cnn(batch=1))
    labels = np.arange(40) % 5
    splits = ((photographs(40, seed), labels) for seed in (1, 2))
    return worlds.ImageWorld("a small network", model, *splits)


@pytest.fixture(scope="module")
def tool():
    return runpy.run_path(str(TOOLS / "cifar10_study"), run_name="tool")


@pytest.fixture(scope="module")
def measured(world):
    return [measure(world, seed, TINY, silent) for seed in range(2)]


@pytest.fixture(scope="module")
def study(world, measured):
    return summary.summarise(world.name, TINY, measured)


@pytest.fixture(scope="module")
def page(study):
    return to_html(study_page(study))


def clip(world, condition, *, split=JUDGE, seed=0, number=1, n=150):
    return np.concatenate(list(worlds.frames(world, condition, split, seed, number, n)))


@pytest.mark.parametrize("condition", stream.CONDITIONS)
def test_frames_are_model_inputs_and_follow_from_the_seed(world, condition):
    frames = clip(world, condition)
    assert frames.shape == (150, 3, 16, 16)
    assert frames.dtype == np.float32
    assert frames.min() >= 0
    assert 50 < frames.max() <= 255
    np.testing.assert_array_equal(frames, clip(world, condition))
    for other in ({"seed": 1}, {"number": 2}, {"split": CALIBRATE}):
        assert not np.array_equal(frames, clip(world, condition, **other))


def test_the_camera_moves_smoothly_and_the_images_change():
    images = photographs(4, 3)
    pictures = np.array(list(stream.pan_and_zoom(images, np.random.default_rng(0))))
    assert len(pictures) == 4 * stream.FRAMES_PER_IMAGE
    flat = pictures.reshape(len(pictures), -1)
    steps = [np.corrcoef(a, b)[0, 1] for a, b in pairwise(flat)]
    assert min(steps) > 0.95
    # The camera never stands for long, and images are unrelated to one another.
    half = stream.FRAMES_PER_IMAGE // 2
    assert np.corrcoef(flat[half], flat[3 * half])[0, 1] < 0.9
    assert np.abs(np.diff(flat[:half], axis=0)).max() > 0


def test_a_crop_interpolates_and_repeats_the_edge():
    ramp = np.broadcast_to(np.arange(8.0), (3, 8, 8)) * 10
    np.testing.assert_allclose(stream.look(ramp, np.array([0, 0, 1])), ramp)
    right = stream.look(ramp, np.array([0, 2.5, 1]))
    np.testing.assert_allclose(right[0, 0], [25, 35, 45, 55, 65, 70, 70, 70])
    down = stream.look(ramp.transpose(0, 2, 1), np.array([2.5, 0, 1]))
    np.testing.assert_allclose(down, right.transpose(0, 2, 1))
    near = stream.look(ramp, np.array([0, 0, 2]))
    np.testing.assert_allclose(np.diff(near[0, 0]), 5)
    assert near[0, 0].mean() == pytest.approx(35)


def test_conditions_do_what_they_say(world):
    active, idle = clip(world, "active"), clip(world, "idle")
    changes = {
        name: np.abs(np.diff(clip(world, name), axis=0)).mean(axis=(1, 2, 3)) for name in stream.CONDITIONS
    }
    # An idle camera gives sensor noise and nothing else: the difference of two draws.
    expected = 2 / np.sqrt(np.pi) * stream.SENSOR_NOISE
    np.testing.assert_allclose(changes["idle"], expected, rtol=0.2)
    assert idle.std(axis=0).mean() == pytest.approx(stream.SENSOR_NOISE, rel=0.1)
    draws = [np.diff(clip(world, "idle", seed=seed), axis=0).ravel() for seed in (0, 1)]
    assert abs(np.corrcoef(draws)[0, 1]) < 0.05
    assert active.std(axis=0).mean() > 5 * stream.SENSOR_NOISE
    # Corruptions are of the same pictures.
    noisy = clip(world, "noise")
    assert np.std(noisy - active) == pytest.approx(stream.CORRUPTION_NOISE, rel=0.1)
    flickering = clip(world, "flicker")
    black = flickering.mean(axis=(1, 2, 3)) < 3
    assert 0.05 < black.mean() < 0.5
    np.testing.assert_array_equal(flickering[~black], active[~black])
    frozen = np.isclose(changes["hanging"], expected, rtol=0.2)
    assert 0.2 < frozen.mean() < 0.8
    assert changes["hanging"].max() > 1.5 * changes["active"].max()


def test_calibration_and_judging_share_no_image(world, monkeypatch):
    """Each split draws from its own images alone, no clip shows an image twice; on the road trips differ."""
    for split in (CALIBRATE, JUDGE):
        pool, _ = world._splits[split]
        stills, labels = world.stills(split, 0, 10)
        same = [[np.array_equal(still, image) for image in pool] for still in stills]
        places = np.argmax(same, axis=1)
        assert np.any(same, axis=1).all()
        assert len(set(places)) == 10
        np.testing.assert_array_equal(labels, places % 5)
        shown = world.places(split, 0, 1, 12)
        assert len(set(shown.tolist())) == 12
        spoilt = [(np.full_like(p, np.nan), found) for p, found in world._splits]
        spoilt[split] = world._splits[split]
        monkeypatch.setattr(world, "_splits", tuple(spoilt))
        assert all(np.isfinite(clip(world, name, split=split)).all() for name in stream.CONDITIONS)
        monkeypatch.undo()
    road = worlds.RoadWorld()
    trips = {split: set() for split in (CALIBRATE, JUDGE)}
    for split, seen in trips.items():
        monkeypatch.setattr(worlds, "Road", lambda seed, seen=seen: seen.add(seed) or iter(()))
        for seed in range(worlds.MAX_SEEDS):
            for number in (worlds.STREAM, 1, 8):
                list(road.moving(split, seed, number, 1))
    assert max(trips[CALIBRATE]) < 2000 <= min(trips[JUDGE])
    assert min(trips[CALIBRATE]) >= 1000
    assert all(len(seen) == 3 * worlds.MAX_SEEDS for seen in trips.values())


def test_a_seed_gives_the_same_page_whatever_ran_before(world, measured, study, page):
    again = measure(world, 1, TINY, silent)
    repeated = summary.summarise(world.name, TINY, [measured[0], again])
    assert msgspec.json.encode(repeated) == msgspec.json.encode(study)
    assert to_html(study_page(repeated)) == page
    assert study.impact[0].theta.seeds[0] != study.impact[0].theta.seeds[1]
    gamma = study.signatures[0].log10_power["gamma"].seeds
    assert gamma[0] != gamma[1]


def test_the_page_needs_no_network_and_holds_all_parts(page):
    assert "default-src 'none'" in page
    assert not re.search(r"<script|<link|<img|@import|url\((?!#)", page)
    assert not re.search(r'(?:src|href)="(?!#|data:)', page)
    assert re.findall(r'<section id="(\w+)">', page) == [
        *("signatures", "states", "impact", "tracts", "crossmodal", "method")
    ]
    assert page.count("<svg") == 6
    assert "nan" not in re.sub(r'href="data:[^"]*"', "", page)
    assert "takes more seeds to say" in page  # two seeds do not show that a score separates


def test_numbers_add_up(study):
    assert sum(map(sum, study.telling.counts)) == 2 * TINY.clips * len(stream.CONDITIONS)
    for mix in study.states:
        assert sum(share.mean for share in mix.shares.values()) == pytest.approx(1)
    idle = [mix.shares["idle"].mean for mix in study.states if mix.condition == "idle"]
    assert np.mean(idle) > 0.8
    by_order = {found.order: found for found in study.deletion_means}
    assert by_order["theta"].theta_less.seeds == (0.0, 0.0)
    theta, random = by_order["theta"].area, by_order["random"].area
    assert by_order["random"].theta_less.mean == pytest.approx(theta.mean - random.mean)
    assert all(0 < tract.strongest_share.mean <= 1 for tract in study.tracts)
    assert study.crossmodal[0].separates is None


def test_intervals():
    found = summary.interval([1.0, 2.0, 3.0, 4.0, np.nan])
    assert found.mean == 2.5
    assert found.half == pytest.approx(3.182446 * np.std([1, 2, 3, 4], ddof=1) / 2)  # t of 3 degrees
    assert len(found.seeds) == 5
    assert np.isnan(summary.interval([1.0]).half)
    assert np.isnan(summary.interval([np.nan]).mean)


def test_area_under_the_roc_curve():
    assert summary.roc_area(np.array([3.0, 4.0]), np.array([1.0, 2.0, np.nan])) == 1
    assert summary.roc_area(np.array([1.0, 2.0]), np.array([3.0])) == 0
    assert summary.roc_area(np.array([1.0, 3.0]), np.array([1.0, 2.0])) == pytest.approx(0.625)
    assert np.isnan(summary.roc_area(np.array([1.0]), np.array([np.nan])))


def test_conditions_are_told_by_what_other_seeds_taught():
    """A seed whose own typical mixes are in another order is told right all the same."""
    n = len(stream.CONDITIONS)
    mixes = np.eye(n)[:, None, None, :]  # each condition is one state, one clip, one tap
    honest, mixed_up = SimpleNamespace(mixes=(mixes, mixes)), SimpleNamespace(mixes=(mixes[::-1], mixes))
    found = summary.tell_conditions([mixed_up, honest])
    assert found.right.seeds == (1.0, 0.2)  # the middle one stays in its place
    assert not found.own_seed
    assert summary.tell_conditions([honest]).own_seed
    assert found.counts[0] == (1, 0, 0, 0, 1)


def test_without_data_it_is_the_demo_and_says_so(tool, measured, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(worlds.games, "missing_data", lambda: "nothing there")
    world = worlds.find_world()
    assert isinstance(world, worlds.RoadWorld)
    for name in stream.CONDITIONS:
        frames = clip(world, name, n=20)
        assert frames.shape == (20, 3, 48, 48)
        np.testing.assert_array_equal(frames, clip(world, name, n=20))
    stills, labels = world.stills(JUDGE, 0, 5)
    assert stills.shape == (5, 3, 48, 48)
    assert set(labels) <= set(range(6))
    names = tool["main"].__globals__
    monkeypatch.setitem(names, "missing_data", lambda: "nothing there")
    monkeypatch.setitem(names, "measure", lambda found, *_: measured[0] if found.name == world.name else None)
    page = tmp_path / "page.html"
    tool["main"](["--seeds", "1", "-o", str(page), "--json"])
    said = capsys.readouterr()
    assert "nothing there: studying the demo model on the demo road instead" in said.err
    assert json.loads(said.out)["world"] == "the demo model on the demo road"
    text = page.read_text(encoding="utf-8")
    assert "Study of the demo model on the demo road" in text
    assert "were not found in EDGE_MONITOR_DATA" in text
    assert "One seed has no interval" in text


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--seeds", "0"], "--seeds must be 1 to 10, not 0"),
        (["--seeds", "11"], "--seeds must be 1 to 10, not 11"),
        (["-o", "nowhere/page.html"], "error: nowhere/page.html: .* is no directory"),
        (["-o", "notes.txt"], "error: notes.txt: exists and is no HTML page"),
    ],
)
def test_what_cannot_be_done_is_refused_at_once(arguments, problem, tool, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("mine")
    with pytest.raises(SystemExit) as ended:
        tool["main"](arguments)
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert not said.out
    assert re.search(problem, said.err)
    assert Path("notes.txt").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("data", [None, "/nowhere"])
def test_quick_run(data, tmp_path):
    """With the data, where it is, and without."""
    environment = os.environ if data is None else {**os.environ, "EDGE_MONITOR_DATA": data}
    command = [sys.executable, "-c", LAUNCH, "--quick", "--seeds", "1", "--json"]
    options = {"capture_output": True, "text": True, "cwd": tmp_path, "env": environment}
    finished = subprocess.run(command, check=False, **options)
    assert finished.returncode == 0, finished.stderr
    found = json.loads(finished.stdout)
    assert found["seeds"] == [0]
    assert ("demo road" in found["world"]) >= (data is not None)
    assert len(found["states"]) == len(stream.CONDITIONS) * len(found["taps"])
    assert (tmp_path / "cifar10_study.html").read_text().startswith("<!DOCTYPE html>")
