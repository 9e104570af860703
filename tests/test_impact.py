"""Impact scores of real graphs: against an independent ablation, enumeration and another estimator."""

import json
import os
import subprocess
import sys
import warnings
from itertools import count, product
from pathlib import Path
from types import SimpleNamespace

import models
import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_shapley import exact

from edge_monitor.errors import InputError, ModelError
from edge_monitor.offline import checkpoint as checkpoint_module
from edge_monitor.offline.ablation import Game, voxel_cells, whole_answers
from edge_monitor.offline.backend import backend_of
from edge_monitor.offline.impact import impact_scores
from edge_monitor.offline.payoff import DECISION_PROBABILITY, Payoff, accuracy
from edge_monitor.offline.shapley import ShapleySettings
from edge_monitor.offline.surgery import CutModel
from edge_monitor.region_map import Runtime
from edge_monitor.taps.reducer import input_spec, tap_spec
from edge_monitor.types import TapSpec

DEMO = Path(__file__).parent.parent / "edge_monitor" / "data" / "demo_model.onnx"
DATA = Path(os.environ.get("EDGE_MONITOR_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
RESNET8 = DATA / "mlperf_tiny" / "resnet8_float.onnx"
needs_data = pytest.mark.skipif(not RESNET8.is_file(), reason=f"no ResNet8 in EDGE_MONITOR_DATA ({DATA})")

CNN = models.cnn()
FEW = ShapleySettings(pairs=6)
N_INPUT = 48
"""Voxels of an image input of three colours."""


def cnn_taps(grid=(2, 2, 2)):
    return (
        input_spec("input", (3, 16, 16)),
        tap_spec("relu1", (8, 16, 16), grid),
        tap_spec("relu3", (10,), (5, 1, 1)),
    )


def noise(n, shape=(3, 16, 16), seed=0):
    return np.random.default_rng(seed).normal(size=(n, *shape)).astype(np.float32)


def ablated_answers(data, tap, frames, coalition):
    """First outputs (n, k) of a graph in which a Where stands behind the tap: no cut, no batches of 32."""
    model = onnx.load_from_string(data)
    model.graph.output.append(onnx.ValueInfoProto(name=tap.name))
    fed = model.graph.input[0].name
    session = onnxruntime.InferenceSession(model.SerializeToString())
    natural = np.concatenate([session.run([tap.name], {fed: frame[None]})[0] for frame in frames])
    activations = natural.reshape(-1, *tap.shape).astype(np.float64)
    keep = np.zeros(tap.shape, np.bool_)
    for voxel, place in enumerate(np.ndindex(*tap.grid)):
        for element in np.ndindex(*tap.shape):
            inside = (
                i * n // g <= x < (i + 1) * n // g
                for i, x, n, g in zip(place, element, tap.shape, tap.grid, strict=True)
            )
            if coalition[voxel] and all(inside):
                keep[element] = True
    mean = np.broadcast_to(activations.mean(axis=(0, 2, 3))[:, None, None], tap.shape)
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name == tap.name:
                node.input[i] = "ablated"
    maker = next(i for i, node in enumerate(model.graph.node) if tap.name in node.output)
    model.graph.node.insert(maker + 1, helper.make_node("Where", ["keep", tap.name, "mean"], ["ablated"]))
    constants = {"keep": keep, "mean": mean.astype(np.float32)}
    model.graph.initializer.extend(
        numpy_helper.from_array(value.reshape(1, *natural.shape[1:]), name)
        for name, value in constants.items()
    )
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return np.concatenate([session.run(None, {fed: frame[None]})[0] for frame in frames])


def ablated_probability(data, tap, frames):
    """The default payoff of coalitions, without any code of the package."""
    whole = ablated_answers(data, tap, frames, np.ones(tap.n_voxels, bool))
    decision = whole.argmax(axis=1)
    return lambda s: ablated_answers(data, tap, frames, s)[np.arange(len(frames)), decision]


def same(a, b):
    for field in a.__struct_fields__:
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field), err_msg=field)


