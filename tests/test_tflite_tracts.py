"""Tracts of TensorFlow Lite models: transcripts against the model, tracts against loops and the ONNX form."""

import models as onnx_models
import msgspec
import numpy as np
import onnx
import pytest
import tflite_models as models
from test_tracts import conv, naive_tracts, sigma
from tflite_models import Net, Number
from tflite_runs import CIFAR10, DATA, RESNET8, needs_data

from edge_monitor.config import FrameSettings
from edge_monitor.errors import ModelError
from edge_monitor.offline import tflite_traceable
from edge_monitor.offline.backend import backend_of
from edge_monitor.offline.model_graph import open_model, submodel
from edge_monitor.offline.observe import observe
from edge_monitor.offline.tflite_model import PartRunner, read_values
from edge_monitor.offline.tract_baseline import trace_tracts
from edge_monitor.offline.tracts import TractTracer
from edge_monitor.taps.reducer import input_spec, tap_spec
from edge_monitor.taps.tflite_edit import with_outputs
from edge_monitor.taps.tflite_file import read_model
from edge_monitor.taps.tflite_taps import find_candidates, list_taps
from edge_monitor.taps.tflite_values import find_observed_input

pytest.importorskip("ai_edge_litert", reason="models are traced by its schema module")

SHAPE = (4, 7, 6)
SAME, VALID = Number("b", 0), Number("b", 1)


def taps_of(data: bytes) -> tuple:
    entry = find_observed_input(read_model(data), "model")
    specs = (tap_spec(tap.name, tap.shape) for tap in list_taps(data))
    return (input_spec(entry.name, entry.shape), *specs)


def window(op: str, padding: Number, kernel: int, *, stride: int = 2) -> dict:
    """Options of a pooling."""
    side, step = Number("i", kernel), Number("i", stride)
    return {0: padding, 1: step, 2: step, 3: side, 4: side}


# One small net per operator: from the picture to "u", behind which an activation makes the tap "out".


def depthwise(net: Net, x: int) -> int:
    weights = net.rng.normal(size=(1, 3, 3, 8)).astype(np.float32)
    w, b = net.tensor("w", weights.shape, values=weights), net.tensor("b", [8], values=weights[0, 0, 0])
    u = net.value("u", (1, 4, 3, 8))
    options = {0: SAME, 1: Number("i", 2), 2: Number("i", 2), 3: Number("i", 2)}
    net.operator("DEPTHWISE_CONV_2D", [x, w, b], [u], options)
    return u


def dilated(net: Net, x: int) -> int:
    weights = net.rng.normal(size=(5, 3, 2, 4)).astype(np.float32)
    w, b = net.tensor("w", weights.shape, values=weights), net.tensor("b", [5], values=weights[:, 0, 0, 0])
    u = net.value("u", (1, 3, 4, 5))
    options = {0: VALID, 1: Number("i", 1), 2: Number("i", 1), 4: Number("i", 2), 5: Number("i", 2)}
    net.operator("CONV_2D", [x, w, b], [u], options)
    return u


def grouped(net: Net, x: int) -> int:
    weights = net.rng.normal(size=(6, 3, 3, 2)).astype(np.float32)
    w, b = net.tensor("w", weights.shape, values=weights), net.tensor("b", [6], values=weights[:, 0, 0, 0])
    u = net.value("u", (1, 4, 6, 6))
    net.operator("CONV_2D", [x, w, b], [u], {0: SAME, 1: Number("i", 1), 2: Number("i", 2)})
    return u


def average(net: Net, x: int) -> int:
    u = net.value("u", (1, 4, 3, 4))
    net.operator("AVERAGE_POOL_2D", [x], [u], window("AVERAGE_POOL_2D", SAME, 3))
    return u


def largest(net: Net, x: int) -> int:
    u = net.value("u", (1, 3, 2, 4))
    net.operator("MAX_POOL_2D", [x], [u], window("MAX_POOL_2D", VALID, 3))
    return u


