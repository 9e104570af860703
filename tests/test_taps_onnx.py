"""Which tensors are tapped, how files gain outputs, what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import models
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from tap_memory import held

from edge_monitor.errors import MapError, ModelError
from edge_monitor.taps.model_file import load_model
from edge_monitor.taps.onnx import find_observed_input, list_taps, open_session
from edge_monitor.taps.onnx_graph import add_outputs, find_candidates, find_quantised, read_graph
from edge_monitor.taps.onnx_prefix import prefix
from edge_monitor.taps.onnx_session import TappedSession
from edge_monitor.taps.onnx_tensor import Scalar, read_scalar
from edge_monitor.taps.reducer import input_spec, tap_spec

DATA = (
    Path(os.environ.get("EDGE_MONITOR_DATA", Path(__file__).parents[2] / "shared" / "data")) / "mlperf_tiny"
)
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real models in {DATA}")

ALL_MODELS = [models.cnn, models.residual_cnn, models.dense, models.two_inputs, models.gated]


def names_of(data: bytes) -> list[str]:
    return list(find_candidates(read_graph(data)))


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (models.cnn, {"relu1": "Relu", "clip2": "Clip", "relu3": "Relu"}),
        (models.residual_cnn, {"relu1": "Relu", "relu2": "Relu", "add2": "Add"}),
        (models.dense, {"relu1": "Relu", "tanh2": "Tanh"}),
        (models.two_inputs, {"relu1": "Relu", "relu2": "Relu"}),
        (models.gated, {"silu": "Mul", "relu": "Relu"}),
        (models.behind_softmax, {"relu1": "Relu"}),
        (models.no_activations, {}),
    ],
)
def test_candidates_are_the_post_activation_tensors(build, expected):
    assert find_candidates(read_graph(build())) == expected


@needs_data
def test_candidates_of_resnet8():
    found = list_taps(DATA / "resnet8_float.onnx")
    assert [tap.name for tap in found] == ["t22", "t23", "t25", "t26", "t29", "t30", "t33"]
    assert [tap.name for tap in found if tap.default] == ["t22", "t26", "t33"]
    assert found[0].shape == (16, 32, 32)
    assert found[0].bytes == 4 * 16 * 32 * 32
    assert found[0].cost_us == pytest.approx(4 * found[-1].cost_us)


@needs_data
def test_quantised_graphs_are_tapped_between_quantisation_and_dequantisation():
    """All seven: those whose Relu was folded into the integers' range, too. Bytes are integers."""
    found = list_taps(DATA / "resnet8_qdq.onnx")
    names = [f"t{n}_DequantizeLinear_Output" for n in (22, 23, 25, 26, 29, 30, 33)]
    assert [tap.name for tap in found] == names
    assert found[0].bytes == 16 * 32 * 32
    quantised = find_quantised(read_graph((DATA / "resnet8_qdq.onnx").read_bytes()))
    assert quantised[names[0]].tensor == "t22_QuantizeLinear_Output"
    assert quantised[names[0]].scale == pytest.approx(0.024232173)


@pytest.mark.parametrize("scale", [[0.1, 0.2], np.nan, np.inf, 0.0, -1.0])
def test_unusual_scales_are_left_to_the_runtime(scale):
    """A scale of each channel, or none that makes sense: the floats behind them are read."""
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["q"], axis=1),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"], axis=1),
    ]
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in ("input", "dq")]
    scale = np.array(scale, np.float32)
    numbers = [(scale, "scale"), (np.zeros(scale.shape, np.int8), "zero")]
    weights = [numpy_helper.from_array(array, name) for array, name in numbers]
    model = helper.make_model(helper.make_graph(nodes, "net", info[:1], info[1:], weights), ir_version=8)
    assert find_quantised(read_graph(model.SerializeToString())) == {}


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint8"])
@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_scalars_are_read_as_the_onnx_package_reads_them(dtype, raw, shape):
    for value in (0, 1, 127, -128, 2.5, -0.125):
        array = np.full(shape, value).astype(np.int64 if dtype.endswith("int8") else np.float64).astype(dtype)
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        content = array.tobytes() if raw else array.ravel()
        tensor = helper.make_tensor("x", kind, shape, content, raw=raw)
        found = read_scalar(memoryview(tensor.SerializeToString()))
        assert found == Scalar(dtype, float(array.ravel()[0]))