@pytest.mark.parametrize(
    ("data", "frames", "tap"),
    [
        (CNN, noise(40), tap_spec("relu1", (8, 16, 16), (3, 3, 1))),  # more than a chunk; uneven voxels
        (CNN, noise(5), tap_spec("relu3", (10,), (4, 1, 1))),
        (models.residual_cnn(), noise(5), tap_spec("relu1", (8, 16, 16), (2, 2, 2))),  # a skip branch
        (DEMO.read_bytes(), noise(3, (3, 48, 48)), tap_spec("block2_add_relu", (32, 12, 12), (4, 2, 1))),
    ],
)
def test_coalitions_are_worth_what_a_graph_with_the_mask_inside_says(data, frames, tap):
    game = Game(data, tap, frames, DECISION_PROBABILITY, whole_answers(data, "model", frames))
    truth = ablated_probability(data, tap, frames)
    rng = np.random.default_rng(1)
    for share in (0.0, 0.3, 0.5, 0.8, 1.0):
        coalition = rng.random(tap.n_voxels) < share
        np.testing.assert_allclose(game.value(coalition), truth(coalition), atol=1e-5)


@pytest.mark.parametrize(
    ("model", "shape", "tap"),
    [
        (CNN, (3, 16, 16), tap_spec("clip2", (12, 8, 8), (3, 2, 1))),
        (DEMO, (3, 48, 48), tap_spec("head", (48,), (7, 1, 1))),
        (DEMO, (3, 48, 48), tap_spec("block2_add_relu", (32, 12, 12), (2, 2, 2))),
    ],
)
def test_theta_agrees_with_enumeration(model, shape, tap):
    frames = noise(6, shape)
    data = model if isinstance(model, bytes) else model.read_bytes()
    found = impact_scores(
        model, (input_spec("image", shape), tap), frames, settings=ShapleySettings(pairs=64)
    )
    whole = whole_answers(data, "model", frames)
    game = Game(data, tap, frames, DECISION_PROBABILITY, whole)
    truth = exact(game.value, tap.n_voxels)
    assert np.isnan(found.theta[:N_INPUT]).all()
    assert np.isnan(found.stderr[:N_INPUT]).all()
    theta, stderr = found.theta[N_INPUT:], found.stderr[N_INPUT:]
    assert (np.abs(theta - truth) <= np.maximum(3 * stderr, 1e-6)).all()
    assert found.f_all[0] == pytest.approx(whole[0].max(axis=1).mean(), abs=1e-5)
    assert theta.sum() == pytest.approx(found.f_all[0] - found.f_none[0], abs=1e-12)
    assert (found.payoff, found.images, found.seed) == ("decision_probability", 6, 0)
    assert (found.pairs, found.history_pairs.tolist()) == ([64.0], [4.0, 8.0, 16.0, 32.0, 64.0])
    np.testing.assert_array_equal(found.history_theta[-1, N_INPUT:], theta)


def test_agrees_with_another_implementation():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what its own dependencies say at import
        import shap  # noqa: PLC0415

    frames, tap = noise(4), tap_spec("relu1", (8, 16, 16))
    found = impact_scores(
        CNN, (input_spec("input", (3, 16, 16)), tap), frames, settings=ShapleySettings(pairs=64)
    )
    game = Game(CNN, tap, frames, DECISION_PROBABILITY, whole_answers(CNN, "model", frames))
    explainer = shap.PermutationExplainer(
        lambda rows: np.array([game.value(row > 0.5).mean() for row in rows]),
        lambda active, row: (active * row)[np.newaxis],
        seed=1,
    )
    everything = np.ones((1, tap.n_voxels))
    theirs = explainer(everything, max_evals=32 * (2 * tap.n_voxels + 1), silent=True).values[0]
    assert np.corrcoef(theirs, found.theta[N_INPUT:])[0, 1] >= 0.99


