"""Faulty TensorFlow Lite models: they break where they say, in what the model stores."""

import re
from functools import cache

import numpy as np
import pytest
import tflite_models as models
from tflite_runs import CIFAR10, RESNET8, needs_data

from edge_monitor.config import FrameSettings
from edge_monitor.errors import InputError, ModelError
from edge_monitor.offline import tflite_model
from edge_monitor.offline.backend import backend_of
from edge_monitor.offline.calibrate import calibrate
from edge_monitor.offline.drill import choose_cases, drill
from edge_monitor.offline.drill_scenes import CleanScenes
from edge_monitor.offline.faults import FAULTS, SEVERITIES, VARIANTS, Stage
from edge_monitor.offline.injection import Injector, Range
from edge_monitor.offline.model_faults import faulty_model
from edge_monitor.offline.observe import LEAST_FRAMES, observe
from edge_monitor.offline.tflite_edits import EditedTfliteModel
from edge_monitor.offline.tflite_model import PartRunner, run_whole
from edge_monitor.taps.reducer import input_spec, tap_spec
from edge_monitor.taps.tflite_edit import with_outputs
from edge_monitor.taps.tflite_file import read_model
from edge_monitor.taps.tflite_taps import find_candidates, list_taps

pytest.importorskip("ai_edge_litert", reason="models are broken by its schema module")

NAMES = [fault.name for fault in FAULTS if fault.stage is Stage.MODEL]
EVERY = [(name, variant) for name in NAMES for variant in VARIANTS]
KINDS = ["float32", "int8"]
kinds = pytest.mark.parametrize("kind", KINDS)


@cache
def net(kind: str) -> bytes:
    return models.residual_cnn(dtype=kind)


@cache
def frames() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(5, 3, 8, 6)).astype(np.float32)


def taps_of(data: bytes) -> dict[str, np.ndarray]:
    """Stored numbers (n, ...) of every candidate, and of the answer, read as outputs of the model."""
    graph = read_model(data)
    candidates = find_candidates(graph)
    runner = PartRunner(with_outputs(data, [c.tensor.index for c in candidates.values()]))
    wanted = {name: c.tensor.index for name, c in candidates.items()} | {"answer": graph.outputs[0]}
    entry = graph.tensors[graph.inputs[0]]
    stored = frames().transpose(0, 2, 3, 1)
    if entry.scales:
        stored = np.clip(np.rint(stored / entry.scales[0]) + entry.zero_points[0], -128, 127)
    rows = [runner.run({entry.index: f[None].astype(entry.dtype)}, list(wanted.values())) for f in stored]
    return {
        name: np.concatenate(column) for name, column in zip(wanted, zip(*rows, strict=True), strict=True)
    }


def values_of(data: bytes, tap: str) -> np.ndarray:
    tensor, stored = find_candidates(read_model(data))[tap].tensor, taps_of(data)[tap].astype(np.float64)
    return (stored - tensor.zero_points[0]) * tensor.scales[0] if tensor.scales else stored


@kinds
def test_a_model_that_is_not_altered_answers_to_the_bit(kind):
    data = net(kind)
    again = EditedTfliteModel(data).to_bytes()
    for name, stored in taps_of(data).items():
        np.testing.assert_array_equal(taps_of(again)[name], stored)
    signed = models.residual_cnn(signature="serving_default")
    assert read_model(EditedTfliteModel(signed).to_bytes()).signatures == read_model(signed).signatures


@kinds
@pytest.mark.parametrize(("name", "variant"), EVERY)
def test_a_faulty_model_runs_differs_and_keeps_its_taps(kind, name, variant):
    data = net(kind)
    if (kind, name) == ("int8", "NaN/Inf"):
        with pytest.raises(
            ModelError, match="model: has no layer with floating-point weights, which the fault"
        ):
            faulty_model(data, name, 1.0, 0, frames(), variant)
        return
    sound = taps_of(data)
    assert faulty_model(data, name, 0.0, 3, frames(), variant) == (data, "nowhere")
    for level in SEVERITIES:
        broken, where = faulty_model(data, name, level, 3, frames(), variant)
        assert (broken, where) == faulty_model(data, name, level, 3, frames(), variant)
        with np.errstate(invalid="ignore", over="ignore"):
            found = taps_of(broken)
        assert set(sound) <= set(found)
        assert any(not np.array_equal(found[key], sound[key], equal_nan=True) for key in sound) or level < 3


