"""The command line as a user meets it: real processes, real files, one clear line for each mistake."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import models
import msgspec
import numpy as np
import onnxruntime
import pytest
import tflite_models
import yaml

from edge_monitor.map_file import load_region_map, save_region_map
from edge_monitor.offline.drill import RAMP_S
from edge_monitor.offline.drill_scenes import LEAD
from edge_monitor.offline.scene import BEFORE
from edge_monitor.reports import CHANNELS
from edge_monitor.taps.onnx_graph import add_outputs

RATE_HZ = 30.0


def edge_monitor(*arguments, cwd=None, timeout=120):
    command = [sys.executable, "-m", "edge_monitor.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False)


def refused(*arguments, cwd=None):
    """Run a command that must fail, and return its one line of complaint."""
    result = edge_monitor(*arguments, cwd=cwd)
    assert result.returncode == 2, result
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Folder with a model, frames for it and the map learnt from them."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "model.onnx").write_bytes(models.residual_cnn())
    rng = np.random.default_rng(0)
    np.save(folder / "frames.npy", rng.random((400, 3, 16, 16), dtype=np.float32))
    np.save(folder / "few.npy", np.zeros(350, int))
    result = edge_monitor("calibrate", "model.onnx", "frames.npy", "-o", "map.npz", cwd=folder)
    assert result.returncode == 0, result.stderr
    # Where there is no terminal for bars, a log shows how far it came.
    phases = result.stderr.splitlines()
    assert phases[0] == "observe ..."
    assert phases[-1] == "judge ..."
    assert len(set(phases)) == len(phases)
    return folder


def config(home, tmp_path, **changes):
    tree = {
        "region_map": str(home / "map.npz"),
        "model": {"path": str(home / "model.onnx")},
        "source": {"frames": str(home / "frames.npy"), "realtime": False},
        "sinks": {"recording": {"folder": str(tmp_path)}},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            tree.setdefault(section, {})[name] = value
        else:
            tree[section] = value
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_help_names_every_command_and_loads_no_kernel():
    program = "import sys, edge_monitor.cli as c; assert 'numba' not in sys.modules; c.main()"
    result = subprocess.run(
        [sys.executable, "-c", program, "--help"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0
    for command in ("taps", "calibrate", "impact", "drill", "check", "run", "replay", "report"):
        assert command in result.stdout


def test_taps_lists_tensors_as_json(home):
    result = edge_monitor("taps", home / "model.onnx", "--json")
    listed = json.loads(result.stdout)
    assert {"name", "op", "shape", "bytes", "cost_us", "default"} <= listed[0].keys()
    assert any(tap["default"] for tap in listed)


def test_taps_lists_those_of_a_tensorflow_lite_model(tmp_path):
    """Without any runtime for it; a whole file is told by its content, one that is cut short by its name."""
    data = tflite_models.residual_cnn(dtype="int8")
    (tmp_path / "model").write_bytes(data)
    listed = json.loads(edge_monitor("taps", tmp_path / "model", "--json").stdout)
    assert [tap["name"] for tap in listed] == ["relu1", "join1", "relu2", "join2", "silu"]
    assert [tap["name"] for tap in listed if tap["default"]] == ["relu1", "relu2", "silu"]
    assert listed[0] == {
        "name": "relu1",
        "op": "CONV_2D+RELU",
        "shape": [8, 8, 6],
        "bytes": 8 * 8 * 6,
        "cost_us": 8 * 8 * 6 / 10_000,
        "default": True,
    }
    (tmp_path / "cut.tflite").write_bytes(data[:6])
    assert "cut.tflite: not a whole TensorFlow Lite model" in refused("taps", tmp_path / "cut.tflite")


def test_taps_are_certified_on_noise_on_frames_and_on_those_of_the_map(home):
    result = edge_monitor("taps", "model.onnx", "--certify", cwd=home)
    assert (result.returncode, "4 frames of seeded noise, for want of others" in result.stdout) == (0, True)
    assert "PASSED" in result.stdout
    readings = re.findall("plain|blocked|channels last", result.stdout)
    result = edge_monitor("taps", "model.onnx", "--certify", "--map", "map.npz", cwd=home)
    assert (result.returncode, "; 8 golden frames of the map" in result.stdout) == (0, True)
    given = ("--frames", "frames.npy", "--limit", "3", "--scale", "2")
    result = edge_monitor("taps", "model.onnx", "--certify", *given, "--json", cwd=home)
    found = json.loads(result.stdout)
    assert (result.returncode, found["passed"], found["frames"], found["verdict"]) == (0, True, 3, "equal")
    assert [tap["reading"] for tap in found["taps"]] == readings
    frames = 2 * np.load(home / "frames.npy")[:3]
    session = onnxruntime.InferenceSession(add_outputs((home / "model.onnx").read_bytes(), ["relu1"]))
    expected = np.mean([np.abs(session.run(["relu1"], {"input": frame[None]})[0]).mean() for frame in frames])
    assert found["taps"][0]["signature"] == pytest.approx(expected)


def test_the_map_holds_the_certificate_of_its_golden_frames(home):
    region_map = load_region_map(home / "map.npz")
    found = region_map.neutrality
    assert (found.frames, found.provider, found.problems) == (8, "CPUExecutionProvider", ())
    assert found.runtime == region_map.provenance.device.runtime
    assert [tap.name for tap in found.taps] == [tap.name for tap in region_map.taps[1:]]
    signatures = region_map.golden.signals.mean(axis=0)[1:]
    np.testing.assert_allclose([tap.signature for tap in found.taps], signatures, rtol=1e-9)
    words = " ".join(edge_monitor("check", home / "map.npz").stdout.split())
    assert "CPUExecutionProvider: answers equal, all taps read true" in words


def test_a_failed_self_test_is_refused_in_words_and_by_the_exit_code(home, tmp_path):
    region_map = load_region_map(home / "map.npz")
    golden = msgspec.structs.replace(region_map.golden, signals=1.01 * region_map.golden.signals)
    save_region_map(msgspec.structs.replace(region_map, golden=golden), tmp_path / "other.npz")
    command = ("taps", home / "model.onnx", "--certify", "--map", tmp_path / "other.npz")
    result = edge_monitor(*command)
    assert result.returncode == 1
    assert "REFUSED: SELF_TEST_FAILED: signal of tap input is off by" in result.stdout
    assert "PASSED" not in result.stdout
    result = edge_monitor(*command, "--json")
    assert (result.returncode, json.loads(result.stdout)["passed"]) == (1, False)


def test_options_of_the_certificate_ask_for_it(home, tmp_path):
    assert "--map: belongs to --certify" in refused("taps", home / "model.onnx", "--map", "map.npz")
    assert "--scale: belongs to --frames" in refused("taps", home / "model.onnx", "--certify", "--scale", "2")
    small = ("--frames", "few.npy")
    assert "has shape" in refused("taps", "model.onnx", "--certify", *small, cwd=home)
    broken = np.load(home / "frames.npy")[:3]
    broken[1, 0, 0, 0] = np.nan
    np.save(tmp_path / "nan.npy", broken)
    command = ("taps", "model.onnx", "--certify", "--frames", tmp_path / "nan.npy")
    assert "nan.npy: frame 1 holds NaN or Inf" in refused(*command, cwd=home)


def test_calibrate_shows_signatures_and_says_when_data_is_short(home):
    result = edge_monitor("calibrate", "model.onnx", "frames.npy", "-o", "second.npz", cwd=home)
    assert "Layer signatures" in result.stdout
    assert "thresholds" in result.stdout
    # Same frames, same seed, same runtime: the same map.
    assert (home / "second.npz").read_bytes() == (home / "map.npz").read_bytes()


def test_chosen_taps_end_up_in_the_map(home, tmp_path):
    names = [tap["name"] for tap in json.loads(edge_monitor("taps", home / "model.onnx", "--json").stdout)][
        -2:
    ]
    options = [option for name in names for option in ("--tap", name)]
    edge_monitor("calibrate", home / "model.onnx", home / "frames.npy", "-o", tmp_path / "m.npz", *options)
    assert [tap.name for tap in load_region_map(tmp_path / "m.npz").taps[1:]] == names


IMPACT = ("impact", "model.onnx", "frames.npy", "--images", "8", "--pairs", "4")


def test_impact_scores_are_added_to_the_map_and_shown(home, tmp_path):
    result = edge_monitor(*IMPACT, "-o", tmp_path / "scored.npz", cwd=home)
    assert result.returncode == 0, result.stderr
    assert "decision_probability, 8 images" in result.stdout
    scored = load_region_map(tmp_path / "scored.npz")
    hidden = scored.impact.theta[scored.taps[0].n_voxels :]
    assert np.isfinite(hidden).all()
    first = scored.taps[1].n_voxels
    assert hidden[:first].sum() == pytest.approx(scored.impact.f_all[0] - scored.impact.f_none[0])
    assert load_region_map(home / "map.npz").impact is None  # another map was asked for
    assert not list(tmp_path.glob("*.impact"))  # the checkpoint is gone
    assert "on 8 images, 4 pairs or more" in edge_monitor("check", tmp_path / "scored.npz").stdout


def test_impact_goes_on_after_an_interrupt(home, tmp_path):
    again = [*IMPACT[:-1], "4000", "--seed", "3", "-o", tmp_path / "scored.npz"]
    command = [sys.executable, "-m", "edge_monitor.cli", *map(str, again)]
    checkpoint = tmp_path / "scored.npz.impact"
    with subprocess.Popen(command, cwd=home, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not checkpoint.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from" in errors
    assert not (tmp_path / "scored.npz").exists()
    line = refused(*IMPACT, "--seed", "4", "-o", tmp_path / "scored.npz", cwd=home)
    assert "scored.npz.impact" in line  # the checkpoint of another run is neither used nor lost
    assert checkpoint.exists()


def test_impact_with_labels_and_with_a_payoff_of_ones_own(home, tmp_path):
    np.save(tmp_path / "labels.npy", np.arange(400) % 4)
    (tmp_path / "mine.py").write_text("def first(ablated, whole):\n    return ablated[0][:, 0]\n")
    output = ("-o", tmp_path / "scored.npz")
    scored = edge_monitor(*IMPACT, "--labels", tmp_path / "labels.npy", *output, cwd=home)
    assert "Impact on accuracy" in scored.stdout, scored.stderr
    own = edge_monitor(*IMPACT, "--payoff", f"{tmp_path / 'mine.py'}:first", *output, cwd=home)
    assert "mine.py:first" in own.stdout, own.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--images", "0"], "error: --images: 0 is below 1"),
        (["--pairs", "1"], "error: --pairs: is 1"),
        (["--max-stderr", "0"], "error: --max-stderr: is 0"),
        (["--labels", "absent.npy"], "absent.npy: holds no labels"),
        (["--labels", "frames.npy"], "frames.npy: holds float32"),
        (["--labels", "few.npy"], "few.npy: holds 350 labels, none for frame 350"),
        (["--payoff", "absent.py:score"], "absent.py"),
        (["--map", "absent.npz"], "absent.npz: No such file"),
        (["-o", "model.onnx"], "exists and is no region map"),
        (["--scale", "0"], "error: --scale: is 0.0"),
    ],
)
def test_impact_options_that_cannot_be_used(home, options, words):
    assert words in refused(*IMPACT, *options, cwd=home)


def test_impact_wants_the_maps_own_model(home, tmp_path):
    (tmp_path / "other.onnx").write_bytes(models.cnn())
    line = refused("impact", tmp_path / "other.onnx", "frames.npy", cwd=home)
    assert "belongs to model model.onnx" in line
    assert "absent.onnx: No such file" in refused("impact", "absent.onnx", "frames.npy", cwd=home)


def test_frames_are_never_taken_for_a_map(home, tmp_path):
    """An archive of frames begins like a map."""
    np.savez(tmp_path / "frames.npz", images=np.load(home / "frames.npy"))
    before = (tmp_path / "frames.npz").read_bytes()
    for command in (("calibrate", "model.onnx", "frames.npy"), IMPACT):
        line = refused(*command, "-o", tmp_path / "frames.npz", cwd=home)
        assert "exists and is no region map" in line
    assert (tmp_path / "frames.npz").read_bytes() == before


def test_a_missing_workstation_package_is_named(home):
    program = "import sys; sys.modules['onnx'] = None; import edge_monitor.cli as c; c.main()"
    command = [sys.executable, "-c", program, *map(str, IMPACT)]
    result = subprocess.run(command, cwd=home, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "error: onnx is missing: pip install '.[offline]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_impact_names_the_frame_that_is_not_clean(home, tmp_path):
    frames = np.load(home / "frames.npy")
    frames[350, 0, 0, 0] = np.nan
    np.save(tmp_path / "nan.npy", frames)
    line = refused(*IMPACT[:2], tmp_path / "nan.npy", *IMPACT[3:], cwd=home)
    assert "nan.npy: frame 350 holds NaN or Inf" in line


def test_report_writes_a_page_of_a_map(home, tmp_path):
    result = edge_monitor("report", home / "map.npz", "-o", tmp_path / "page.html")
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "page.html").read_text()
    assert "model.onnx" in page


def test_run_records_and_replay_gives_the_same_reports(home, tmp_path):
    result = edge_monitor("run", config(home, tmp_path), "--json")
    assert result.returncode == 0, result.stderr
    served = json.loads(result.stdout)
    assert served["frames"] == 400
    again = edge_monitor("replay", served["recording"], "--json")
    assert again.returncode == 0, again.stderr
    replayed = json.loads(again.stdout)
    assert replayed["compared"] == replayed["identical"] == 400


def test_run_makes_the_recordings_folder(home, tmp_path):
    path = config(home, tmp_path, sinks__recording={"folder": str(tmp_path / "new" / "recordings")})
    assert edge_monitor("check", path).returncode == 0
    assert not (tmp_path / "new").exists()  # to look is not to make
    result = edge_monitor("run", path, "--json")
    assert result.returncode == 0, result.stderr
    assert Path(json.loads(result.stdout)["recording"]).parent == tmp_path / "new" / "recordings"


def test_replay_notices_a_report_that_differs(home, tmp_path):
    """Settings that were not the recording's must show; so would any change of the code."""
    served = json.loads(edge_monitor("run", config(home, tmp_path), "--json").stdout)
    path = Path(served["recording"])
    from edge_monitor.offline import replay as module  # noqa: PLC0415

    digest = module.report_digest
    seen = []
    try:
        module.report_digest = lambda report: "0" * 16 if not seen and not seen.append(1) else digest(report)
        replayed = module.replay(path)
    finally:
        module.report_digest = digest
    assert (replayed.compared, replayed.identical) == (400, 399)


