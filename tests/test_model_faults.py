"""Faulty models run, differ from the sound one, keep their taps, and break where they say."""

import os
import re
from importlib import resources
from itertools import islice
from pathlib import Path

import models
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edge_monitor.errors import InputError, ModelError
from edge_monitor.offline.faults import FAULTS, SEVERITIES, VARIANTS, Stage
from edge_monitor.offline.model_edits import EditedOnnxModel, flip_bit, hold_channel, weights_before
from edge_monitor.offline.model_faults import faulty_model
from edge_monitor.probe import Probe
from edge_monitor.sources.scenes import Road
from edge_monitor.taps.onnx import list_taps, open_session, quiet_options

DATA = Path(os.environ.get("EDGE_MONITOR_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
QDQ = DATA / "mlperf_tiny" / "resnet8_qdq.onnx"
needs_data = pytest.mark.skipif(not QDQ.is_file(), reason=f"no ResNet8 in EDGE_MONITOR_DATA ({DATA})")

NAMES = [fault.name for fault in FAULTS if fault.stage is Stage.MODEL]
OF_TAPS = [
    ("dead channels", "drill"),
    *((n, v) for n in ("saturated layer", "stuck-high unit") for v in VARIANTS),
]
every = pytest.mark.parametrize(("name", "variant"), [(name, v) for name in NAMES for v in VARIANTS])


@pytest.fixture(scope="module")
def demo() -> bytes:
    return (resources.files("edge_monitor") / "data" / "demo_model.onnx").read_bytes()


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    scenes = [scene for seed in range(1500, 1508) for scene in islice(Road(seed), 40, 41)]
    return np.array([scene.image.transpose(2, 0, 1) for scene in scenes], np.float32)


def run(data: bytes, taps: list[str], frames: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs and taps, frame by frame."""
    session = open_session(data, taps, {"sess_options": quiet_options()})
    names = [output.name for output in session.get_outputs()]
    rows = [session.run(None, {session.get_inputs()[0].name: frame[None]}) for frame in frames]
    return {name: np.concatenate(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def initializers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}


def taps_of(data: bytes) -> list[str]:
    return [tap.name for tap in list_taps(data)]


@every
def test_level_0_is_the_model_itself(demo, frames, name, variant):
    data, where = faulty_model(demo, name, 0.0, 3, frames, variant)
    assert data == demo
    assert where == "nowhere"


@every
@pytest.mark.parametrize("level", SEVERITIES)
def test_a_faulty_model_runs_differs_and_keeps_its_taps(demo, frames, name, variant, level):
    data, where = faulty_model(demo, name, level, 3, frames, variant)
    assert (data, where) == faulty_model(demo, name, level, 3, frames, variant)
    assert data != faulty_model(demo, name, level, 4, frames, variant)[0] or name == "quantisation fault"
    taps = taps_of(demo)
    with np.errstate(invalid="ignore", over="ignore"):
        found, sound = run(data, taps, frames), run(demo, taps, frames)
        assert list(found) == list(sound)
        assert any(not np.allclose(found[key], sound[key], rtol=1e-7, atol=0.0) for key in sound)


@every
def test_the_probe_reads_a_faulty_model(demo, frames, name, variant):
    taps = [tap.name for tap in list_taps(demo) if tap.default]
    data, _ = faulty_model(demo, name, 2.0, 1, frames, variant)
    rows = []
    probe = Probe.onnx(data, taps=taps, on_row=rows.append, sess_options=quiet_options())
    probe.run(None, {"image": frames[:1]})
    assert len(rows) == 1


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", range(6))
def test_non_finite_weights_reach_the_answer(demo, frames, variant, seed):
    data, _ = faulty_model(demo, "NaN/Inf", 1.0, seed, frames, variant)
    with np.errstate(invalid="ignore"):
        found = run(data, taps_of(demo), frames)
    assert any(not np.isfinite(values).all() for values in found.values())


@pytest.mark.parametrize(("level", "share"), [(1.0, 0.15), (2.0, 0.3), (3.0, 0.6)])
def test_dead_channels_are_those_named_and_spoke_before(demo, frames, level, share):
    data, where = faulty_model(demo, "dead channels", level, 5, frames)
    tap = where.split()[0]
    dead = [int(number) for number in re.findall(r"\d+", where.split("channels")[1])]
    found, sound = (run(model, [tap], frames)[tap] for model in (data, demo))
    alive = [k for k in range(sound.shape[1]) if k not in dead]
    assert not found[:, dead].any()
    assert all(sound[:, k].any() for k in dead)
    assert np.array_equal(found[:, alive], sound[:, alive])
    assert len(dead) == pytest.approx(share * sound.shape[1], abs=0.51)


def test_zeroed_weights_silence_the_channels_named(frames):
    model = models.cnn()
    probe = np.random.default_rng(0).random((4, 3, 16, 16), np.float32)
    weights = set()
    for seed in range(12):
        data, where = faulty_model(model, "dead channels", 2.0, seed, probe, "other")
        weight = where.split()[0]
        weights.add(weight)
        values = initializers(onnx.load_from_string(data))
        dead = [int(number) for number in re.findall(r"\d+", where.split("channels")[1])]
        assert not values[weight][dead].any()  # Conv and Gemm with transB count channels on axis 0
        assert np.count_nonzero(
            np.abs(values[weight]).reshape(len(values[weight]), -1).sum(axis=1) == 0
        ) == len(dead)
    assert len(weights) >= 3


def test_a_matmul_counts_its_channels_on_the_last_axis():
    model = models.dense()
    probe = np.random.default_rng(0).standard_normal((4, 20), np.float32)
    places = [faulty_model(model, "dead channels", 3.0, seed, probe, "other") for seed in range(8)]
    data, where = next(item for item in places if item[1].startswith("w1 "))
    dead = [int(number) for number in re.findall(r"\d+", where.split("channels")[1])]
    zeroed = np.flatnonzero(~initializers(onnx.load_from_string(data))["w1"].any(axis=0))
    assert zeroed.tolist() == dead
    assert len(dead) == 12


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_saturated_layer_has_ties_at_its_clean_maximum(demo, frames, variant):
    data, where = faulty_model(demo, "saturated layer", 3.0, 2, frames, variant)
    tap = where.split()[0]
    found, sound = (run(model, [tap], frames)[tap] for model in (data, demo))
    assert found.max() == sound.max()
    assert np.count_nonzero(found == found.max()) > 100 * np.count_nonzero(sound == sound.max())


@pytest.mark.parametrize(("level", "times"), [(1.0, 1.0), (2.0, 2.0), (3.0, 4.0)])
def test_a_stuck_unit_holds_a_multiple_of_the_maximum(demo, frames, level, times):
    data, where = faulty_model(demo, "stuck-high unit", level, 7, frames)
    tap, channel = where.split(" channel ")
    found, sound = (run(model, [tap], frames)[tap] for model in (data, demo))
    assert found[:, int(channel)] == pytest.approx(times * sound.max())
    others = [k for k in range(sound.shape[1]) if k != int(channel)]
    assert np.array_equal(found[:, others], sound[:, others])


def test_a_biased_unit_still_sees(demo, frames):
    data, where = faulty_model(demo, "stuck-high unit", 2.0, 7, frames, "other")
    tap, channel = where.split(" channel ")
    found, sound = (run(model, [tap], frames)[tap][:, int(channel)] for model in (data, demo))
    maximum = run(demo, [tap], frames)[tap].max()
    assert found == pytest.approx(sound + 1.5 * maximum, rel=1e-5)


@pytest.mark.parametrize(("variant", "counts"), [("drill", (2, 8, 32)), ("other", (4, 16, 64))])
def test_so_many_weights_have_flipped_bits(demo, frames, variant, counts):
    sound = initializers(onnx.load_from_string(demo))
    for level, count in zip(SEVERITIES, counts, strict=True):
        data, where = faulty_model(demo, "weight bit flips", level, 0, frames, variant)
        found = initializers(onnx.load_from_string(data))
        changed = {name: found[name].view(np.uint32) ^ sound[name].view(np.uint32) for name in sound}
        assert sum(np.count_nonzero(bits) for bits in changed.values()) == count
        for name, index, bits in re.findall(r"(\S+)\[(\d+)\] bits (\[.*?\])", where):
            flipped = [int(number) for number in re.findall(r"\d+", bits)]
            assert changed[name].reshape(-1)[int(index)] == sum(1 << bit for bit in flipped)
            assert variant == "other" or (len(flipped) == 1 and 23 <= flipped[0] <= 30)


def test_few_levels_are_few(demo, frames):
    data, _ = faulty_model(demo, "quantisation fault", 2.0, 0, frames)
    found = initializers(onnx.load_from_string(data))
    sound = initializers(onnx.load_from_string(demo))
    for name, values in found.items():
        if values.ndim > 1:
            assert len(np.unique(values)) <= 11
            assert np.abs(values - sound[name]).max() <= 0.501 * np.abs(sound[name]).max() / 5
        else:
            assert np.array_equal(values, sound[name])


@pytest.mark.parametrize(
    "make",
    [models.cnn, models.residual_cnn, models.dense, models.gated, models.mobilenet, models.behind_softmax],
)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_other_models_can_have_every_fault(make, name, variant):
    data = make()
    argument = open_session(data, (), {"sess_options": quiet_options()}).get_inputs()[0]
    probe = np.random.default_rng(0).standard_normal((6, *argument.shape[1:]), np.float32)
    taps = taps_of(data)
    for seed in range(3):
        faulty, _ = faulty_model(data, name, 2.0, seed, probe, variant)
        with np.errstate(invalid="ignore", over="ignore"):
            found, sound = run(faulty, taps, probe), run(data, taps, probe)
        if name != "weight bit flips":  # which may change too little to be seen in six frames
            assert any(not np.array_equal(found[key], sound[key], equal_nan=True) for key in sound)


@needs_data
def test_a_quantised_model_has_the_faults_that_it_can_have():
    data = QDQ.read_bytes()
    argument = open_session(data, (), {"sess_options": quiet_options()}).get_inputs()[0]
    probe = (np.random.default_rng(0).random((3, *argument.shape[1:])) * 255).astype(np.float32)
    taps = taps_of(data)
    sound = run(data, taps, probe)
    for name, variant in [*OF_TAPS, ("weight bit flips", "drill"), ("weight bit flips", "other")]:
        found = run(faulty_model(data, name, 3.0, 1, probe, variant)[0], taps, probe)
        assert any(not np.array_equal(found[key], sound[key]) for key in sound)
    for name in ("NaN/Inf", "quantisation fault"):
        with pytest.raises(ModelError, match=r"has no layer with (floating-point )?weights"):
            faulty_model(data, name, 1.0, 0, probe)


def test_bad_input_is_refused(demo, frames):
    with pytest.raises(InputError, match="'fog' is none of weight bit flips, NaN/Inf"):
        faulty_model(demo, "fog", 1.0, 0, frames)
    with pytest.raises(InputError, match="'dill' is none of drill, other"):
        faulty_model(demo, "NaN/Inf", 1.0, 0, frames, "dill")
    with pytest.raises(InputError, match="must be 0 to 3, not 4"):
        faulty_model(demo, "NaN/Inf", 4.0, 0, frames)
    with pytest.raises(InputError, match=r"probe frames: are float32\(0, 3, 48, 48\)"):
        faulty_model(demo, "dead channels", 1.0, 0, frames[:0])
    with pytest.raises(
        InputError, match=r"float64\(8, 3, 48, 48\), the model takes float32\(n, \*\(3, 48, 48\)\)"
    ):
        faulty_model(demo, "dead channels", 1.0, 0, frames.astype(np.float64))
    with pytest.raises(ModelError, match="has no activations"):
        faulty_model(models.no_activations(), "dead channels", 1.0, 0, frames)
    with pytest.raises(ModelError, match="has 2 inputs"):
        faulty_model(models.two_inputs(), "dead channels", 1.0, 0, frames)


def test_one_channel_is_held(demo, frames):
    found = run(hold_channel(onnx.load_from_string(demo), "block2_relu", 3, 7.5), ["block2_relu"], frames)[
        "block2_relu"
    ]
    sound = run(demo, ["block2_relu"], frames)["block2_relu"]
    assert (found[:, 3] == 7.5).all()
    assert np.array_equal(np.delete(found, 3, 1), np.delete(sound, 3, 1))
    with pytest.raises(ModelError, match="block9"):
        hold_channel(onnx.load_from_string(demo), "block9", 3, 7.5)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
def test_one_bit_flips_in_weights_of_any_type(dtype):
    model = onnx.load_from_string(models.cnn())
    values = np.arange(-10, 10).reshape(4, 5).astype(dtype)
    model.graph.initializer.append(numpy_helper.from_array(values, "w"))
    bit = 8 * values.itemsize - 1
    found = initializers(onnx.load_from_string(flip_bit(model, "w", 7, bit)))["w"]
    assert found.dtype == dtype
    assert np.flatnonzero(found != values).tolist() == [7]
    assert found.reshape(-1)[7] == (3 if dtype != np.int8 else -3 + 128)


def test_only_what_is_asked_for_is_decoded(demo, monkeypatch):
    """Weights are large, and a fault alters those of one layer."""
    decoded, decode = [], numpy_helper.to_array
    monkeypatch.setattr(numpy_helper, "to_array", lambda item: (decoded.append(item.name), decode(item))[1])
    edited = EditedOnnxModel(demo)
    layers = edited.layers()
    assert decoded == []
    assert (layers[0].weight, layers[0].bias, layers[0].axis) == ("stem_conv.weight", "stem_conv.bias", 0)
    kept = edited.read(layers[1].weight)
    edited.scale(layers[1], 2.0)
    np.testing.assert_array_equal(edited.read(layers[1].weight), 2 * kept)
    assert decoded == [layers[1].weight] * 3
    assert all(values.ndim > 1 for values in edited.weights().values())
    assert set(decoded) == set(edited.weights())


def test_weights_belong_to_the_first_tap_they_reach(demo):
    weights = weights_before(onnx.load_from_string(demo), ["stem", "block1_add_relu", "head"])
    assert weights["stem_conv.weight"] == "stem"
    assert weights["block1_conv2.weight"] == "block1_add_relu"
    assert weights["block2_shortcut.weight"] == "head"
    assert "logits.weight" not in weights