def padded(net: Net, x: int) -> int:
    widths = np.array([[0, 0], [1, 0], [0, 2], [0, 1]], np.int32)
    u = net.value("u", (1, 8, 8, 5))
    net.operator("PAD", [x, net.tensor("widths", (4, 2), "int32", widths)], [u], {})
    return u


def joined(net: Net, x: int) -> int:
    left, right = net.conv(x, "left", 3, fused="RELU6"), net.conv(x, "right", 2, fused="RELU_N1_TO_1")
    u = net.value("u", (1, 7, 6, 5))
    net.operator("CONCATENATION", [left, right], [u], {0: Number("i", -1)})
    return u


def flattened(net: Net, x: int) -> int:
    """Units count the elements in the model's own order."""
    flat, shape = net.value("flat", (1, 168)), net.tensor("shape", [2], "int32", np.array([1, 168], np.int32))
    net.operator("RESHAPE", [x, shape], [flat])
    return net.dense(flat, "u", 9)


def dense_of_a_picture(net: Net, x: int) -> int:
    return net._layer("FULLY_CONNECTED", x, "u", (5, 168), (1, 5), {})


def mean_of_rows(net: Net, x: int) -> int:
    axes, u = net.tensor("axes", [1], "int32", np.array([1], np.int32)), net.value("u", (1, 1, 6, 4))
    net.operator("MEAN", [x, axes], [u], {0: Number("B", 1)})
    return u


def pooled_everywhere(net: Net, x: int) -> int:
    return net.dense(net.mean(x, "mean"), "u", 6)


def constants(net: Net, x: int) -> int:
    rng = net.rng
    for place, (op, shape) in enumerate(
        [("MUL", (4,)), ("SUB", (1, 1, 1, 4)), ("DIV", ()), ("ADD", (1, 7, 6, 4))]
    ):
        values = rng.uniform(0.5, 2, shape).astype(np.float32)
        y = net.value(f"step{place}", (1, 7, 6, 4))
        net.operator(op, [x, net.tensor(f"by{place}", shape, values=values)], [y], {})
        x = y
    return x


def activations(net: Net, x: int) -> int:
    for op in ("ELU", "HARD_SWISH", "RELU_N1_TO_1", "LEAKY_RELU", "RELU6", "TANH"):
        y = net.value(op, (1, 7, 6, 4))
        net.operator(op, [x], [y], {0: Number("f", 0.3)} if op == "LEAKY_RELU" else None)
        x = net.conv(y, f"behind {op}", 4)
    alpha = net.tensor("alpha", (1, 1, 4), values=np.array([[[0.1, -0.2, 0.3, 0.5]]], np.float32))
    u = net.value("u", (1, 7, 6, 4))
    net.operator("PRELU", [x, alpha], [u])
    return u


CASES = [
    *(depthwise, dilated, grouped, average, largest, padded, joined, flattened),
    *(dense_of_a_picture, mean_of_rows, pooled_everywhere, constants, activations),
]


def finished(build, shape=SHAPE) -> bytes:
    net = Net(seed=4)
    image = net.value("image", (1, *shape[1:], shape[0]))
    out = net.unary("RELU", build(net, image), "out")
    sizes = net.tensor("sizes", [2], "int32", np.array([1, -1], np.int32))
    answer = net.value("answer", (1, int(np.prod(net.shapes[out]))))
    net.operator("RESHAPE", [out, sizes], [answer])
    return net.model([image], [answer])