@kinds
def test_dead_channels_are_those_named_and_nothing_else_changes_there(kind):
    data = net(kind)
    broken, where = faulty_model(data, "dead channels", 3.0, 5, frames())
    tap = where.split()[0]
    dead = [int(number) for number in re.findall(r"\d+", where.split("channels")[1])]
    found, sound = values_of(broken, tap), values_of(data, tap)
    assert dead
    assert not found[..., dead].any()
    assert sound[..., dead].any()
    alive = np.setdiff1d(np.arange(found.shape[-1]), dead)
    np.testing.assert_array_equal(found[..., alive], sound[..., alive])


@kinds
def test_a_layer_can_be_altered_at_every_tap(kind):
    """By the definition, and what a quantised tap can hold at most."""
    data = net(kind)
    for name, candidate in find_candidates(read_model(data)).items():
        n = candidate.shape[0]
        gain, bias = np.linspace(0.5, 3.0, n, dtype=np.float32), np.linspace(-1, 1, n, dtype=np.float32)
        edited = backend_of(data).edit(data)
        edited.alter(name, gain, bias, ceiling=1.25)
        sound, found = values_of(data, name), values_of(edited.to_bytes(), name)
        expected, step = np.minimum(sound * gain + bias, 1.25), 1e-5
        if kind == "int8":
            (scale,), (zero,) = candidate.tensor.scales, candidate.tensor.zero_points
            expected = np.clip(expected, (-128 - zero) * scale, (127 - zero) * scale)
            step = 0.501 * scale
        np.testing.assert_allclose(found, expected, atol=step)
        answers = taps_of(edited.to_bytes())["answer"], taps_of(data)["answer"]
        assert not np.array_equal(*answers), name


def test_two_faults_of_one_layer_follow_each_other():
    edited = EditedTfliteModel(net("float32"))
    one, none = np.ones(8, np.float32), np.zeros(8, np.float32)
    edited.alter("join1", 2 * one, none)
    edited.alter("join1", one, one)
    expected = 2 * values_of(net("float32"), "join1") + 1
    np.testing.assert_allclose(values_of(edited.to_bytes(), "join1"), expected, rtol=1e-6)


def stored_weights(data: bytes) -> dict[str, np.ndarray]:
    return {name: values.copy() for name, values in EditedTfliteModel(data).weights().items()}


@kinds
@pytest.mark.parametrize("variant", VARIANTS)
def test_so_many_stored_weights_have_flipped_bits(kind, variant):
    data = net(kind)
    broken, where = faulty_model(data, "weight bit flips", 3.0, 1, frames(), variant)
    before, after = stored_weights(data), stored_weights(broken)
    assert {values.dtype for values in after.values()} == {np.dtype(kind)}
    flipped = {}
    for name, values in before.items():
        words = f"u{values.itemsize}"
        change = values.ravel().view(words) ^ after[name].ravel().view(words)
        flipped |= {f"{name}[{i}]": int(change[i]) for i in np.flatnonzero(change)}
    told = {
        m[1]: sum(1 << int(b) for b in m[2].split(", "))
        for m in re.finditer(r"(\S+\]) bits \[(.*?)\]", where)
    }
    assert flipped == told
    assert len(told) == (32 if variant == "drill" else 64)
    if variant == "drill":
        lowest = 23 if kind == "float32" else 4
        assert all(bits >= 1 << lowest and bits.bit_count() == 1 for bits in told.values())


@kinds
def test_few_levels_are_few_and_the_scales_stay(kind):
    data = net(kind)
    broken, _ = faulty_model(data, "quantisation fault", 3.0, 0, frames())
    for name, values in stored_weights(broken).items():
        assert len(np.unique(values)) <= 5
        largest = np.abs(stored_weights(data)[name].astype(float)).max()
        assert np.abs(values.astype(float)).max() == pytest.approx(largest, rel=1e-6)
    assert scales_of(broken) == scales_of(data)


def scales_of(data: bytes) -> list[tuple[float, ...]]:
    return [tensor.scales for tensor in read_model(data).tensors]


