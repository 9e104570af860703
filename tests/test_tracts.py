"""Exact tracts against loops over single weights, operator by operator; live ones against planted gains."""

import itertools

import models
import naive
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from edge_monitor.errors import InputError, ModelError
from edge_monitor.offline.live_tracts import estimate_live, fit_live
from edge_monitor.offline.tracts import TractTracer
from edge_monitor.taps.onnx import open_session
from edge_monitor.taps.reducer import input_spec, tap_spec
from edge_monitor.types import TapSpec

SHAPE = (4, 7, 6)


# Loops in float64, one multiplication at a time.


def conv(v, w, *, stride=1, dilation=1, pads=(0, 0, 0, 0), group=1):
    """Drive through a convolution, (C, H, W); pads: top, left, bottom, right."""
    c_out, c_group, kh, kw = w.shape
    height = (v.shape[1] + pads[0] + pads[2] - dilation * (kh - 1) - 1) // stride + 1
    width = (v.shape[2] + pads[1] + pads[3] - dilation * (kw - 1) - 1) // stride + 1
    out = np.zeros((c_out, height, width))
    for o, y, x in np.ndindex(out.shape):
        first = o // (c_out // group) * c_group
        for c, i, j in np.ndindex(c_group, kh, kw):
            row, column = y * stride + i * dilation - pads[0], x * stride + j * dilation - pads[1]
            if 0 <= row < v.shape[1] and 0 <= column < v.shape[2]:
                out[o, y, x] += abs(float(w[o, c, i, j])) * v[first + c, row, column]
    return out


def conv_transpose(v, w, *, stride):
    _, c_out, kh, kw = w.shape
    out = np.zeros((c_out, (v.shape[1] - 1) * stride + kh, (v.shape[2] - 1) * stride + kw))
    for c, y, x in np.ndindex(v.shape):
        for o, i, j in np.ndindex(c_out, kh, kw):
            out[o, y * stride + i, x * stride + j] += abs(float(w[c, o, i, j])) * v[c, y, x]
    return out