def test_what_is_no_scalar():
    def read(tensor):
        return read_scalar(memoryview(tensor.SerializeToString()))

    assert read(numpy_helper.from_array(np.zeros(2, np.float32))) is None
    assert read(numpy_helper.from_array(np.zeros((0, 3), np.float32))) is None
    assert read(numpy_helper.from_array(np.array(3, np.int64))) is None
    short = numpy_helper.from_array(np.array(3, np.float32))
    short.raw_data = b"12"
    with pytest.raises(ValueError, match="2 bytes of a float32"):
        read(short)


@pytest.mark.parametrize("build", ALL_MODELS)
def test_graph_is_read_as_the_onnx_package_reads_it(build):
    data = build()
    graph, truth = read_graph(data), onnx.load_from_string(data).graph
    assert [node.op for node in graph.nodes] == [node.op_type for node in truth.node]
    assert [list(node.inputs) for node in graph.nodes] == [list(node.input) for node in truth.node]
    assert [list(node.outputs) for node in graph.nodes] == [list(node.output) for node in truth.node]
    assert list(graph.outputs) == [output.name for output in truth.output]
    assert graph.initializers == {tensor.name for tensor in truth.initializer}


@pytest.mark.parametrize("build", ALL_MODELS)
def test_added_outputs_are_what_the_onnx_package_would_add(build):
    data = build()
    names = names_of(data)
    truth = onnx.load_from_string(data)
    truth.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    assert onnx.load_from_string(add_outputs(data, names)) == truth


def test_outputs_can_be_added_to_a_tapped_model_again():
    once = add_outputs(models.cnn(), ["relu1"])
    assert names_of(once) == ["clip2", "relu3"]
    assert read_graph(add_outputs(once, ["clip2"])).outputs == ("probabilities", "relu1", "clip2")


def test_default_set_is_early_middle_late():
    g = models._Graph(0)
    for n in range(8):
        g.gemm("input" if n == 0 else f"relu{n}", f"fc{n}", 4, 4)
        g.node("Relu", [f"fc{n}"], f"relu{n + 1}")
    g.gemm("relu8", "output", 4, 2)
    data = g.model([("input", ["N", 4])], [("output", ["N", 2])])
    assert [tap.name for tap in list_taps(data) if tap.default] == ["relu1", "relu5", "relu8"]


def test_fewer_than_three_candidates_are_all_suggested():
    assert [tap.default for tap in list_taps(models.dense())] == [True, True]
    assert list_taps(models.no_activations()) == []


def test_only_images_and_vectors_are_suggested():
    g = models._Graph(0)
    g.node("Relu", ["input"], "tokens")  # (1, 6, 4): listed, not suggested
    g.node("Flatten", ["tokens"], "flat")
    g.node("Relu", ["flat"], "vector")
    g.gemm("vector", "output", 24, 2)
    found = list_taps(g.model([("input", [1, 6, 4])], [("output", [1, 2])]))
    assert [(tap.name, tap.shape, tap.default) for tap in found] == [
        ("tokens", (6, 4), False),
        ("vector", (24,), True),
    ]


def test_half_precision_is_suggested():
    nodes = [helper.make_node("Relu", ["input"], ["relu"]), helper.make_node("Neg", ["relu"], ["output"])]
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT16, [1, 4]) for n in ("input", "output")]
    graph = helper.make_graph(nodes, "net", info[:1], info[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tap,) = list_taps(model.SerializeToString())
    assert (tap.name, tap.bytes, tap.default) == ("relu", 8, True)


def test_tap_that_does_not_exist_names_the_nearest():
    with pytest.raises(ModelError, match=r"relu: no such tap; nearest: relu[13], relu[13], clip2"):
        add_outputs(models.cnn(), ["relu"])
    with pytest.raises(ModelError, match="conv1: no such tap"):
        add_outputs(models.cnn(), ["conv1"])
    with pytest.raises(ModelError, match="the model has none"):
        add_outputs(models.no_activations(), ["output"])
    with pytest.raises(ModelError, match="relu1: tapped twice"):
        add_outputs(models.cnn(), ["relu1", "relu1"])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a model",
        b"\x89PNG\r\n\x1a\n" + bytes(64),
        bytes(100),
        models.cnn()[:100],
        models.cnn()[:-30],
    ],
    ids=["empty", "text", "png", "zeros", "head", "truncated"],
)
def test_what_is_no_whole_model_is_refused_in_one_line(data, tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelError, match="not a whole ONNX model") as caught:
        list_taps(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_missing_file_and_directory_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"none.onnx: No such file"):
        load_model(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="directory"):
        load_model(str(tmp_path))