@needs_data
def test_resnet8_with_labels():
    with np.load(DATA / "cifar10_calibration_2000.npz") as archive:
        frames = archive["images"][:24].transpose(0, 3, 1, 2).astype(np.float32)
        labels = archive["labels"][:24]
    taps = (input_spec("input", (3, 32, 32)), tap_spec("t33", (64, 8, 8)))
    found = impact_scores(RESNET8, taps, frames, labels=labels, settings=FEW)
    answers = whole_answers(RESNET8.read_bytes(), "model", frames)[0]
    assert found.payoff == "accuracy"
    assert found.f_all[0] == np.mean(answers.argmax(axis=1) == labels)
    assert found.f_none[0] < 0.5
    explicit = impact_scores(RESNET8, taps, frames, payoff=accuracy(labels), settings=FEW)
    same(found, explicit)


def test_voxels_are_those_of_the_specification():
    for shape, grid in product([(7, 5, 3), (10, 1, 1), (4, 4, 4)], [(1, 1, 1), (4, 2, 2), (3, 5, 3)]):
        tap = TapSpec("tap", shape, tuple(min(g, n) for g, n in zip(grid, shape, strict=True)))
        covered = np.zeros(shape, int)
        for cells, elements in zip(voxel_cells(tap), tap.voxel_counts(), strict=True):
            assert covered[cells].size == elements
            covered[cells] += 1
        assert (covered == 1).all()


def test_threads_change_no_number():
    one = impact_scores(CNN, cnn_taps(), noise(5), settings=FEW, threads=1)
    same(one, impact_scores(CNN, cnn_taps(), noise(5), settings=FEW, threads=3))


def test_the_seed_is_all_there_is_to_chance():
    one = impact_scores(CNN, cnn_taps(), noise(5), settings=FEW)
    same(one, impact_scores(CNN, cnn_taps(), noise(5), settings=FEW))
    other = impact_scores(CNN, cnn_taps(), noise(5), settings=ShapleySettings(pairs=6, seed=1))
    assert not np.array_equal(one.theta[N_INPUT:], other.theta[N_INPUT:])


def test_taps_that_stop_early_have_no_later_history():
    # The dense tap has hardly any interaction, so its error is soon small.
    settings = ShapleySettings(pairs=4, max_stderr=2e-5)
    found = impact_scores(CNN, cnn_taps(), noise(5), settings=settings)
    assert found.pairs[0] != found.pairs[1]
    longest = int(np.argmax(found.pairs))
    parts = [slice(N_INPUT, N_INPUT + 8), slice(N_INPUT + 8, None)]
    points = [int((found.history_pairs <= pairs).sum()) for pairs in found.pairs]
    assert points[longest] == len(found.history_pairs) > points[1 - longest]
    for part, n in zip(parts, points, strict=True):
        assert np.isfinite(found.history_theta[:n, part]).all()
        assert np.isnan(found.history_theta[n:, part]).all()
    assert np.nanmax(found.stderr) <= 2e-5


class Interrupt:
    """Progress that interrupts at its n-th call."""

    def __init__(self, at):
        self.at = at
        self.told = []

    def __call__(self, phase, done, total):
        self.told.append((phase, done, total))
        if len(self.told) == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("at", [1, 4, 6, 7, 11])
def test_resumed_equals_uninterrupted(tmp_path, at):
    path = tmp_path / "state.npz"
    whole = impact_scores(CNN, cnn_taps(), noise(5), settings=FEW)
    with pytest.raises(KeyboardInterrupt):
        impact_scores(CNN, cnn_taps(), noise(5), settings=FEW, checkpoint=path, progress=Interrupt(at))
    assert [file.name for file in tmp_path.iterdir()] == ["state.npz"]
    rest = Interrupt(at=None)
    same(impact_scores(CNN, cnn_taps(), noise(5), settings=FEW, checkpoint=path, progress=rest), whole)
    assert len(rest.told) == 2 * FEW.pairs - at  # no pair is sampled twice
    assert path.exists()  # the caller removes it


def test_progress_names_tap_and_pairs():
    progress = Interrupt(at=None)
    impact_scores(CNN, cnn_taps(), noise(5), settings=FEW, progress=progress)
    assert progress.told == [(f"impact of {t}", k, 6) for t in ("relu1", "relu3") for k in range(1, 7)]