def both(data: bytes, frame: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """All taps, as the transcript gives them and as the model does."""
    taps = taps_of(data)
    found = backend_of(data).traceable(data, taps, frame)
    assert (found.n_taps, found.problem) == (len(taps), "")
    names = [tap.name for tap in taps[1:]]
    part = onnx.load_from_string(found.model)
    session = open_model(submodel(part, part.graph.node, part.graph.input, names), as_written=True)
    tensors = [candidate.tensor for candidate in find_candidates(read_model(data)).values()]
    places = [tensor.index for tensor in tensors]
    entry = find_observed_input(read_model(data), "model")
    stored = PartRunner(with_outputs(data, places)).run({entry.index: entry.encode(frame)}, places)
    truth = [read_values(tensor, values) for tensor, values in zip(tensors, stored, strict=True)]
    return session.run(names, {taps[0].name: frame[None]}), truth


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_every_operator_is_transcribed_as_it_is_computed(case):
    data, frame = finished(case), np.random.default_rng(2).normal(size=SHAPE).astype(np.float32)
    for found, expected in zip(*both(data, frame), strict=True):
        assert found.shape == expected.shape
        assert expected.any()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    tracer = TractTracer(backend_of(data).traceable(data, taps_of(data), frame).model, taps_of(data))
    assert set(tracer.problems) <= {"", "left -> right: no path"}


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_net_with_joins_and_a_gate_is_transcribed(dtype):
    data = models.residual_cnn(dtype=dtype)
    frame = np.random.default_rng(1).normal(size=(3, 8, 6)).astype(np.float32)
    scales = [c.tensor.scales or (1e-6,) for c in find_candidates(read_model(data)).values()]
    for found, expected, (scale,) in zip(*both(data, frame), scales, strict=True):
        assert np.abs(found - expected).max() <= 4.01 * scale


def test_tracts_equal_loops_over_single_weights():
    """What is fused into the convolutions is seen: u is no tensor of the model."""
    net = Net(seed=6)
    image = net.value("image", (1, 7, 6, 4))
    x = net.conv(image, "relu1", 5, fused="RELU")
    y = net.conv(x, "relu2", 3, fused="RELU6")
    data = net.model([image], [net.mean(y, "answer")])
    taps = taps_of(data)
    frame = np.random.default_rng(5).uniform(-1, 1, SHAPE).astype(np.float32)
    weights = {
        tensor.name.split("/")[0]: net.buffers[table[2].bytes[0]][0]
        for tensor, table in zip(read_model(data).tensors, net.tensors, strict=True)
        if tensor.name.endswith("/weights")
    }
    kernels = {
        name: np.frombuffer(values, np.float32).reshape(n_out, 3, 3, n_in).transpose(0, 3, 1, 2)
        for (name, values), (n_out, n_in) in zip(weights.items(), [(5, 4), (3, 5)], strict=True)
    }
    bias = [np.frombuffer(net.buffers[k][0], np.float32) for k in (2, 4)]

    def preactivation(v, w, b):
        total = sum(
            np.einsum(
                "oc,chw->ohw", w[:, :, i, j], np.pad(v, ((0, 0), (1, 1), (1, 1)))[:, i : i + 7, j : j + 6]
            )
            for i in range(3)
            for j in range(3)
        )
        return total + b[:, None, None]

    u1 = preactivation(frame.astype(np.float64), kernels["relu1"], bias[0])
    a1 = np.maximum(u1, 0)
    u2 = preactivation(a1, kernels["relu2"], bias[1])
    found = backend_of(data).traceable(data, taps, frame)
    first, second = TractTracer(found.model, taps).trace(frame)
    one = naive_tracts(*taps[:2], frame, lambda v: conv(v, kernels["relu1"], pads=(1,) * 4) * sigma(u1))
    two = naive_tracts(*taps[1:], a1, lambda v: conv(v, kernels["relu2"], pads=(1,) * 4) * sigma(u2))
    np.testing.assert_allclose(first, one, rtol=1e-5)
    np.testing.assert_allclose(second, two, rtol=1e-5)


@needs_data
def test_resnet8_has_the_tracts_of_its_onnx_form():
    """The same network by another converter; the quantised one has them by a few hundredths."""
    with np.load(CIFAR10) as archive:
        frame = archive["images"][3].transpose(2, 0, 1).astype(np.float32)
    path = DATA / "mlperf_tiny" / "resnet8_float.onnx"
    specs = [
        tap_spec(f"t{index}", tap.shape)
        for index, tap in zip(
            (22, 23, 25, 26, 29, 30, 33), taps_of(RESNET8["resnet8_float"].read_bytes())[1:], strict=True
        )
    ]
    expected = TractTracer(path.read_bytes(), (input_spec("input", (3, 32, 32)), *specs)).trace(frame)
    for kind, tolerance in (("float", 1e-4), ("int8", 0.05)):
        data = RESNET8[f"resnet8_{kind}"].read_bytes()
        found = backend_of(data).traceable(data, taps_of(data), frame)
        tracer = TractTracer(found.model, taps_of(data), as_written=found.as_written)
        for tract, other in zip(tracer.trace(frame), expected, strict=True):
            assert np.abs(tract - other).sum() <= tolerance * np.abs(other).sum()


def watched(data: bytes, tmp_path):
    (tmp_path / "net.tflite").write_bytes(data)
    np.save(tmp_path / "frames.npy", np.random.default_rng(1).normal(size=(30, *SHAPE)).astype(np.float32))
    taps = [tap.name for tap in list_taps(data)]
    return observe(tmp_path / "net.tflite", FrameSettings(frames=str(tmp_path / "frames.npy")), taps)


def with_an_unknown_operator(net: Net, x: int) -> int:
    y = net.value("magnitude", (1, 7, 6, 5))
    net.operator("ABS", [net.conv(x, "relu1", 5, fused="RELU")], [y])
    return net.conv(y, "u", 3)


def test_an_operator_without_a_rule_is_named_and_what_lies_before_it_is_traced(tmp_path):
    seen = watched(finished(with_an_unknown_operator), tmp_path)
    tracts = trace_tracts(seen)
    assert tracts.problems == ("", "relu1 -> out: ABS (magnitude) cannot be traced: there is no rule for it")
    first = seen.taps[0].n_voxels * seen.taps[1].n_voxels
    assert (tracts.strength[:first] > 0).any()
    assert np.isnan(tracts.strength[first:]).all()
    nothing = trace_tracts(watched(finished(lambda net, x: net.unary("ABS", x, "magnitude")), tmp_path))
    assert nothing.problems == ("image -> out: ABS (magnitude) cannot be traced: there is no rule for it",)
    assert np.isnan(nothing.strength).all()


def test_a_transcript_that_answers_otherwise_is_not_used(monkeypatch, tmp_path):
    def off(script, operator, options):
        write(script, operator, options)
        if script.names[operator.outputs[0]] == "out":
            script.nodes[-1].op_type = "Softplus"

    write = tflite_traceable.write_operator
    monkeypatch.setattr(tflite_traceable, "write_operator", off)
    problems = trace_tracts(watched(finished(joined), tmp_path)).problems
    assert problems == ("", "left -> right: no path", "right -> out: out is not what its transcript gives")


def test_models_that_cannot_be_transcribed_are_refused():
    data = models.residual_cnn()
    with pytest.raises(ModelError, match="only models with one can be cut"):
        backend_of(models.branches()).traceable(
            models.branches(), (input_spec("image", (3, 6, 5)),), np.zeros(1)
        )
    with pytest.raises(ModelError, match="relu9: no such tap"):
        backend_of(data).traceable(
            data, (taps_of(data)[0], tap_spec("relu9", (3,))), np.zeros((3, 8, 6), "f4")
        )


def test_an_onnx_model_is_traced_as_it_is():
    data, taps = onnx_models.cnn(), (input_spec("input", (3, 16, 16)), tap_spec("relu1", (8, 16, 16)))
    assert msgspec.to_builtins(backend_of(data).traceable(data, taps, np.zeros(1)))[1:] == (2, "", False)