def test_the_wrong_scale_of_a_quantised_layer_is_a_scale_and_its_weights_stay():
    data = net("int8")
    for seed in range(4):
        broken, where = faulty_model(data, "quantisation fault", 3.0, seed, frames(), "other")
        layer, factor = where.split()[0], float(where.split()[-1])
        sound, wrong = scales_of(data), scales_of(broken)
        changed = [i for i, (a, b) in enumerate(zip(sound, wrong, strict=True)) if a != b]
        weights, bias = changed
        assert int(layer.split("#")[1]) == weights
        assert read_model(data).tensors[bias].name == layer.split("/")[0] + "/bias"
        for i in changed:
            np.testing.assert_allclose(wrong[i], np.multiply(sound[i], factor), rtol=2e-3)
        for name, values in stored_weights(data).items():
            np.testing.assert_array_equal(stored_weights(broken)[name], values)


def test_zeroed_weights_silence_the_channels_named_with_their_bias():
    data = net("int8")
    broken, where = faulty_model(data, "dead channels", 2.0, 3, frames(), "other")
    layer = next(layer for layer in EditedTfliteModel(data).layers() if layer.weight == where.split()[0])
    dead = [int(number) for number in re.findall(r"\d+", where.split("channels")[1])]
    edited = EditedTfliteModel(broken)
    assert not np.moveaxis(edited.read(layer.weight), layer.axis, 0)[dead].any()
    assert layer.bias is not None
    assert not edited.read(layer.bias)[dead].any()
    assert edited.read(layer.bias).any()


@kinds
def test_constants_that_share_a_buffer_are_altered_one_by_one(kind):
    """A converter stores equal numbers once."""
    edited = EditedTfliteModel(net(kind))
    layers = [layer for layer in edited.layers() if edited.read(layer.weight).shape == (8, 3, 3, 8)]
    first, second = (edited._main.tensors[int(layer.weight.split("#")[1])] for layer in layers[:2])
    second.buffer = first.buffer
    edited = EditedTfliteModel(edited.to_bytes())
    kept = edited.read(layers[0].weight).copy()
    edited.replace(layers[1].weight, np.zeros_like(kept))
    edited = EditedTfliteModel(edited.to_bytes())
    np.testing.assert_array_equal(edited.read(layers[0].weight), kept)
    assert not edited.read(layers[1].weight).any()
    n_buffers = len(edited._model.buffers)
    edited.replace(layers[1].weight, kept)  # whose buffer is its own by now
    np.testing.assert_array_equal(edited.read(layers[1].weight), kept)
    assert len(edited._model.buffers) == n_buffers


def test_channels_of_a_depthwise_convolution_lie_on_the_last_axis():
    graph = models.Net()
    image = graph.value("image", (1, 6, 6, 3))
    weights = graph.tensor(
        "weights", (1, 3, 3, 3), values=graph.rng.normal(size=(1, 3, 3, 3)).astype(np.float32)
    )
    out = graph.value("out", (1, 6, 6, 3))
    options = {1: models.Number("i", 1), 2: models.Number("i", 1), 3: models.Number("i", 1)}
    bias = graph.tensor("bias", [3], values=np.ones(3, np.float32))
    graph.operator("DEPTHWISE_CONV_2D", [image, weights, bias], [out], options)
    (layer,) = EditedTfliteModel(graph.model([image], [out])).layers()
    assert (layer.axis, layer.weight.split("#")[0], layer.bias) == (3, "weights", f"bias#{bias}")


@kinds
def test_rows_are_those_of_the_probe(kind, tmp_path):
    """To the bit, also of a second pass: nothing stays from the first."""
    data = net(kind)
    (tmp_path / "net.tflite").write_bytes(data)
    np.save(
        tmp_path / "frames.npy", np.random.default_rng(1).integers(0, 9, (40, 3, 8, 6)).astype(np.float32)
    )
    watched = observe(tmp_path / "net.tflite", FrameSettings(frames=str(tmp_path / "frames.npy")))
    pictures = np.load(tmp_path / "frames.npy")
    tapped = backend_of(data).tap(data, watched.taps, pictures[0])
    for rows in (list(tapped.rows(pictures)), list(tapped.rows(pictures))):
        for row, probed in zip(rows, watched.rows, strict=True):
            for field in ("signals", "nonfinite", "picture", "fingerprint", "output"):
                np.testing.assert_array_equal(getattr(row, field), getattr(probed, field), err_msg=field)
            np.testing.assert_array_equal(row.spatial.voxels, probed.spatial.voxels)