def test_model_that_the_runtime_refuses_is_reported_in_one_line():
    nodes = [
        helper.make_node("Relu", ["input"], ["relu"]),
        helper.make_node("NoSuchOp", ["relu"], ["output"]),
    ]
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("input", "output")]
    graph = helper.make_graph(nodes, "net", info[:1], info[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(ModelError, match=r"model: cannot be run \(.*NoSuchOp") as caught:
        list_taps(model.SerializeToString())
    assert "\n" not in str(caught.value)


def test_failure_without_a_message_is_told_by_its_type(monkeypatch):
    def refuse(*_args):
        raise MemoryError

    monkeypatch.setattr("edge_monitor.taps.onnx.open_session", refuse)
    with pytest.raises(ModelError, match=r"model: cannot be run \(MemoryError\)"):
        list_taps(models.cnn())


def test_weights_in_other_files_are_refused():
    model = onnx.load_from_string(models.dense())
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    with pytest.raises(ModelError, match="weights in other files"):
        read_graph(model.SerializeToString())


def test_dynamic_size_asks_for_a_fixed_one():
    with pytest.raises(ModelError, match=r"input input: shape \['N', 3, 'S', 'S'\] is not fixed"):
        list_taps(models.cnn(size="S"))


def test_residual_join_of_a_constant_branch_is_no_tap():
    g = models._Graph(0)
    g.node("Neg", [g.weight("w", (1, 4))], "constant")  # follows from initializers alone
    g.node("Add", ["input", "constant"], "shifted")
    g.node("Relu", ["shifted"], "relu")
    g.node("Add", ["relu", "constant"], "shifted_again")
    g.gemm("shifted_again", "output", 4, 2)
    assert names_of(g.model([("input", [1, 4])], [("output", [1, 2])])) == ["relu"]


def test_observed_input_is_the_image_though_another_comes_first():
    session = onnxruntime.InferenceSession(models.two_inputs())
    assert find_observed_input(session) == "image"
    assert find_observed_input(onnxruntime.InferenceSession(models.dense())) == "input"


def test_model_of_a_fixed_larger_batch_cannot_be_observed():
    session = onnxruntime.InferenceSession(models.cnn(batch=4))
    with pytest.raises(ModelError, match=r"input float32\(4, 3, 16, 16\)"):
        find_observed_input(session)


def reference(data: bytes, names: list[str], feed: dict) -> list[np.ndarray]:
    """Outputs and taps by a model that the onnx package extended."""
    model = onnx.load_from_string(data)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, feed)


def feed_for(data: bytes, seed: int) -> dict:
    rng = np.random.default_rng(seed)
    session = onnxruntime.InferenceSession(data)
    return {
        arg.name: rng.standard_normal([n if isinstance(n, int) else 1 for n in arg.shape], np.float32)
        for arg in session.get_inputs()
    }


@pytest.mark.parametrize("build", ALL_MODELS)
def test_every_tap_holds_what_the_runtime_computes(build):
    data = build()
    names = names_of(data)
    feed = feed_for(data, 0)
    observed = find_observed_input(onnxruntime.InferenceSession(data))
    tapped = TappedSession(data, names, [feed], observed, None, {})
    n_outputs = len(read_graph(data).outputs)
    for seed in range(3):
        feed = feed_for(data, seed)
        tapped.load(feed[observed])
        outputs = tapped.run(feed)
        reduction = tapped.reduce()
        expected = reference(data, names, feed)
        for found, truth in zip(outputs, expected, strict=False):
            np.testing.assert_array_equal(found, truth)
        for view, truth in zip(held(tapped._reducer)[1:], expected[n_outputs:], strict=True):
            np.testing.assert_array_equal(view.ravel(), truth.ravel())
        truths = [feed[observed], *expected[n_outputs:]]
        np.testing.assert_allclose(reduction.signals, [np.abs(t).mean() for t in truths], rtol=1e-6)


@needs_data
@pytest.mark.parametrize("name", ["resnet8_float.onnx", "resnet8_qdq.onnx"])
def test_every_tap_of_resnet8_holds_what_the_runtime_computes(name):
    data = (DATA / name).read_bytes()
    names = names_of(data)
    frame = np.random.default_rng(0).random((1, 3, 32, 32), np.float32) * 255
    tapped = TappedSession(data, names, [{"input": frame}], "input", None, {})
    tapped.run({"input": frame})
    truths = reference(data, names, {"input": frame})[1:]
    for view, truth in zip(held(tapped._reducer)[1:], truths, strict=True):
        np.testing.assert_array_equal(view, truth[0])


@pytest.mark.parametrize(
    "build", [*ALL_MODELS, models.mobilenet, models.vit, models.two_heads], ids=lambda build: build.__name__
)
def test_prefix_gives_what_the_model_computes_there_and_nothing_is_computed_behind(build):
    data, feed = build(), feed_for(build(), 0)
    truth = onnx.load_from_string(data)
    for name in names_of(data):
        cut = onnx.load_from_string(prefix(data, name))
        assert [output.name for output in cut.graph.output] == [name]
        assert (cut.ir_version, cut.opset_import) == (truth.ir_version, truth.opset_import)
        read = {x for node in cut.graph.node for x in node.input}
        assert all(name in node.output or not read.isdisjoint(node.output) for node in cut.graph.node)
        assert {tensor.name for tensor in cut.graph.initializer} <= read
        (found,) = onnxruntime.InferenceSession(cut.SerializeToString()).run(None, feed)
        (expected,) = reference(data, [name], feed)[len(truth.graph.output) :]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert len(onnx.load_from_string(prefix(data, names_of(data)[0])).graph.node) < len(truth.graph.node)


def branching() -> bytes:
    """Bodies of If that read ``relu1`` of the outer graph, or hand ``scaled`` through as it is."""
    g = models._Graph(0)
    g.gemm("input", "fc1", 4, 4)
    g.node("Relu", ["fc1"], "relu1")
    g.node("Mul", ["input", g.constant("two", 2.0)], "scaled")
    g.node("ReduceSum", ["input"], "sum", keepdims=0)
    g.node("Greater", ["sum", g.constant("zero", 0.0)], "positive")
    inner = helper.make_node("Neg", ["relu1"], ["then_out"])
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in ("then_out", "scaled")]
    bodies = {
        "then_branch": helper.make_graph([inner], "then", [], outputs[:1]),
        "else_branch": helper.make_graph([], "else", [], outputs[1:]),
    }
    g.node("If", ["positive"], "chosen", **bodies)
    g.node("Tanh", ["chosen"], "tanh")
    g.gemm("tanh", "output", 4, 2)
    return g.model([("input", [1, 4])], [("output", [1, 2])])