def test_calibrate_from_a_recording(home, tmp_path):
    served = json.loads(edge_monitor("run", config(home, tmp_path), "--json").stdout)
    out = tmp_path / "device.npz"
    result = edge_monitor("calibrate", home / "model.onnx", "--rows", served["recording"], "-o", out)
    assert result.returncode == 0, result.stderr
    region_map, original = load_region_map(out), load_region_map(home / "map.npz")
    assert region_map.provenance.source == served["recording"]
    np.testing.assert_allclose(region_map.fmri.median, original.fmri.median)
    np.testing.assert_array_equal(region_map.golden.frames, original.golden.frames)
    other = tmp_path / "other.npz"
    line = refused(
        "calibrate", home / "model.onnx", "--rows", served["recording"], "--bands", "hz", "-o", other
    )
    assert "bands" in line
    assert "nyquist" in line
    assert not other.exists()


def test_sigterm_stops_a_run_cleanly(home, tmp_path):
    path = config(home, tmp_path, source__loop=True, source__realtime=True)
    command = [sys.executable, "-m", "edge_monitor.cli", "run", str(path), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        # The journal's first line says that frames are being served.
        line = process.stderr.readline()
        assert "WARMING" in line, line
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=max(1.0, deadline - time.monotonic()))
    assert process.returncode == 0, err
    served = json.loads(out)
    assert served["frames"] >= 1
    replayed = edge_monitor("replay", served["recording"], "--json")
    assert json.loads(replayed.stdout)["truncated"] is False