def windows(shape, kernel, stride, pad):
    """(output index, input indices in scan order) of a pooling with ceil_mode off."""
    height, width = ((n + 2 * pad - kernel) // stride + 1 for n in shape[1:])
    for c, y, x in np.ndindex(shape[0], height, width):
        rows = [y * stride + i - pad for i in range(kernel)]
        columns = [x * stride + j - pad for j in range(kernel)]
        cells = [
            (c, r, k) for r, k in itertools.product(rows, columns) if 0 <= r < shape[1] and 0 <= k < shape[2]
        ]
        yield (c, y, x), cells


def pool(v, kernel, stride, pad, choose):
    """Drive through a pooling; ``choose`` gives the weight of each cell of a window."""
    sums = {
        out: sum(weight * v[cell] for weight, cell in zip(choose(cells), cells, strict=True))
        for out, cells in windows(v.shape, kernel, stride, pad)
    }
    pooled = np.zeros(np.max(list(sums), axis=0) + 1)
    for index, total in sums.items():
        pooled[index] = total
    return pooled


def average(cells):
    return [1 / len(cells)] * len(cells)


def winner(x):
    """Weights of a MaxPool's window: 1 for the first of the largest."""
    return lambda cells: np.eye(len(cells))[int(np.argmax([x[cell] for cell in cells]))]


def dense(v, w):
    """``w`` is (outputs, inputs)."""
    out = np.zeros(len(w))
    for o, i in np.ndindex(w.shape):
        out[o] += abs(float(w[o, i])) * v[i]
    return out


def sigma(u):
    return 1 / (1 + np.exp(-np.asarray(u, np.float64)))


# One small network per operator: it ends in the pre-activation "u" and returns the loops that carry the drive
# from the input to there; ``t`` holds every weight and every tensor of the forward pass.


def grouped_strided_dilated_conv(g):
    g.conv("input", "u", 4, 6, group=2, strides=[2, 2], dilations=[2, 2], pads=[1, 2, 0, 1])
    return lambda v, t: conv(v, t["w_u"], stride=2, dilation=2, pads=(1, 2, 0, 1), group=2)


def auto_padded_conv(g):
    g.node("Conv", ["input", g.weight("w", (3, 4, 3, 3))], "u", auto_pad="SAME_UPPER", strides=[2, 2])
    return lambda v, t: conv(v, t["w"], stride=2, pads=(1, 0, 1, 1))


def transposed_conv(g):
    g.node("ConvTranspose", ["input", g.weight("w", (4, 3, 2, 2))], "u", strides=[2, 2])
    return lambda v, t: conv_transpose(v, t["w"], stride=2)


def depthwise_normalised(g):
    g.conv("input", "conv", 4, 4, group=4)
    g.batch_norm("conv", "bn", 4, epsilon=0.25)
    g.node("Clip", ["bn", g.constant("zero", 0.0), g.constant("six", 6.0)], "clip")
    g.conv("clip", "u", 4, 5, kernel=1)

    def drive(v, t):
        scale = np.abs(t["scale_bn"]) / np.sqrt(t["variance_bn"] + 0.25)
        v = conv(v, t["w_conv"], pads=(1, 1, 1, 1), group=4) * scale[:, None, None]
        return conv(v * sigma(t["bn"]), t["w_u"])

    return drive


def residual_difference(g):
    g.conv("input", "conv", 4, 4)
    g.node("Relu", ["conv"], "relu")
    g.node("Sub", ["input", "relu"], "u")
    return lambda v, t: v + conv(v, t["w_conv"], pads=(1, 1, 1, 1)) * sigma(t["conv"])


def residual_of_pooled(g):
    """The pooled branch is spread over all places, as broadcasting spreads its activations."""
    g.node("GlobalAveragePool", ["input"], "gap")
    g.node("Add", ["input", "gap"], "u")
    return lambda v, t: v + v.mean(axis=(1, 2), keepdims=True)


def constants(g):
    g.node("Sub", [g.constant("two", 2.0), "input"], "sub")
    g.node("Mul", ["sub", g.weight("factor", (1, 4, 1, 1))], "mul")
    g.node("Div", ["mul", g.constant("divisor", -3.0)], "div")
    g.node("Add", ["div", g.weight("bias", (4, 1, 1))], "u")
    return lambda v, t: v * np.abs(t["factor"])[0] / 3


def silu(g):
    g.conv("input", "conv", 4, 3)
    g.node("Sigmoid", ["conv"], "gate")
    g.node("Mul", ["gate", "conv"], "silu")
    g.conv("silu", "u", 3, 4, kernel=1)
    return lambda v, t: conv(conv(v, t["w_conv"], pads=(1,) * 4) * sigma(t["conv"]), t["w_u"])


def average_pool(g):
    g.node("AveragePool", ["input"], "u", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    return lambda v, t: pool(v, 3, 2, 1, average)


def max_pool(g):
    g.conv("input", "conv", 4, 4)
    g.node("MaxPool", ["conv"], "u", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4, storage_order=1)
    return lambda v, t: pool(conv(v, t["w_conv"], pads=(1,) * 4), 3, 2, 1, winner(t["conv"]))


def concat(g):
    g.conv("input", "left", 4, 2)
    g.node("Relu", ["left"], "relu")
    g.node("Concat", ["relu", "input"], "both", axis=1)
    g.conv("both", "u", 6, 3, kernel=1)

    def drive(v, t):
        left = conv(v, t["w_left"], pads=(1,) * 4) * sigma(t["left"])
        return conv(np.concatenate([left, v]), t["w_u"])

    return drive


def dense_head(g):
    g.node("GlobalAveragePool", ["input"], "gap")
    g.node("Flatten", ["gap"], "flat")
    g.node("Gemm", ["flat", g.weight("w", (4, 9)), g.weight("b", (9,))], "gemm", alpha=-0.5)
    g.node("Tanh", ["gemm"], "tanh")
    g.node("MatMul", ["tanh", g.weight("w2", (9, 5))], "u")
    return lambda v, t: dense(dense(v.mean(axis=(1, 2)), 0.5 * t["w"].T) * sigma(t["gemm"]), t["w2"].T)


def flattened_head(g):
    g.node("Flatten", ["input"], "flat")
    g.gemm("flat", "u", 168, 6)
    return lambda v, t: dense(v.ravel(), t["w_u"])


def reductions(g):
    g.node("ReduceMean", ["input"], "mean", axes=[-1], keepdims=0)
    g.node("ReduceSum", ["mean", g.shape("axes", [2])], "sum", keepdims=0)
    g.gemm("sum", "u", 4, 5)
    return lambda v, t: dense(v.mean(axis=2).sum(axis=1), t["w_u"])


def left_matmul(g):
    g.node("MatMul", [g.weight("w", (5, 7)), "input"], "u")
    return lambda v, t: np.stack([np.stack([dense(column, t["w"]) for column in c.T], 1) for c in v])


def rearranged(g):
    g.node("Transpose", ["input"], "last", perm=[0, 2, 3, 1])
    g.node("Unsqueeze", ["last", g.shape("one", [1])], "five")
    g.node("Squeeze", ["five", g.shape("one_again", [1])], "four")
    g.node("Slice", ["four", *(g.shape(f"s{k}", [x]) for k, x in enumerate((-1, -(2**63), 1, -2)))], "some")
    g.node("Pad", ["some", g.shape("pads", [0, 1, 0, 0, 0, 0, 2, 0]), g.constant("one_more", 1.0)], "wide")
    g.node("Reshape", ["wide", g.shape("target", [1, 5, -1, 4])], "shaped")
    g.node("Cast", ["shaped"], "cast", to=1)
    g.node("Identity", ["cast"], "same")
    g.node("Dropout", ["same"], "u")

    def drive(v, t):
        some = v.transpose(1, 2, 0)[::-2]
        return np.pad(some, ((1, 0), (0, 2), (0, 0))).reshape(5, 8, 4)

    return drive


def quantised(g):
    g.node("QuantizeLinear", ["input", g.constant("scale", 0.01)], "q")
    g.node("DequantizeLinear", ["q", "scale"], "dq")
    g.node(
        "QuantizeLinear", [g.weight("w", (3, 4, 3, 3)), g.constant("w_scale", 0.02), g.int8("zero")], "w_q"
    )
    g.node("DequantizeLinear", ["w_q", "w_scale", "zero"], "w_dq")
    g.node("Conv", ["dq", "w_dq"], "u")
    return lambda v, t: conv(v, t["w_dq"])


CASES = [
    *(grouped_strided_dilated_conv, auto_padded_conv, transposed_conv, depthwise_normalised),
    *(residual_difference, residual_of_pooled, constants, silu, average_pool, max_pool, concat),
    *(dense_head, flattened_head, reductions, left_matmul, rearranged, quantised),
]


def forward(data, frame):
    """Every tensor of the model for one frame, without batch axis, and its weights."""
    model = onnx.load_from_string(data)
    names = [name for node in model.graph.node for name in node.output]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    values = open_session(model.SerializeToString(), [], {}).run(names, {"input": frame[None]})
    found = {name: np.asarray(value, np.float64) for name, value in zip(names, values, strict=True)}
    data_names = {"input"}
    for node in model.graph.node:
        if not data_names.isdisjoint(node.input):
            data_names.update(node.output)
    found = {name: value[0] if name in data_names else value for name, value in found.items()}
    return found | {w.name: np.float64(onnx.numpy_helper.to_array(w)) for w in model.graph.initializer}


def naive_tracts(source, target, values, drive):
    """C by definition; ``drive`` carries one voxel's v from the source to the target."""
    rows = []
    for voxel in naive.voxel_slices(source.shape, source.grid):
        v = np.zeros(source.shape)
        v[voxel] = np.maximum(values.reshape(source.shape)[voxel], 0.0)
        arrived = drive(v).reshape(target.shape)
        rows.append([arrived[h].sum() for h in naive.voxel_slices(target.shape, target.grid)])
    return np.array(rows)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_tracts_equal_loops_over_single_weights(case):
    g = models._Graph(3)
    drive = case(g)
    g.node("Relu", ["u"], "out")
    g.node("Flatten", ["out"], "answer")
    data = g.model([("input", [1, *SHAPE])], [("answer", None)])
    frame = np.random.default_rng(5).uniform(-1, 1, SHAPE).astype(np.float32)
    t = forward(data, frame)
    taps = (input_spec("input", SHAPE), tap_spec("out", t["out"].shape))
    tracer = TractTracer(data, taps)
    assert tracer.problems == ("",)
    (found,) = tracer.trace(frame)
    expected = naive_tracts(*taps, frame, lambda v: drive(v, t) * sigma(t["u"]))
    assert expected.any()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9 * expected.max())


@pytest.mark.parametrize(
    ("op", "attributes", "parameters"),
    [
        ("LeakyRelu", {"alpha": 0.3}, []),
        ("PRelu", {}, [0.2]),
        ("HardSwish", {}, []),
        ("Sigmoid", {}, []),
        ("Elu", {}, []),
        ("Gelu", {}, []),
        ("Mish", {}, []),
    ],
)
def test_any_activation_multiplies_the_drive_by_the_logistic_of_what_it_sees(op, attributes, parameters):
    g = models._Graph(1)
    g.gemm("input", "u", 6, 5)
    g.node(op, ["u", *(g.constant(f"p{i}", p) for i, p in enumerate(parameters))], "out", **attributes)
    g.gemm("out", "answer", 5, 2)
    data = g.model([("input", ["N", 6])], [("answer", ["N", 2])], opset=20)
    frame = np.random.default_rng(0).uniform(-1, 1, 6).astype(np.float32)
    t = forward(data, frame)
    taps = (input_spec("input", (6,)), tap_spec("out", (5,)))
    expected = naive_tracts(*taps, frame, lambda v: dense(v.ravel(), t["w_u"]) * sigma(t["u"]))
    np.testing.assert_allclose(TractTracer(data, taps).trace(frame)[0], expected, rtol=1e-5)


def test_a_value_padded_by_an_old_operator_set_brings_no_drive():
    g = models._Graph(2)
    g.node("Pad", ["input"], "wide", pads=[0, 0, 1, 1, 0, 0, 0, 2], value=9.0)
    g.conv("wide", "u", 4, 3, kernel=1)
    g.node("Relu", ["u"], "out")
    g.node("Flatten", ["out"], "answer")
    data = g.model([("input", [1, *SHAPE])], [("answer", None)], opset=10)
    frame = np.random.default_rng(5).uniform(-1, 1, SHAPE).astype(np.float32)
    t = forward(data, frame)
    taps = (input_spec("input", SHAPE), tap_spec("out", t["out"].shape))
    padding = ((0, 0), (1, 0), (1, 2))
    expected = naive_tracts(*taps, frame, lambda v: conv(np.pad(v, padding), t["w_u"]) * sigma(t["u"]))
    np.testing.assert_allclose(TractTracer(data, taps).trace(frame)[0], expected, rtol=1e-5)


def test_parts_off_the_path_bring_no_drive():
    """Between the taps, one concatenated part and one summand come past the first tap."""
    g = models._Graph(2)
    g.conv("input", "u1", 4, 3)
    g.node("Relu", ["u1"], "tap1")
    g.conv("input", "side", 4, 3)
    g.node("Concat", ["side", "tap1"], "both", axis=1)
    g.conv("both", "mixed", 6, 3, kernel=1)
    g.node("Add", ["side", "mixed"], "u2")
    g.node("Relu", ["u2"], "tap2")
    g.node("Flatten", ["tap2"], "answer")
    data = g.model([("input", [1, *SHAPE])], [("answer", None)])
    frame = np.random.default_rng(5).uniform(-1, 1, SHAPE).astype(np.float32)
    t = forward(data, frame)
    taps = (input_spec("input", SHAPE), tap_spec("tap1", (3, 7, 6)), tap_spec("tap2", (3, 7, 6)))
    tracer = TractTracer(data, taps)
    assert tracer.problems == ("", "")
    expected = naive_tracts(*taps[1:], t["tap1"], lambda v: conv(v, t["w_mixed"][:, 3:]) * sigma(t["u2"]))
    np.testing.assert_allclose(tracer.trace(frame)[1], expected, rtol=1e-5)


def test_an_input_read_at_a_stride_keeps_all_its_elements():
    shape = (1, 70, 5)
    g = models._Graph(4)
    g.node("Flatten", ["input"], "flat")
    g.gemm("flat", "u", 350, 3)
    g.node("Relu", ["u"], "out")
    g.gemm("out", "answer", 3, 2)
    data = g.model([("input", [1, *shape])], [("answer", [1, 2])])
    frame = np.random.default_rng(5).random(shape, np.float32)
    taps = (input_spec("input", shape), tap_spec("out", (3,), (1, 1, 1)))
    assert taps[0] == TapSpec("input", (1, 35, 5), (1, 4, 4), (2, 1), (3, 3))
    t = forward(data, frame)
    expected = np.zeros((16, 1))
    for (_, y, x), value in np.ndenumerate(frame):
        row = np.searchsorted([8, 17, 26], y // 2, side="right")  # edges floor(35 k / 4)
        column = np.searchsorted([1, 2, 3], x, side="right")  # edges floor(5 k / 4)
        arrived = np.abs(t["w_u"][:, y * 5 + x]) * value * sigma(t["u"])
        expected[row * 4 + column] += arrived.sum()
    np.testing.assert_allclose(TractTracer(data, taps).trace(frame)[0], expected, rtol=1e-5)


def refused(build, shape=(4, 6, 6)):
    """Problem of a network from its input to its one tap "out"."""
    g = models._Graph(0)
    build(g)
    g.node("Relu", ["u"], "out")
    g.node("Flatten", ["out"], "answer")
    data = g.model([("input", [1, *shape])], [("answer", None)])
    taps = (
        input_spec("input", shape),
        tap_spec("out", forward(data, np.zeros(shape, np.float32))["out"].shape),
    )
    tracer = TractTracer(data, taps)
    assert tracer.trace(np.zeros(shape, np.float32)) == [None]
    return tracer.problems[0]


def test_what_cannot_be_traced_is_named():
    assert refused(lambda g: g.node("GlobalMaxPool", ["input"], "u")) == (
        "input -> out: GlobalMaxPool (node node_u) is not supported"
    )
    product_of_activations = refused(lambda g: g.node("MatMul", ["input", "input"], "u"))
    assert product_of_activations.startswith("input -> out: MatMul (node node_u) is not supported")
    square = refused(lambda g: g.node("Mul", ["input", "input"], "u"))
    assert square.startswith("input -> out: Mul (node node_u) is not supported")
    inverse = refused(lambda g: g.node("Div", [g.constant("one", 1.0), "input"], "u"))
    assert "Div (node node_u) is not supported" in inverse

    def batch_moved(g):
        g.node("Transpose", ["input"], "u", perm=[1, 0, 2, 3])

    assert "moves the batch axis" in refused(batch_moved, (1, 6, 6))


def test_an_untraceable_transition_does_not_stop_the_others():
    data = models.gated()
    frame = np.random.default_rng(0).random((3, 8, 8), np.float32)
    specs = (input_spec("input", (3, 8, 8)), tap_spec("silu", (8, 8, 8)), tap_spec("relu", (4, 8, 8)))
    tracer = TractTracer(data, specs)
    assert tracer.problems[0] == ""
    assert tracer.problems[1].startswith("silu -> relu: Mul (node node_scaled) is not supported")
    first, second = tracer.trace(frame)
    assert second is None
    alone = TractTracer(data, specs[:2]).trace(frame)[0]
    np.testing.assert_array_equal(first, alone)
    backwards = TractTracer(data, (specs[0], specs[2], specs[1]))
    assert backwards.problems[1] == "relu -> silu: no path"


def test_attention_is_named_and_what_lies_before_it_is_traced():
    g = models._Graph(0)
    g.gemm("input", "u1", 6, 4)
    g.node("Relu", ["u1"], "stem")
    norm = [g.weight("scale", (4,)), g.weight("bias", (4,))]
    g.node("LayerNormalization", ["stem", *norm], "norm", axis=-1)
    g.gemm("norm", "u2", 4, 5)
    g.node("Relu", ["u2"], "head")
    g.gemm("head", "answer", 5, 2)
    data = g.model([("input", [1, 6])], [("answer", [1, 2])])
    taps = (input_spec("input", (6,)), tap_spec("stem", (4,)), tap_spec("head", (5,)))
    assert TractTracer(data, taps).problems == (
        "",
        "stem -> head: LayerNormalization (node node_norm) is not supported",
    )


def test_models_and_frames_that_do_not_fit_are_refused():
    data = models.cnn()
    specs = (input_spec("input", (3, 16, 16)), tap_spec("relu1", (8, 16, 16)))
    with pytest.raises(ModelError, match="relu7: no such tap"):
        TractTracer(data, (specs[0], tap_spec("relu7", (8, 16, 16))))
    with pytest.raises(ModelError, match=r"relu1: has shape \(8, 16, 16\)"):
        TractTracer(data, (specs[0], tap_spec("relu1", (8, 8, 8))))
    with pytest.raises(ModelError, match="only input, has state, image"):
        TractTracer(models.two_inputs(), (input_spec("image", (3, 12, 12)), tap_spec("relu1", (8, 12, 12))))
    with pytest.raises(InputError, match=r"\(3, 8, 8\)"):
        TractTracer(data, specs).trace(np.zeros((3, 8, 8), np.float32))


# The live estimate.


def planted(n, n_g=5, n_h=3, seed=0):
    rng = np.random.default_rng(seed)
    source, target = rng.gamma(4.0, 3.0, (n, n_g)), rng.normal(0.4, 0.25, (n, n_h))
    kappa, gate = rng.uniform(0.5, 4.0, (n_g, n_h)), np.array([[-1.0, 5.0], [0.5, -3.0], [-2.0, 8.0]])
    return (
        source,
        target,
        kappa,
        gate,
        kappa * source[:, :, None] * expit(gate[:, 0] + gate[:, 1] * target)[:, None],
    )


def test_planted_gains_and_gates_are_found_again():
    source, target, kappa, gate, exact = planted(120)
    live = fit_live(exact, source, target)
    np.testing.assert_allclose(live.gate, gate, rtol=1e-4)
    np.testing.assert_allclose(live.gain, kappa, rtol=1e-4)
    np.testing.assert_allclose(live.strength, exact.mean(axis=0))
    np.testing.assert_allclose(live.fidelity, 1.0, atol=1e-9)
    np.testing.assert_allclose(estimate_live(live, source, target), exact, rtol=1e-3)


def test_fidelity_is_judged_on_frames_that_were_not_fitted():
    """Other drives in the second half change fidelity, and neither gain nor gate."""
    source, target, _, _, exact = planted(120)
    broken = exact.copy()
    broken[60:, 0] = np.random.default_rng(1).random((60, exact.shape[2]))
    live, again = fit_live(exact, source, target), fit_live(broken, source, target)
    np.testing.assert_array_equal(again.gain, live.gain)
    np.testing.assert_array_equal(again.gate, live.gate)
    assert np.abs(again.fidelity[0]).max() < 0.5
    np.testing.assert_allclose(again.fidelity[1:], 1.0, atol=1e-9)


def test_dead_and_constant_tracts_have_no_fidelity():
    source, target, _, _, exact = planted(80)
    exact[:, 0, 0] = 0.0
    exact[:, 1, 1] = 7.0
    source[:, 2] = 0.0
    live = fit_live(exact, source, target)
    assert live.gain[0, 0] == live.strength[0, 0] == 0.0
    assert np.isnan(live.fidelity[[0, 1], [0, 1]]).all()
    assert (live.fidelity[2] == 0.0).all()  # a source that never varies explains nothing
    assert (live.gain[2] == 0.0).all()
    np.testing.assert_allclose(live.fidelity[3:, 2], 1.0, atol=1e-9)


def test_a_target_that_never_varies_leaves_the_source_to_explain_the_drive():
    source, target, _, _, exact = planted(80)
    exact = 2.0 * np.repeat(source[:, :, None], 3, axis=2)
    live = fit_live(exact, source, np.full_like(target, 0.4))
    np.testing.assert_allclose(live.fidelity, 1.0)
    np.testing.assert_allclose(estimate_live(live, source, np.full_like(target, 0.4)), exact)


def test_frames_that_are_not_finite_are_left_out():
    source, target, _, _, exact = planted(60)
    clean = fit_live(exact[3:], source[3:], target[3:])
    exact[0, 1, 1], source[1, 2], target[2, 0] = np.nan, np.inf, np.nan
    live = fit_live(exact, source, target)
    np.testing.assert_array_equal(live.gain, clean.gain)
    np.testing.assert_array_equal(live.fidelity, clean.fidelity)
    with pytest.raises(InputError, match="tracts: finite in none of 60 frames"):
        fit_live(np.full_like(exact, np.nan), source, target)
    with pytest.raises(InputError, match="do not fit"):
        fit_live(exact, source[:, :2], target)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 6), scale=st.sampled_from([0.0, 1e-12, 1.0, 1e9]), seed=st.integers(0, 99))
def test_a_few_frames_of_any_size_give_finite_gains(n, scale, seed):
    source, target, _, _, exact = planted(n, seed=seed)
    live = fit_live(exact * scale, source * scale, target * scale)
    assert np.isfinite(live.gain).all()
    assert np.isfinite(live.gate).all()
    assert np.isfinite(live.strength).all()
    known = live.fidelity[np.isfinite(live.fidelity)]
    assert (np.abs(known) <= 1 + 1e-9).all()