def test_an_error_of_the_payoff_costs_no_pairs(tmp_path):
    calls = count()

    def fails(ablated, unablated):
        if next(calls) == 40:
            raise ZeroDivisionError
        return DECISION_PROBABILITY.score(ablated, unablated)

    path = tmp_path / "state.npz"
    with pytest.raises(ZeroDivisionError):
        impact_scores(
            CNN, cnn_taps(), noise(5), Payoff("mine", fails), settings=FEW, checkpoint=path, threads=1
        )
    found = impact_scores(CNN, cnn_taps(), noise(5), Payoff("mine", fails), settings=FEW, checkpoint=path)
    same(
        found, msgspec.structs.replace(impact_scores(CNN, cnn_taps(), noise(5), settings=FEW), payoff="mine")
    )


def test_the_state_is_kept_every_few_seconds_and_at_the_end_of_a_tap(tmp_path, monkeypatch):
    path, clock, sizes = tmp_path / "state.npz", count(step=4), []
    monkeypatch.setattr(checkpoint_module.time, "monotonic", lambda: next(clock))

    def watch(phase, done, total):
        sizes.append(path.stat().st_mtime_ns if path.exists() else None)

    impact_scores(CNN, cnn_taps(), noise(5), settings=FEW, checkpoint=path, progress=watch)
    assert sizes[0] is None
    assert sizes[1] == sizes[2] is not None  # written after the first pair, then only when it is due
    assert 3 <= len(set(sizes[1:])) < len(sizes) - 1


OTHER = {
    "seed": {"settings": ShapleySettings(pairs=6, seed=1)},
    "pairs": {"settings": ShapleySettings(pairs=7)},
    "max_stderr": {"settings": ShapleySettings(pairs=6, max_stderr=1.0)},
    "frames": {"frames": noise(5, seed=9)},
    "taps": {"taps": cnn_taps((2, 2, 1))},
    "payoff or labels": {"labels": np.zeros(5, int)},
    "model": {"model": models.cnn(seed=1)},
}


@pytest.fixture
def arguments(tmp_path):
    """Arguments of a run whose checkpoint exists."""
    fixed = {
        "model": CNN,
        "taps": cnn_taps(),
        "frames": noise(5),
        "settings": FEW,
        "checkpoint": tmp_path / "state.npz",
    }
    with pytest.raises(KeyboardInterrupt):
        impact_scores(**fixed, progress=Interrupt(4))
    return fixed


@pytest.mark.parametrize("other", OTHER)
def test_the_checkpoint_of_another_run_is_refused_and_kept(arguments, other):
    before = arguments["checkpoint"].read_bytes()
    with pytest.raises(
        InputError, match=rf"state\.npz: checkpoint of another run \(other {other}\); remove it"
    ):
        impact_scores(**arguments | OTHER[other])
    assert arguments["checkpoint"].read_bytes() == before


def test_the_checkpoint_of_other_versions_is_refused(arguments, monkeypatch):
    other = msgspec.structs.replace(Runtime.here(), runtime="onnxruntime 0.0")
    monkeypatch.setattr("edge_monitor.offline.impact.Runtime", SimpleNamespace(here=lambda _: other))
    with pytest.raises(InputError, match=r"other versions\)"):
        impact_scores(**arguments)


def test_labels_are_part_of_what_a_checkpoint_belongs_to(arguments):
    arguments["checkpoint"].unlink()
    with pytest.raises(KeyboardInterrupt):
        impact_scores(**arguments, labels=np.zeros(5, int), progress=Interrupt(2))
    with pytest.raises(InputError, match="other payoff or labels"):
        impact_scores(**arguments, labels=np.ones(5, int))


def test_a_damaged_checkpoint_is_refused_and_kept(arguments):
    path = arguments["checkpoint"]
    whole = path.read_bytes()
    middle = len(whole) // 2
    for damaged in (
        b"",
        b"text",
        whole[:-30],
        whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
    ):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"state\.npz: no checkpoint, or a damaged one"):
            impact_scores(**arguments)
        assert path.read_bytes() == damaged
    np.savez(path, something=np.zeros(3))
    with pytest.raises(InputError, match="no checkpoint"):
        impact_scores(**arguments)