def test_prefix_keeps_what_only_the_bodies_of_its_operators_read():
    data = branching()
    kept = [node.op for node in read_graph(prefix(data, "tanh")).nodes]
    assert kept == ["Gemm", "Relu", "Mul", "ReduceSum", "Greater", "If", "Tanh"]
    assert [node.op for node in read_graph(prefix(data, "relu1")).nodes] == ["Gemm", "Relu"]


def test_prefix_of_a_tapped_model_and_of_no_tensor():
    data = add_outputs(models.cnn(), ["relu1", "clip2"])
    assert read_graph(prefix(data, "clip2")).outputs == ("clip2",)
    for name in ("input", "nothing"):
        with pytest.raises(ModelError, match=f"{name}: no operator of the model makes it"):
            prefix(data, name)


def test_specs_of_a_map_are_used_and_checked():
    data, feed = models.cnn(), feed_for(models.cnn(), 0)
    specs = (input_spec("input", (3, 16, 16)), tap_spec("clip2", (12, 8, 8), (2, 1, 1)))
    assert TappedSession(data, ["clip2"], [feed], "input", specs, {}).specs == specs
    wrong = (specs[0], tap_spec("clip2", (12, 4, 16)))
    with pytest.raises(
        MapError, match=r"tap clip2: is \(12, 4, 16\) in the map, the model has clip2 \(12, 8, 8\)"
    ):
        TappedSession(data, ["clip2"], [feed], "input", wrong, {})


def test_tap_of_an_unreadable_shape_is_refused():
    g = models._Graph(0)
    g.node("Relu", ["input"], "relu")
    g.node("Reshape", ["relu", _shape(g, [1, 2, 2])], "tokens_in")
    g.node("Relu", ["tokens_in"], "tokens")
    g.node("Flatten", ["tokens"], "output")
    data = g.model([("input", [1, 4])], [("output", [1, 4])])
    with pytest.raises(ModelError, match=r"tokens: is float32\(1, 2, 2\)"):
        TappedSession(data, ["tokens"], [feed_for(data, 0)], "input", None, {})


def _shape(g, shape):
    g._initializers.append(numpy_helper.from_array(np.array(shape, np.int64), "shape"))
    return "shape"


def test_session_options_reach_the_runtime():
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = open_session(models.cnn(), ["relu1"], {"sess_options": options})
    assert session.get_session_options().intra_op_num_threads == 1


def test_telemetry_is_off_before_the_runtime_is_loaded():
    code = (
        "import os, edge_monitor.taps.onnx, sys; "
        "sys.exit(os.environ['ORT_DISABLE_TELEMETRY'] != '1' or 'onnx' in sys.modules)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