def test_a_model_whose_answers_are_no_numbers_is_watched_all_the_same():
    data = net("float32")
    broken, _ = faulty_model(data, "NaN/Inf", 3.0, 0, frames())
    taps = (input_spec("image", (3, 8, 6)), *(tap_spec(tap.name, tap.shape) for tap in list_taps(data)))
    rows = list(backend_of(broken).tap(broken, taps, frames()[0]).rows(frames()))
    assert all(row.nonfinite.any() or row.output.nonfinite for row in rows)


def test_what_cannot_be_edited_is_refused(monkeypatch):
    data = net("float32")
    with pytest.raises(InputError, match=r"frames: have shape \(5, 3, 8, 8\)"):
        faulty_model(data, "saturated layer", 1.0, 0, np.zeros((5, 3, 8, 8), np.float32))
    with pytest.raises(ModelError, match="only models with one can be cut"):
        faulty_model(models.branches(), "saturated layer", 1.0, 0, frames())
    with pytest.raises(ModelError, match="not a whole TensorFlow Lite model"):
        faulty_model(data[:300], "dead channels", 1.0, 0, frames())

    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(tflite_model, "import_module", missing)
    with pytest.raises(
        ModelError, match="model: can only be broken and traced with ai-edge-litert: pip install"
    ):
        faulty_model(data, "dead channels", 1.0, 0, frames())


def drive(path, n: int, seed: int) -> str:
    """Frames of a scene that changes slowly, with noise."""
    rng = np.random.default_rng(seed)
    scene = np.cumsum(rng.normal(size=(n, 3, 1, 1)), axis=0) / 20 + rng.normal(size=(3, 8, 6))
    np.save(path, (scene + 0.1 * rng.normal(size=(n, 3, 8, 6))).astype(np.float32))
    return str(path)


@pytest.mark.slow
@kinds
def test_a_map_with_a_fault_head_is_learned_and_drilled(kind, tmp_path):
    """From clean frames to a drill, as the commands do it."""
    model = tmp_path / "net.tflite"
    model.write_bytes(net(kind))
    settings = FrameSettings(frames=drive(tmp_path / "clean.npy", LEAST_FRAMES + 200, 1))
    region_map = calibrate(observe(model, settings))
    assert region_map.faults is not None
    assert not any("fault head" in remark for remark in region_map.provenance.warnings if "met" not in remark)
    assert not any("weight bit flips" in remark for remark in region_map.provenance.warnings)
    others = FrameSettings(frames=drive(tmp_path / "others.npy", 700, 2))
    scenes = CleanScenes(model, region_map, others, 1)
    injector = Injector(net(kind), region_map.taps, Range.of(np.load(tmp_path / "clean.npy")), 30.0)
    skipped: list[str] = []
    cases = choose_cases(["blackout", "stuck-high unit", "NaN/Inf"], [3.0], ramps=False)
    found = list(drill(injector, region_map, scenes, cases, skipped=lambda _, why: skipped.append(why)))
    if kind == "int8":
        assert skipped == ["model: has no layer with floating-point weights, which the fault needs"]
    assert [o.fault for o in found] == [c.fault for c in cases if kind == "float32" or c.fault != "NaN/Inf"]
    assert all(outcome.delay is not None for outcome in found if not outcome.standing)


@needs_data
@pytest.mark.parametrize("kind", ["float", "int8"])
def test_resnet8_can_have_the_faults_of_a_layer(kind):
    data = RESNET8[f"resnet8_{kind}"].read_bytes()
    with np.load(CIFAR10) as archive:
        pictures = archive["images"][:16].transpose(0, 3, 1, 2).astype(np.float32)
    sound = [answer[0].argmax() for answer in run_whole(data, "model", pictures)[1]]
    for name in ("stuck-high unit", "saturated layer", "quantisation fault"):
        broken, where = faulty_model(data, name, 3.0, 1, pictures[:4])
        assert {tap.name for tap in list_taps(data)} <= {tap.name for tap in list_taps(broken)}
        answers = [answer[0].argmax() for answer in run_whole(broken, "model", pictures)[1]]
        assert np.mean(np.not_equal(answers, sound)) > 0.2, where