def test_a_checkpoint_that_cannot_be_written_is_said_at_once(tmp_path):
    progress = Interrupt(at=None)
    with pytest.raises(InputError, match=r"missing/state\.npz: cannot be written \(No such file"):
        impact_scores(
            CNN, cnn_taps(), noise(5), checkpoint=tmp_path / "missing" / "state.npz", progress=progress
        )
    assert len(progress.told) == 1


def test_a_disk_that_fills_up_leaves_the_last_state(arguments, monkeypatch):
    path = arguments["checkpoint"]
    before = path.read_bytes()

    def half(file, **_):
        file.write(before[: len(before) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", half)
    with pytest.raises(InputError, match=r"state\.npz: cannot be written \(No space left on device\)"):
        impact_scores(**arguments)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_one_image_says_nothing_about_other_images():
    found = impact_scores(CNN, cnn_taps(), noise(1), settings=FEW)
    assert np.isnan(found.image_stderr).all()
    assert np.isfinite(found.theta[N_INPUT:]).all()
    assert np.isfinite(found.stderr[N_INPUT:]).all()


def test_constant_activations_have_no_impact():
    frames = np.repeat(noise(1), 7, axis=0)  # all frames alike: every dense unit is its own mean
    found = impact_scores(CNN, (cnn_taps()[0], cnn_taps()[2]), frames, settings=FEW)
    for array in (found.theta, found.stderr, found.image_stderr):
        np.testing.assert_array_equal(array[N_INPUT:], 0.0)
    assert found.f_all == found.f_none


def test_frames_that_cannot_be_used_are_refused():
    bad = noise(5)
    bad[3, 0, 2, 2] = np.nan
    for frames, problem in [
        (noise(0), r"frames: are float32\(0, 3, 16, 16\)"),
        (noise(3).astype(np.float64), r"frames: are float64\(3, 3, 16, 16\)"),
        (bad, "frames: frame 3 holds NaN or Inf"),
    ]:
        with pytest.raises(InputError, match=problem):
            impact_scores(CNN, cnn_taps(), frames)
    with pytest.raises(ModelError, match="cannot be run"):
        impact_scores(CNN, cnn_taps(), noise(3, (3, 8, 4, 1)))


def test_taps_that_cannot_be_used_are_refused():
    image = cnn_taps()[0]
    for tap, problem in [
        (None, "taps: none besides the input"),
        (TapSpec("relu1", (8, 16, 16), (0, 1, 1)), "relu1: has no voxels"),
        (tap_spec("relu1", (16, 16, 8)), r"relu1: is \(8, 16, 16\) in the model, \(16, 16, 8\) as a tap"),
        (tap_spec("relu7", (8, 16, 16)), "relu7: no such tap"),
    ]:
        with pytest.raises(InputError, match=problem):
            impact_scores(CNN, (image,) if tap is None else (image, tap), noise(3))


def test_models_that_cannot_be_scored_are_refused(tmp_path):
    image = input_spec("input", (20,))
    with pytest.raises(ModelError, match=r"no probability vector .* give labels, or a payoff of your own"):
        impact_scores(models.dense(), (image, tap_spec("relu1", (16,))), noise(4, (20,)))
    with pytest.raises(ModelError, match="cannot be run"):
        impact_scores(models.two_inputs(), cnn_taps(), noise(3, (3, 12, 12)))
    with pytest.raises(ModelError, match="No such file"):
        impact_scores(tmp_path / "model.onnx", cnn_taps(), noise(3))
    with pytest.raises(ModelError, match=r"not a whole ONNX model|cannot be run"):
        impact_scores(b"nonsense", cnn_taps(), noise(3))


def test_labels_and_payoffs_that_cannot_be_used_are_refused():
    with pytest.raises(InputError, match="labels: 4 for 5 frames"):
        impact_scores(CNN, cnn_taps(), noise(5), labels=np.zeros(4, int))
    with pytest.raises(InputError, match=r"labels: given beside a payoff \(decision_probability\)"):
        impact_scores(CNN, cnn_taps(), noise(5), DECISION_PROBABILITY, labels=np.zeros(5, int))
    for score, problem in [
        (lambda a, _: a[0], r"mine: gives float32\(5, 5\) for 5 frames"),
        (lambda a, _: a[0].mean(), r"mine: gives float32\(\) for 5 frames"),
        (lambda a, _: ["x"] * 5, r"mine: gives <U1\(5,\)"),
        (lambda a, _: np.where(np.arange(5) == 2, np.nan, 1.0), "mine: gives nan for frame 2"),
    ]:
        with pytest.raises(InputError, match=problem):
            impact_scores(CNN, cnn_taps(), noise(5), Payoff("mine", score))


def test_an_output_without_batch_axis_is_refused():
    data = onnx.load_from_string(CNN)
    data.graph.node.append(helper.make_node("ReduceMean", ["probabilities"], ["mean"], keepdims=0))
    data.graph.output.append(helper.make_tensor_value_info("mean", TensorProto.FLOAT, []))
    with pytest.raises(ModelError, match=r"output mean: is \(\) for one frame, has no batch axis"):
        impact_scores(data.SerializeToString(), cnn_taps(), noise(3))


def test_a_cut_that_answers_otherwise_is_noticed(monkeypatch):
    class Off:
        def __init__(self, *arguments):
            self.cut = CutModel(*arguments)
            self.before = self.cut.before

        def after(self, activations, carried):
            return [0.99 * output for output in self.cut.after(activations, carried)]

    tools = backend_of(CNN)._replace(cut=Off)
    monkeypatch.setattr("edge_monitor.offline.ablation.backend_of", lambda _: tools)
    with pytest.raises(ModelError, match=r"relu1: the model cut here answers otherwise, by 0.03 of 3$"):
        impact_scores(CNN, cnn_taps(), noise(3))


TOOLS = Path(__file__).parent.parent / "tools"

# As the script runs, but in the interpreter of the tests instead of the checkout's own environment.
LAUNCH = f"""
import runpy, sys
sys.path.insert(0, {str(TOOLS)!r})
runpy.run_path({str(TOOLS)!r} + "/" + sys.argv[1], run_name="tool")["main"](sys.argv[2:])
"""


def tool(*arguments, data=DATA):
    command = [sys.executable, "-c", LAUNCH, *arguments]
    environment = {**os.environ, "EDGE_MONITOR_DATA": str(data)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize("name", ["study_impact", "bench_impact"])
def test_tools_say_which_data_they_miss(name, tmp_path):
    finished = tool(name, "--quick", data=tmp_path)
    assert (finished.returncode, finished.stdout) == (2, "")
    (line,) = finished.stderr.splitlines()
    assert line.startswith(f"error: EDGE_MONITOR_DATA: {tmp_path}/mlperf_tiny/resnet8_float.onnx, ")
    assert line.endswith("cifar10_test_500.npz missing")


@pytest.mark.slow
@needs_data
def test_sampled_scores_of_real_networks_agree_with_enumeration():
    finished = tool("study_impact", "--quick", "--json", "--only", "enumeration")
    assert finished.returncode == 0, finished.stderr
    rows = json.loads(finished.stdout)["enumeration"]
    assert {(row["network"], row["voxels"]) for row in rows} == set(product(["demo", "resnet8"], [8, 10]))
    assert np.average([row["within_3"] for row in rows], weights=[row["voxels"] for row in rows]) >= 0.97
    assert max(row["worst"] for row in rows) <= 6
    assert max(row["f_all_difference"] for row in rows) <= 1e-6


@pytest.mark.slow
@needs_data
def test_the_bench_measures_time_and_memory():
    finished = tool("bench_impact", "--cell", '{"voxels": 4, "images": 8, "pairs": 2}')
    assert finished.returncode == 0, finished.stderr
    cost = json.loads(finished.stdout)
    assert cost["evaluations"] <= 3 * (2 + 2 * 2 * 3)
    assert cost["seconds"] > 0
    assert 30 < cost["peak_mib"] < 2048