@pytest.mark.parametrize("reader", ["gone", "asleep"])
def test_standard_error_that_nobody_reads_stops_nothing(home, tmp_path, free_port, reader):
    mqtt = {"host": "127.0.0.1", "port": free_port, "fleet": "f", "vehicle": "v", "monitor": "m"}
    sinks = {"mqtt": mqtt, "recording": {"folder": str(tmp_path)}}
    path = config(home, tmp_path, sinks=sinks, source__realtime=True, source__limit=60)
    ours, theirs = os.pipe()
    if reader == "gone":
        os.close(ours)
    else:
        os.set_blocking(theirs, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(theirs, b"x" * 65536)
        os.set_blocking(theirs, True)
    command = [sys.executable, "-m", "edge_monitor.cli", "run", str(path), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, text=True) as process:
        os.close(theirs)
        wedged = threading.Timer(60, process.kill)
        wedged.start()
        answer = process.stdout.readline()
        wedged.cancel()
        if reader == "asleep":
            os.close(ours)  # what still waits to be written ends now
    served = json.loads(answer)
    assert served["frames"] == 60
    replayed = json.loads(edge_monitor("replay", served["recording"], "--json").stdout)
    assert (replayed["compared"], replayed["truncated"]) == (60, False)


def test_a_broken_image_ends_the_run_with_one_line_and_a_whole_recording(home, tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for i, frame in enumerate(np.load(home / "frames.npy")[:20]):
        np.save(folder / f"{i:02}.npy", frame)
    (folder / "12.npy").write_bytes(b"broken")
    line = refused("run", config(home, tmp_path, source__frames=str(folder)))
    assert str(folder / "12.npy") in line
    replayed = json.loads(edge_monitor("replay", *tmp_path.glob("*.mcap"), "--json").stdout)
    assert (replayed["compared"], replayed["truncated"]) == (12, False)


def test_unreachable_broker_is_said_and_the_monitor_goes_on(home, tmp_path, free_port):
    mqtt = {"host": "127.0.0.1", "port": free_port, "fleet": "f", "vehicle": "v", "monitor": "m"}
    path = config(home, tmp_path, sinks={"mqtt": mqtt}, source__realtime=True, source__limit=60)
    result = edge_monitor("run", path, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["frames"] == 60
    assert f"127.0.0.1:{free_port}" in result.stderr
    assert "refused" in result.stderr.lower()


def test_broker_that_comes_back_is_said_too(home, tmp_path, start_broker):
    broker = start_broker()
    broker.kill()
    mqtt = {"host": "127.0.0.1", "port": broker.port, "fleet": "f", "vehicle": "v", "monitor": "m"}
    path = config(home, tmp_path, sinks={"mqtt": mqtt}, source__realtime=True, source__loop=True)
    command = [sys.executable, "-m", "edge_monitor.cli", "run", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        lines = iter(process.stderr.readline, "")
        assert any(line.startswith("warning mqtt") for line in lines)
        broker.start()
        assert any(line.startswith("info over: mqtt") for line in lines)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_check_prints_a_map_and_a_good_config(home, tmp_path):
    """With the range of the model's input: whoever forgot ``--scale`` sees 0 ... 255."""
    shown = edge_monitor("check", home / "map.npz").stdout
    assert re.search(r"golden frames +8, model input \S+e-05 \.\.\. 1\b", shown), shown
    result = edge_monitor("check", config(home, tmp_path))
    assert result.returncode == 0, result.stderr
    assert "good" in result.stdout
    assert "vector code" not in result.stderr


def test_check_says_what_is_slow_without_vector_code(home, tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    result = edge_monitor("check", config(home, tmp_path))
    assert result.returncode == 0, result.stderr
    assert "vector code that cannot be built here: the taps are read thirty times as slowly" in result.stderr
    for slow in ("taps", "fault head", "bands"):
        assert slow in result.stderr


def test_check_for_machines(home, tmp_path):
    facts = json.loads(edge_monitor("check", home / "map.npz", "--json").stdout)
    known = load_region_map(home / "map.npz")
    assert facts["provenance"]["model_sha256"] == known.provenance.model_sha256
    assert facts["provenance"]["warnings"] == list(known.provenance.warnings)
    assert facts["thresholds"]["stall"] == [None, None]  # off
    assert facts["thresholds"]["spatial"] == known.evidence.threshold[CHANNELS.index("spatial")].tolist()
    result = edge_monitor("check", config(home, tmp_path, region_map="no.npz"), "--json")
    assert result.returncode == 2
    assert json.loads(result.stdout)["problems"] == ["region_map: no.npz: No such file or directory"]


def test_check_lists_everything_that_is_wrong(home, tmp_path):
    path = config(home, tmp_path, region_map=str(tmp_path / "no.npz"), model={"path": "no.onnx"})
    result = edge_monitor("check", path)
    assert result.returncode == 2
    assert "no.npz" in result.stderr
    assert "no.onnx" in result.stderr


# --- drill ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drill_frames(home):
    """Frames that the map does not know: enough for one scene."""
    np.save(home / "others.npy", np.random.default_rng(1).random((640, 3, 16, 16), dtype=np.float32))
    return "others.npy"


SOME = ("--scenes", "1", "--fault", "NaN/Inf", "--fault", "blackout", "--fault", "true freeze")


def test_drill_prints_a_table_and_writes_a_page(home, drill_frames, tmp_path):
    page = tmp_path / "drill.html"
    result = edge_monitor("drill", "model.onnx", drill_frames, *SOME, "--seed", "3", "-o", page, cwd=home)
    assert result.returncode == 0, result.stderr
    assert "NaN/Inf" in result.stdout
    assert "true freeze: left out of 3 cases: needs a source that can show a scene again" in result.stdout
    assert "scenes raised a flag" in result.stdout
    assert "ramp" in result.stdout
    assert f"wrote {page}" in result.stdout
    assert "warning" not in result.stderr
    assert "Drill of model.onnx on others.npy" in page.read_text()


def test_drill_gives_the_same_json_for_the_same_seed(home, drill_frames):
    command = ("drill", "model.onnx", drill_frames, *SOME, "--severity", "2", "--no-ramps", "--json")
    first, second = (edge_monitor(*command, cwd=home) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    told = json.loads(first.stdout)
    assert [(line["fault"], line["severity"]) for line in told["lines"]] == [("NaN/Inf", 2), ("blackout", 2)]
    assert [left["fault"] for left in told["left_out"]] == ["true freeze"]
    assert [outcome["fault"] for outcome in told["outcomes"]] == ["unbroken", "NaN/Inf", "blackout"]
    found = told["outcomes"][1]
    assert found["standing"] != (found["delay"] == 1)  # a map of 400 frames may alarm before
    assert told["unbroken"]["scenes"] == 1


def test_drill_warns_of_the_frames_that_the_map_was_calibrated_on(home, drill_frames, tmp_path):
    np.save(tmp_path / "frames.npy", np.load(home / drill_frames))
    options = ("--map", home / "map.npz", "--scenes", "1", "--fault", "NaN/Inf", "--severity", "1")
    result = edge_monitor("drill", home / "model.onnx", "frames.npy", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "warning: the map was calibrated on frames.npy" in result.stderr


def test_drill_helps_with_the_number_of_frames():
    """Its numbers are the scenes' own."""
    shown = " ".join(edge_monitor("drill", "--help").stdout.replace("│", " ").split())
    each = BEFORE + LEAD + round(RAMP_S * RATE_HZ)
    assert f"A scene takes {BEFORE + LEAD} of them and {RAMP_S:.0f} s more: 8 scenes" in shown
    assert f"take {8 * each}." in shown
    assert f"{each} frames each at 30 frames/s" in shown


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--fault", "rust"], "error: --fault: 'rust' is none of frozen exact, frozen with noise"),
        (["--severity", "4"], "error: --severity: 4 is not in 0 ... 3"),
        (["--scenes", "2"], "others.npy: 640 frames, 2 scenes need 1236 (618 each); they are enough for 1"),
        (["--limit", "617"], "others.npy: 617 frames, 1 scenes need 618 (618 each); not enough for one"),
        (["--seed", "-1"], "error: --seed: -1 is below 0"),
        (["--map", "absent.npz"], "absent.npz: No such file"),
        (["-o", "model.onnx"], "exists and is no HTML page"),
    ],
)
def test_drill_options_that_cannot_be_used(home, drill_frames, options, words):
    assert words in refused("drill", "model.onnx", drill_frames, "--scenes", "1", *options, cwd=home)


def test_drill_wants_the_maps_own_model_and_clean_frames(home, drill_frames, tmp_path):
    (tmp_path / "other.onnx").write_bytes(models.cnn())
    line = refused("drill", tmp_path / "other.onnx", drill_frames, "--scenes", "1", cwd=home)
    assert "belongs to model model.onnx" in line
    frames = np.load(home / drill_frames)
    frames[500, 0, 0, 0] = np.nan
    np.save(tmp_path / "nan.npy", frames)
    line = refused("drill", "model.onnx", tmp_path / "nan.npy", "--scenes", "1", cwd=home)
    assert "nan.npy: frame 500 holds NaN or Inf" in line


# --- bad input: one line that names the thing and the bad value, exit code 2, nothing half-written ---


def test_missing_and_truncated_models(home, tmp_path):
    assert "nowhere.onnx" in refused("taps", tmp_path / "nowhere.onnx")
    for length in (0, 10, 900, len(models.residual_cnn()) - 1):
        cut = tmp_path / "cut.onnx"
        cut.write_bytes(models.residual_cnn()[:length])
        assert "cut.onnx" in refused("taps", cut)
        assert "cut.onnx" in refused("calibrate", cut, home / "frames.npy", "-o", tmp_path / "m.npz")
    assert not (tmp_path / "m.npz").exists()


def test_tap_that_does_not_exist(home, tmp_path):
    line = refused(
        "calibrate", home / "model.onnx", home / "frames.npy", "--tap", "nope", "-o", tmp_path / "m.npz"
    )
    assert "nope" in line
    assert not (tmp_path / "m.npz").exists()


def test_map_of_another_model(home, tmp_path):
    other = tmp_path / "other.onnx"
    other.write_bytes(models.residual_cnn(seed=1))
    line = refused("run", config(home, tmp_path, model={"path": str(other)}))
    assert "map" in line
    assert not list(tmp_path.glob("*.mcap"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"region_map": "absent.npz"}, "region_map: absent.npz: No such file"),
        ({"model__path": "absent.onnx"}, "model.path: absent.onnx: No such file"),
        ({"source__frames": "absent"}, "source: absent: no such file"),
        ({"source__frame_rate_hz": 10.0}, "source: frame_rate_hz: is 10, the map was calibrated at 30 Hz"),
        ({"source__mean": [0.0, 0.0]}, "source: mean: has 2 values"),
        ({"sinks__health_page": {"path": "/absent/page"}}, "sinks.health_page.path: /absent"),
    ],
)
def test_run_and_check_name_the_file_and_the_key(home, tmp_path, changes, words):
    path = config(home, tmp_path, **changes)
    assert f"error: {path}: {words}" in refused("run", path)
    assert f"{path}: {words}" in edge_monitor("check", path).stderr
    assert not list(tmp_path.glob("*.mcap"))


def test_a_damaged_model_is_not_called_another_one(home, tmp_path):
    """Cut short it is no model at all; with other bytes it may be either, and the digests say so."""
    whole = (home / "model.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[:900])
    (tmp_path / "flipped.onnx").write_bytes(whole[:-400] + bytes([whole[-400] ^ 4]) + whole[-399:])
    for command in ("drill", "impact"):
        cut, flipped = (
            refused(command, tmp_path / file, home / "frames.npy", "--map", home / "map.npz")
            for file in ("cut.onnx", "flipped.onnx")
        )
        assert "cut.onnx: not a whole ONNX model" in cut
        assert "belongs to model model.onnx (SHA-256 " in flipped
        assert "another model, or the same one changed or damaged" in flipped


def test_misspelt_key_names_the_nearest(home, tmp_path):
    line = refused("run", config(home, tmp_path, source__frame_rate=30))
    assert "source.frame_rate" in line
    assert "source.frame_rate_hz" in line
    assert "config.yaml" in line


def test_bad_value_is_shown(home, tmp_path):
    line = refused("run", config(home, tmp_path, source__frame_rate_hz="fast"))
    assert "frame_rate_hz" in line
    assert "'fast'" in line


def test_non_yaml(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("a: [b\nc: }")
    assert "not YAML" in refused("run", path)
    path.write_bytes(b"\xff\xfe\x00")
    assert "c.yaml" in refused("run", path)


def test_image_of_the_wrong_size(home, tmp_path):
    np.save(tmp_path / "small.npy", np.zeros((200, 8, 8, 3), np.uint8))
    line = refused("calibrate", home / "model.onnx", tmp_path / "small.npy", "-o", tmp_path / "m.npz")
    assert "(8, 8, 3)" in line
    assert "(3, 16, 16)" in line


def test_directory_without_frames_and_too_few_frames(home, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "empty" in refused("calibrate", home / "model.onnx", tmp_path / "empty", "-o", tmp_path / "m.npz")
    np.save(tmp_path / "few.npy", np.zeros((5, 3, 16, 16), np.float32))
    assert "5 frames" in refused(
        "calibrate", home / "model.onnx", tmp_path / "few.npy", "-o", tmp_path / "m.npz"
    )
    assert not (tmp_path / "m.npz").exists()


def test_frames_with_nan_are_not_clean(home, tmp_path):
    frames = np.load(home / "frames.npy")
    frames[7, 0, 0, 0] = np.nan
    np.save(tmp_path / "nan.npy", frames)
    assert "frame 7" in refused(
        "calibrate", home / "model.onnx", tmp_path / "nan.npy", "-o", tmp_path / "m.npz"
    )


def test_map_with_nan(home, tmp_path):
    with np.load(home / "map.npz") as archive:
        arrays = {key: archive[key] for key in archive.files}
    arrays["fmri.median"] = arrays["fmri.median"].copy()
    arrays["fmri.median"][3] = np.nan
    np.savez(tmp_path / "nan.npz", **arrays)
    line = refused("check", tmp_path / "nan.npz")
    assert "fmri.median[3] is nan" in line


def test_output_that_cannot_be_written(home, tmp_path):
    """A file in place of the folder stands for any folder that cannot be written, even for root."""
    (tmp_path / "file").write_text("")
    line = refused("calibrate", home / "model.onnx", home / "frames.npy", "-o", tmp_path / "file" / "m.npz")
    assert "m.npz" in line
    path = config(home, tmp_path, sinks__recording={"folder": str(tmp_path / "file")})
    assert f"config.yaml: sinks.recording.folder: {tmp_path / 'file'}: is no directory" in refused(
        "run", path
    )
    assert "config.yaml: sinks.recording.folder: " in edge_monitor("check", path).stderr


def test_read_only_folder(home, tmp_path):
    """Root may write into any folder of a disk, but not into /proc."""
    locked = Path("/proc") if os.geteuid() == 0 else tmp_path / "locked"
    if locked.parent == tmp_path:
        locked.mkdir(mode=0o500)
    line = refused("calibrate", home / "model.onnx", home / "frames.npy", "-o", locked / "m.npz")
    assert str(locked / "m.npz") in line
    assert "written" in line


def test_output_never_replaces_what_is_no_map(home, tmp_path):
    (tmp_path / "model.onnx").write_bytes(models.residual_cnn())
    (tmp_path / "notes.txt").write_text("mine")
    os.mkfifo(tmp_path / "pipe")
    for name in ("model.onnx", "notes.txt", "pipe", "."):
        before = (tmp_path / name).read_bytes() if (tmp_path / name).is_file() else None
        line = refused("calibrate", tmp_path / "model.onnx", home / "frames.npy", "-o", tmp_path / name)
        assert "is no region map" in line
        assert "is no HTML page" in refused("report", home / "map.npz", "-o", tmp_path / name)
        assert before is None or (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--alarms-per-hour", "nan"], "error: --alarms-per-hour: is nan"),
        (["--alarms-per-hour", "0"], "error: --alarms-per-hour: is 0.0"),
        (["--bands", "foo"], "error: --bands: is 'foo'"),
        (["--rate", "0"], "error: --rate: is 0.0"),
        (["--limit", "-1"], "error: --limit: is -1"),
        (["--scale", "1e300"], "frame 0"),
        (["--mean", "1", "--mean", "2"], "error: --mean: has 2 values"),
        (["--tap", "nope"], "model.onnx: nope: no such tap"),
    ],
)
def test_absurd_options(home, tmp_path, options, words):
    line = refused("calibrate", home / "model.onnx", home / "frames.npy", "-o", tmp_path / "m.npz", *options)
    assert words in line
    assert not (tmp_path / "m.npz").exists()


def test_options_of_frames_do_not_go_with_rows(home, tmp_path):
    line = refused("calibrate", home / "model.onnx", "--rows", tmp_path / "r.mcap", "--rate", "10")
    assert "--rate" in line


def test_model_of_two_inputs(home, tmp_path):
    (tmp_path / "two.onnx").write_bytes(models.two_inputs())
    np.save(tmp_path / "states.npy", np.zeros((120, 4), np.float32))
    line = refused("calibrate", tmp_path / "two.onnx", tmp_path / "states.npy", "-o", tmp_path / "map.npz")
    assert "two.onnx: has 2 inputs (state, image), frames can feed one" in line


def test_model_with_an_operator_that_nobody_knows(home, tmp_path):
    (tmp_path / "odd.onnx").write_bytes(models.residual_cnn().replace(b"Relu", b"Rulo"))
    assert "odd.onnx" in refused(
        "calibrate", tmp_path / "odd.onnx", home / "frames.npy", "-o", tmp_path / "m.npz"
    )


def test_missing_certificate_is_refused_by_run_and_check(home, tmp_path):
    mqtt = {"host": "127.0.0.1", "fleet": "f", "vehicle": "v", "monitor": "m", "ca_file": "no.pem"}
    path = config(home, tmp_path, sinks={"mqtt": mqtt, "health_page": {"path": str(tmp_path / "none/page")}})
    checked = edge_monitor("check", path)
    assert checked.returncode == 2
    assert "config.yaml: sinks.mqtt.ca_file: no.pem: No such file" in checked.stderr
    assert f"config.yaml: sinks.health_page.path: {tmp_path / 'none'}: is no directory" in checked.stderr
    path = config(home, tmp_path, sinks={"mqtt": mqtt})
    assert "config.yaml: sinks.mqtt.ca_file: no.pem: No such file" in refused("run", path)


def test_text_is_printed_as_it_is(home, tmp_path):
    """No markup and no emoji: `demo:abc:` and brackets in a path stay what they are."""
    assert "demo:abc:" in refused("calibrate", home / "model.onnx", "demo:abc:", "-o", tmp_path / "m.npz")
    out = tmp_path / "m[red].npz"
    result = edge_monitor("calibrate", home / "model.onnx", home / "frames.npy", "-o", out)
    assert f"wrote {out}" in result.stdout


def test_recording_that_is_none(tmp_path):
    (tmp_path / "x.mcap").write_bytes(b"nothing")
    assert "x.mcap" in refused("replay", tmp_path / "x.mcap")
    assert "y.mcap" in refused("replay", tmp_path / "y.mcap")


def test_two_sources_or_none(home):
    assert "FRAMES" in refused("calibrate", home / "model.onnx")
