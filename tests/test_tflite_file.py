"""TensorFlow Lite files: read as the format's own library reads them, edited without changing an answer."""

from __future__ import annotations

import os
import struct
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tflite_models as models
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from edge_monitor.errors import ModelError
from edge_monitor.taps import flatbuffer, tflite_edit
from edge_monitor.taps import tflite_schema as schema
from edge_monitor.taps.flatbuffer import FlatBuffer
from edge_monitor.taps.tflite_edit import prefix, suffix, with_outputs
from edge_monitor.taps.tflite_file import Graph, read_model
from edge_monitor.taps.tflite_taps import choose, find_candidates, suggest

DATA = Path(os.environ.get("EDGE_MONITOR_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
RESNET8 = DATA / "mlperf_tiny"
needs_data = pytest.mark.skipif(
    not (RESNET8 / "resnet8_int8.tflite").is_file(), reason=f"no ResNet8 in EDGE_MONITOR_DATA ({DATA})"
)
PACKAGE = next((name for name in ("ai_edge_litert", "tflite_runtime") if find_spec(name)), None)
needs_runtime = pytest.mark.skipif(PACKAGE is None, reason="neither ai-edge-litert nor tflite-runtime")

HANDMADE = {
    "float": models.residual_cnn,
    "int8": lambda: models.residual_cnn(dtype="int8"),
    "signature": lambda: models.residual_cnn(signature="serving_default"),
    "branches": models.branches,
    "two_heads": models.two_heads,
}
REAL = ["resnet8_float", "resnet8_int8"]
ALL = [*HANDMADE, *(pytest.param(name, marks=needs_data) for name in REAL)]
BOTH_KERNELS = pytest.mark.parametrize("xnnpack", [True, False], ids=["xnnpack", "builtin"])


@cache
def model_of(name: str) -> bytes:
    return HANDMADE[name]() if name in HANDMADE else (RESNET8 / f"{name}.tflite").read_bytes()


def taps_of(data: bytes) -> list[int]:
    return [tap.tensor.index for tap in find_candidates(read_model(data)).values()]


def generated_schema():
    return pytest.importorskip("ai_edge_litert.schema_py_generated", reason="needs ai-edge-litert")


# Reading


def test_names_are_those_of_the_schema():
    generated = generated_schema()

    def names(enumeration):
        return {v: k for k, v in vars(enumeration).items() if isinstance(v, int)}

    assert dict(enumerate(schema.OPERATORS)) == names(generated.BuiltinOperator)
    assert dict(enumerate(map(str.upper, schema.DTYPES))) == names(generated.TensorType)
    assert dict(enumerate(schema.FUSED)) == names(generated.ActivationFunctionType)
    assert schema.OPERATORS[schema.CUSTOM] == "CUSTOM"


OPTIONS = {
    "ADD": "AddOptions",
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "BIDIRECTIONAL_SEQUENCE_LSTM": "BidirectionalSequenceLSTMOptions",
    "BIDIRECTIONAL_SEQUENCE_RNN": "BidirectionalSequenceRNNOptions",
    "CONCATENATION": "ConcatenationOptions",
    "CONV_2D": "Conv2DOptions",
    "CONV_3D": "Conv3DOptions",
    "CONV_3D_TRANSPOSE": "Conv3DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "DIV": "DivOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "L2_NORMALIZATION": "L2NormOptions",
    "L2_POOL_2D": "Pool2DOptions",
    "LSTM": "LSTMOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "MUL": "MulOptions",
    "RNN": "RNNOptions",
    "SUB": "SubOptions",
    "SVDF": "SVDFOptions",
    "TRANSPOSE_CONV": "TransposeConvOptions",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "UnidirectionalSequenceLSTMOptions",
    "UNIDIRECTIONAL_SEQUENCE_RNN": "SequenceRNNOptions",
}


def test_fused_activations_are_where_the_schema_has_them():
    generated = generated_schema()
    import flatbuffers  # noqa: PLC0415 - a dependency of ai-edge-litert

    having = {n for n in dir(generated) if hasattr(getattr(generated, n), "FusedActivationFunction")}
    assert having == set(OPTIONS.values())
    assert schema.FUSED_FIELDS.keys() == OPTIONS.keys()
    for op, options in OPTIONS.items():
        table = getattr(generated, f"{options}T")()
        table.fusedActivationFunction = 3
        builder = flatbuffers.Builder()
        builder.Finish(table.Pack(builder), file_identifier=b"TEST")
        read = FlatBuffer(bytes(builder.Output()), b"TEST").root()
        assert [f for f in range(30) if read.position(f)] == [schema.FUSED_FIELDS[op]]
        assert read.number(schema.FUSED_FIELDS[op], "b") == 3


def read_by_schema(data: bytes) -> dict:
    """What the library generated from the schema reads of a model's first graph."""
    generated = generated_schema()
    model = generated.ModelT.InitFromObj(generated.Model.GetRootAs(data, 0))
    graph = model.subgraphs[0]

    def numbers(values):
        return () if values is None else tuple(np.asarray(values).tolist())

    def quantisation(tensor):
        q = tensor.quantization
        return ((), (), 0) if q is None else (numbers(q.scale), numbers(q.zeroPoint), q.quantizedDimension)

    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    return {
        "tensors": [
            (
                t.name.decode(),
                numbers(t.shape),
                schema.DTYPES[t.type],
                *quantisation(t),
                model.buffers[t.buffer].data is not None,
            )
            for t in graph.tensors
        ],
        "operators": [
            (
                schema.OPERATORS[codes[o.opcodeIndex]],
                numbers(o.inputs),
                numbers(o.outputs),
                schema.FUSED[getattr(o.builtinOptions, "fusedActivationFunction", 0)],
            )
            for o in graph.operators
        ],
        "inputs": numbers(graph.inputs),
        "outputs": numbers(graph.outputs),
        "n_subgraphs": len(model.subgraphs),
        "signatures": [s.signatureKey.decode() for s in model.signatureDefs or []],
    }


def as_dict(graph: Graph) -> dict:
    return {
        "tensors": [
            (t.name, t.shape, t.dtype, t.scales, t.zero_points, t.axis, t.constant) for t in graph.tensors
        ],
        "operators": [tuple(o) for o in graph.operators],
        "inputs": graph.inputs,
        "outputs": graph.outputs,
        "n_subgraphs": graph.n_subgraphs,
        "signatures": [s.key for s in graph.signatures],
    }


@pytest.mark.parametrize("name", ALL)
def test_reads_what_the_library_of_the_schema_reads(name):
    data = model_of(name)
    expected = read_by_schema(data)
    assert as_dict(read_model(data)) == expected
    assert len(expected["operators"]) >= 4


def test_reads_a_handmade_model():
    graph = read_model(model_of("int8"))
    image, weights, bias, relu1 = graph.tensors[:4]
    assert (image.name, image.shape, image.dtype, image.constant) == ("image", (1, 8, 6, 3), "int8", False)
    assert (image.scales, image.zero_points) == ((pytest.approx(0.05),), (-7,))
    assert (len(weights.scales), weights.axis, weights.constant) == (8, 0, True)
    assert bias.dtype == "int32"
    assert relu1.name == "relu1;bias"
    assert graph.operators[0] == ("CONV_2D", (0, 1, 2), (3,), "RELU")
    assert graph.inputs == (0,)
    assert graph.tensors[graph.outputs[0]].name == "probabilities"


def test_reads_signatures():
    graph = read_model(model_of("signature"))
    (signature,) = graph.signatures
    assert signature == ("serving_default", 0, {"in0": 0}, {"out0": graph.outputs[0]})


def test_old_files_name_operators_by_a_byte_and_custom_ones_by_text():
    net = models.Net()
    x, y, z = (net.value(name, (1, 4)) for name in "xyz")
    net.operator("TANH", [x, schema.UNUSED], [y])
    net.operator("CUSTOM", [y], [z])
    codes = [
        {schema.CODE_BYTE: models.Number("b", 28)},
        {schema.CODE_BYTE: models.Number("b", 32), schema.CODE_CUSTOM: "Filter"},
    ]
    root = {
        schema.MODEL_CODES: codes,
        schema.MODEL_SUBGRAPHS: [net.subgraph([x], [z])],
        schema.MODEL_BUFFERS: [{}],
    }
    graph = read_model(models.write(root))
    assert graph.operators == (("TANH", (x,), (y,), "NONE"), ("Filter", (y,), (z,), "NONE"))


# Taps


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "float",
            {"relu1": "CONV_2D+RELU", "join1": "ADD+RELU", "relu2": "RELU", "join2": "ADD", "silu": "MUL"},
        ),
        (
            "int8",
            {"relu1": "CONV_2D+RELU", "join1": "ADD+RELU", "relu2": "RELU", "join2": "ADD", "silu": "MUL"},
        ),
        ("branches", {"relu1": "CONV_2D+RELU", "relu2": "CONV_2D+RELU"}),
        ("two_heads", {"relu1": "CONV_2D+RELU", "relu2": "RELU"}),
    ],
)
def test_candidates_are_the_post_activation_tensors(name, expected):
    found = find_candidates(read_model(model_of(name)))
    assert {tap.name: tap.op for tap in found.values()} == expected
    assert all(tap.readable for tap in found.values())


@needs_data
@pytest.mark.parametrize("name", REAL)
def test_taps_of_resnet8_are_those_of_its_onnx_form(name):
    found = find_candidates(read_model(model_of(name)))
    assert [tap.tensor.index for tap in found.values()] == [22, 23, 25, 26, 29, 30, 33]
    chosen = suggest(list(found.values()))
    assert chosen == ["model/activation/Relu", "model/activation_3/Relu", "model/activation_6/Relu"]
    assert [found[tap].shape for tap in chosen] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_nothing_behind_a_softmax_is_a_tap():
    net = models.Net()
    x = net.value("x", (1, 4))
    y = net.unary("RELU", net.unary("SOFTMAX", net.unary("RELU", x, "relu1"), "softmax"), "relu2")
    data = net.model([x], [net.dense(y, "dense", 2)])
    assert list(find_candidates(read_model(data))) == ["relu1"]


def test_what_is_no_residual_join():
    """An ADD that an activation follows; an ADD of what depends on no frame."""
    net = models.Net()
    x = net.value("x", (1, 4))
    y = net.unary("TANH", net.join("ADD", x, x, "join"), "tanh")
    constant = net.tensor("constant", (1, 4), values=np.ones((1, 4), np.float32))
    y = net.join("ADD", y, net.unary("RELU", constant, "relu"), "shifted")
    data = net.model([x], [net.dense(y, "dense", 2)])
    assert list(find_candidates(read_model(data))) == ["tanh"]


def test_taps_of_one_name_or_none_are_told_apart_by_number():
    net = models.Net()
    numbers = [net.value("x", (1, 4))]
    for name in ("same;one", "same;two", ";", "relu"):
        numbers.append(net.unary("RELU", numbers[-1], name))
    data = net.model(numbers[:1], [net.dense(numbers[-1], "dense", 2)])
    assert list(find_candidates(read_model(data))) == ["same#1", "same#2", "#3", "relu"]


def test_suggests_first_middle_last_of_those_that_can_be_read():
    net = models.Net()
    x = net.value("x", (1, 4, 4, 2))
    for i in range(6):
        x = net.conv(x, f"relu{i}", 2, fused="RELU")
    net.tensors[x][schema.TENSOR_TYPE] = models.Number("b", schema.DTYPES.index("int16"))
    data = net.model([net.value("x", (1, 4, 4, 2))], [net.mean(x, "mean")])
    assert suggest(list(find_candidates(read_model(data)).values())) == ["relu0", "relu2", "relu4"]
    assert suggest([]) == []


@pytest.mark.parametrize(
    ("dtype", "shape", "scale", "axis", "readable"),
    [
        ("float32", (1, 4, 3, 2), 0.0, 0, True),
        ("float16", (1, 5), 0.0, 0, True),
        ("int8", (1, 4, 3, 2), 0.1, 0, True),
        ("uint8", (1, 4, 3, 2), [0.1, 0.2], 3, True),
        ("int8", (1, 4, 3, 2), [0.1, 0.2], 0, False),  # along another axis
        ("int8", (1, 4, 3, 2), 0.0, 0, False),  # without a scale
        ("int8", (1, 4, 3, 2), np.inf, 0, False),
        ("int8", (1, 4, 3, 2), -0.1, 0, False),
        ("int16", (1, 4, 3, 2), 0.1, 0, False),
        ("bfloat16", (1, 4, 3, 2), 0.0, 0, False),
        ("float32", (2, 4, 3, 2), 0.0, 0, False),  # two frames
        ("float32", (1, 4, 3), 0.0, 0, False),
        ("float32", (1, 4, -1, 2), 0.0, 0, False),
        ("float32", (), 0.0, 0, False),
    ],
)
def test_what_can_be_read(dtype, shape, scale, axis, readable):
    net = models.Net()
    x, z = net.tensor("x", (1, 4)), net.tensor("z", (1, 4))
    y = net.tensor("y", shape, dtype, scale=scale, axis=axis)
    net.operator("RELU", [x], [y])
    net.operator("CAST", [y], [z])
    graph = read_model(net.model([x], [z]))
    assert find_candidates(graph)["y"].readable is readable
    if readable:
        assert [tap.tensor.index for tap in choose(graph, ["y"])] == [y]
    else:
        with pytest.raises(
            ModelError, match=rf"^y: is {dtype}\(.*only float32, float16, int8, uint8 of shape"
        ):
            choose(graph, ["y"])


def test_chosen_taps_come_in_the_order_asked_for():
    graph = read_model(model_of("float"))
    assert [tap.name for tap in choose(graph, ["silu", "relu1"])] == ["silu", "relu1"]
    with pytest.raises(ModelError, match=r"^relu9: no such tap; nearest: relu[12], relu[12], "):
        choose(graph, ["relu9"])
    with pytest.raises(ModelError, match=r"^relu1: tapped twice"):
        choose(graph, ["relu1", "relu1"])


def test_signatures_with_graphs_of_their_own_are_refused():
    data = models.branches(signature="train")
    for refused in (lambda: find_candidates(read_model(data)), lambda: with_outputs(data, taps_of(data))):
        with pytest.raises(ModelError, match="signatures train run graphs of their own"):
            refused()


# Editing


def changed(before: bytes, after: bytes) -> set[int]:
    """Words (of 4 bytes) of ``before`` that differ."""
    n = len(before) // 4
    return set(np.flatnonzero(np.frombuffer(before, "<u4", n) != np.frombuffer(after, "<u4", n)).tolist())


@pytest.mark.parametrize("name", ALL)
def test_with_outputs_adds_to_the_file_and_changes_references_only(name):
    data = model_of(name)
    before = read_model(data)
    edited = with_outputs(data, taps_of(data))
    after = read_model(edited)
    assert after == before._replace(outputs=(*before.outputs, *taps_of(data)))
    assert as_dict(after) == read_by_schema(edited)
    assert len(changed(data, edited)) == 1  # the outputs' reference


@pytest.mark.parametrize("junk", range(8))
def test_vectors_are_aligned(junk):
    """Also behind a file whose length is no multiple of 4."""
    data = model_of("signature") + bytes(junk)
    taps = taps_of(data)
    extended = with_outputs(data, taps)
    for edited in (extended, prefix(data, taps), suffix(data, taps[:1])):
        model = FlatBuffer(edited, b"TFL3").root()
        graph = next(model.tables(schema.MODEL_SUBGRAPHS))
        targets = [graph.target(field) for field in (1, 2, 3)] + [model.target(schema.MODEL_SIGNATURES)]
        assert [target % 4 for target in targets] == [0, 0, 0, 0]
        appended = targets[1] if edited is extended else targets[-1]
        assert appended >= len(data)
        # Weights are where they were.
        for place, buffer in enumerate(model.tables(schema.MODEL_BUFFERS)):
            if place:
                start = buffer.target(schema.BUFFER_DATA) + 4
                assert start % 16 == 0
                assert data[start : start + 64] == edited[start : start + 64]


@pytest.mark.parametrize("name", [name for name in ALL if name != "branches"])
def test_halves_share_the_operators(name):
    """All that the outputs need is in one half; only what needs no frame is in both."""
    data = model_of(name)
    whole = read_model(data)
    for tap in taps_of(data):
        after = read_model(suffix(data, [tap]))
        before = read_model(prefix(data, after.inputs))
        assert before.tensors == after.tensors == whole.tensors
        assert before.inputs == whole.inputs
        assert before.outputs == after.inputs
        assert after.inputs[0] == tap
        assert set(after.outputs) <= set(whole.outputs)
        assert len(before.operators) + len(after.operators) <= len(whole.operators) + 1
        assert as_dict(before) == read_by_schema(prefix(data, after.inputs))
        assert as_dict(after) == read_by_schema(suffix(data, [tap]))


def test_suffix_begins_at_every_tensor_that_is_still_read():
    data = model_of("two_heads")
    graph = read_model(data)
    relu1, relu2 = taps_of(data)
    late = read_model(suffix(data, [relu2]))
    assert late.inputs == (relu2, relu1)  # its size is read
    assert late.outputs == graph.outputs[1:]
    assert [operator.op for operator in late.operators] == ["SHAPE", "RESHAPE", "LOGISTIC", "QUANTIZE"]
    both = read_model(suffix(data, [relu1]))
    assert both.inputs == (relu1,)
    assert both.outputs == graph.outputs
    assert both.operators[0].op == "DEQUANTIZE"  # the bias
    assert read_model(suffix(data, [relu2, relu1])).outputs == graph.outputs
    assert read_model(suffix(data, [graph.inputs[0]])).operators == graph.operators


@needs_runtime
def test_operators_of_several_outputs_are_cut_at_any_of_them():
    """Given one part of a SPLIT and what it is made from, the other part comes from outside, too."""
    net = models.Net()
    image = net.value("image", (1, 4))
    x = net.unary("RELU", image, "relu")
    axis = net.tensor("axis", [], "int32", np.array(1, np.int32))
    parts = [net.value("left", (1, 2)), net.value("right", (1, 2))]
    net.operator("SPLIT", [axis, x], parts, {0: models.Number("i", 2)})
    data = net.model([image], [net.dense(net.join("ADD", *parts, "join"), "dense", 2)])
    for cut, inputs in [([x], [x]), (parts[:1], parts), ([x, parts[1]], [x, *parts[::-1]])]:
        behind = suffix(data, cut)
        assert list(read_model(behind).inputs) == inputs
        feeds = feeds_of(data)
        carried = run(prefix(data, inputs), feeds, xnnpack=False)
        assert_same(run(behind, carried, xnnpack=False), run(data, feeds, xnnpack=False), read_model(data))


def stateful() -> tuple[bytes, int]:
    net = models.Net()
    x = net.value("x", (1, 4))
    y = net.unary("RELU", x, "relu")
    net.tensors[y][schema.TENSOR_VARIABLE] = models.Number("B", 1)
    return net.model([x], [net.dense(y, "dense", 2)]), y


def test_what_cannot_be_edited_is_refused():
    data = model_of("float")
    graph, relu1 = read_model(data), taps_of(data)[0]
    for edit in (with_outputs, prefix, suffix):
        for tensors, problem in [
            ([], "tensors: none given"),
            ([1], "tensor 1 relu1;bias/weights: does not depend on the model's inputs"),
            ([-1], "tensor -1: does not depend"),
            ([len(graph.tensors)], "does not depend"),
            ([relu1, relu1], "tensor 3 relu1;bias: given twice"),
        ]:
            with pytest.raises(ModelError, match=problem):
                edit(data, tensors)
        with pytest.raises(ModelError, match="identifier"):
            edit(b"no model", [relu1])
    with pytest.raises(ModelError, match="probabilities: is an input or output of the model already"):
        with_outputs(data, list(graph.outputs))
    with pytest.raises(ModelError, match="probabilities: no output of the model depends on it"):
        suffix(data, list(graph.outputs))
    with pytest.raises(ModelError, match="image: is an input of the model"):
        prefix(data, list(graph.inputs))
    for edit in (prefix, suffix):
        with pytest.raises(ModelError, match=r"keeps state from frame to frame \(FULLY_CONNECTED\)"):
            edit(stateful()[0], [stateful()[1]])


def test_files_beyond_the_format_are_refused(monkeypatch):
    data = model_of("float")
    monkeypatch.setattr(tflite_edit, "_LARGEST", len(data))
    with pytest.raises(ModelError, match=f"bytes, at most {len(data)} can be edited"):
        with_outputs(data, taps_of(data))


# Damaged files


def read_or_refused(data: bytes) -> Graph | None:
    """The graph, or None after one clear line."""
    try:
        return read_model(data, "some.tflite")
    except ModelError as error:
        message = str(error)
    assert message.startswith("some.tflite: not a whole TensorFlow Lite model (")
    assert "\n" not in message
    return None


def edit_or_refused(data: bytes) -> None:
    """All that is done with a model that can be read."""
    graph = read_or_refused(data)
    if graph is None:
        return
    try:
        taps = [tap.tensor.index for tap in find_candidates(graph).values()]
        for edit in (with_outputs, prefix, suffix):
            read_model(edit(data, taps))
    except ModelError:
        return


@pytest.mark.parametrize("name", HANDMADE)
def test_every_cut_of_a_file_is_noticed(name):
    data = model_of(name)
    whole = read_model(data)
    for length in range(len(data)):
        graph = read_or_refused(data[:length])
        assert graph is None or (graph == whole and not any(data[length:]))


@needs_data
@pytest.mark.parametrize("name", REAL)
@given(share=st.floats(0, 1))
def test_cuts_of_a_real_file_are_noticed(name, share):
    data = model_of(name)
    assert read_or_refused(data[: round(share * (len(data) - 1))]) is None


@pytest.mark.parametrize("name", ["signature", *(pytest.param(name, marks=needs_data) for name in REAL)])
def test_every_flipped_byte_is_read_or_refused(name):
    data = model_of(name)
    refused = 0
    for place in range(2048):
        damaged = bytearray(data)
        damaged[place] ^= 1 << 3 * place % 8
        refused += read_or_refused(bytes(damaged)) is None
    assert 0 < refused < 2048


@settings(max_examples=300)
@given(
    st.sampled_from(list(HANDMADE)),
    st.lists(st.tuples(st.integers(0, 2**16), st.binary(max_size=4)), max_size=4),
)
def test_overwritten_files_are_read_and_edited_or_refused(name, changes):
    damaged = bytearray(model_of(name))
    for place, new in changes:
        start = place % len(damaged)
        damaged[start : start + len(new)] = new[: len(damaged) - start]
    edit_or_refused(bytes(damaged))


@given(st.binary(max_size=400), st.booleans())
def test_noise_is_refused(noise, marked):
    data = noise[:4] + b"TFL3" + noise[4:] if marked else noise
    edit_or_refused(data)


def test_runs_of_zeros_are_no_tables():
    """A vector of many references, all zero: else each of them would pass for an empty tensor."""
    data = bytearray(model_of("float"))
    place = next(FlatBuffer(bytes(data), b"TFL3").root().tables(schema.MODEL_SUBGRAPHS)).position(
        schema.SUBGRAPH_TENSORS
    )
    struct.pack_into("<I", data, place, len(data) - place)
    data += struct.pack("<I", 1_000_000) + bytes(4_000_100)
    with pytest.raises(ModelError, match="no table at byte"):
        read_model(bytes(data))


def test_overlapping_vectors_are_refused():
    """Each of many tensors refers to the same long vector: small to store, long to read."""
    net = models.Net()
    x = net.tensor("x", [1] * 2000)
    for _ in range(1000):
        net.tensor("", [])
    data = bytearray(net.model([x], [net.unary("RELU", x, "relu")]))
    assert read_model(bytes(data)).n_subgraphs == 1
    tables = list(next(FlatBuffer(bytes(data), b"TFL3").root().tables(0 + 2)).tables(0))
    shared = len(data)
    data += struct.pack("<I2000i", 2000, *[1] * 2000)
    for table in tables:
        place = table.position(schema.TENSOR_SHAPE)
        struct.pack_into("<I", data, place, shared - place)
    with pytest.raises(ModelError, match="more to read than a file of this size can hold"):
        read_model(bytes(data))
    assert flatbuffer._MAX_READINGS * len(data) < 1000 * 8000


def test_weights_elsewhere_are_refused():
    net = models.Net()
    x = net.tensor("x", [1])
    y = net.unary("RELU", x, "relu")
    root = {
        schema.MODEL_CODES: [{schema.CODE_BYTE: models.Number("b", 19)}],
        schema.MODEL_SUBGRAPHS: [net.subgraph([x], [y])],
        schema.MODEL_BUFFERS: [{}],
    }
    assert read_model(models.write(root)).outputs == (y,)
    with pytest.raises(ModelError, match="keeps weights in other files"):
        read_model(models.write(root | {schema.MODEL_EXTERNAL: [{}]}))
    behind = {schema.BUFFER_OFFSET: models.Number("Q", 8), schema.BUFFER_SIZE: models.Number("Q", 9)}
    assert read_model(models.write(root | {schema.MODEL_BUFFERS: [behind]})).tensors[x].constant
    beyond = {schema.BUFFER_OFFSET: models.Number("Q", 1 << 40), schema.BUFFER_SIZE: models.Number("Q", 9)}
    with pytest.raises(ModelError, match="weights at bytes 1099511627776"):
        read_model(models.write(root | {schema.MODEL_BUFFERS: [beyond]}))


@pytest.mark.parametrize(
    ("table", "field", "value", "problem"),
    [
        ("tensor", schema.TENSOR_BUFFER, models.Number("I", 7), "tensor 0 lies in buffer 7 of 1"),
        ("operator", schema.OPERATOR_CODE, models.Number("I", 3), "operator of kind 3, 1 are named"),
        ("operator", schema.OPERATOR_INPUTS, models.Vector("i", [2]), "tensor 2 of 2"),
        ("operator", schema.OPERATOR_OUTPUTS, models.Vector("i", [-1]), "tensor -1 of 2"),
        ("graph", schema.SUBGRAPH_OUTPUTS, models.Vector("i", []), "nothing in it is computed"),
        ("graph", schema.SUBGRAPH_INPUTS, models.Vector("i", [9]), "tensor 9 of 2"),
        (
            "tensor",
            schema.TENSOR_QUANTISATION,
            {
                schema.QUANTISATION_SCALES: models.Vector("f", [1.0] * 3),
                schema.QUANTISATION_ZERO_POINTS: models.Vector("q", [0, 0]),
            },
            "tensor 0 has 3 scales and 2 zero points",
        ),
    ],
)
def test_contradictions_are_refused(table, field, value, problem):
    net = models.Net()
    x = net.tensor("x", [1])
    graph = net.subgraph([x], [net.unary("RELU", x, "relu")])
    {"tensor": net.tensors[0], "operator": net.operators[0], "graph": graph}[table][field] = value
    root = {
        schema.MODEL_CODES: [{schema.CODE_BYTE: models.Number("b", 19)}],
        schema.MODEL_SUBGRAPHS: [graph],
        schema.MODEL_BUFFERS: [{}],
    }
    with pytest.raises(ModelError, match=problem):
        read_model(models.write(root))


# Runs


def interpreter_of(data: bytes, xnnpack: bool):
    runtime = pytest.importorskip(f"{PACKAGE}.interpreter")
    kinds = runtime.OpResolverType
    kind = kinds.AUTO if xnnpack else kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = runtime.Interpreter(model_content=data, num_threads=1, experimental_op_resolver_type=kind)
    interpreter.allocate_tensors()
    return interpreter


def run(data: bytes, feeds: list[dict], xnnpack: bool) -> list[dict]:
    """Values of the outputs, by number of the tensor, for each feed."""
    interpreter = interpreter_of(data, xnnpack)
    outputs = [detail["index"] for detail in interpreter.get_output_details()]
    answers = []
    for feed in feeds:
        for detail in interpreter.get_input_details():
            interpreter.set_tensor(detail["index"], feed[detail["index"]])
        interpreter.invoke()
        answers.append({index: interpreter.get_tensor(index) for index in outputs})
    return answers


def feeds_of(data: bytes, n: int = 4) -> list[dict]:
    """Noise in the range of each input, for a ResNet8 pictures."""
    graph, rng = read_model(data), np.random.default_rng(0)
    ranges = {"bool": (0, 2), "int8": (-128, 128), "float32": (-2, 2)}
    pictures = graph.tensors[graph.inputs[0]].shape == (1, 32, 32, 3)
    if pictures and (DATA / "cifar10_test_500.npz").is_file():
        images = np.load(DATA / "cifar10_test_500.npz")["images"][:n, None].astype(np.int64)
        dtype = graph.tensors[graph.inputs[0]].dtype
        return [{graph.inputs[0]: (image - 128 * (dtype == "int8")).astype(dtype)} for image in images]
    return [
        {
            index: rng.uniform(*ranges[(tensor := graph.tensors[index]).dtype], tensor.shape).astype(
                tensor.dtype
            )
            for index in graph.inputs
        }
        for _ in range(n)
    ]


def assert_same(found: list[dict], expected: list[dict], graph: Graph) -> None:
    """Integers to the bit, floats to rounding: kernels may be fused in another way."""
    for ours, theirs in zip(found, expected, strict=True):
        for index, value in ours.items():
            if graph.tensors[index].dtype == "int8":
                assert_array_equal(value, theirs[index])
            else:
                assert_allclose(value, theirs[index], rtol=0, atol=2e-6 * np.abs(theirs[index]).max())


@needs_runtime
@BOTH_KERNELS
@pytest.mark.parametrize("name", ALL)
def test_taps_leave_the_answer_as_it_is(name, xnnpack):
    data = model_of(name)
    feeds = feeds_of(data)
    plain, tapped = run(data, feeds, xnnpack), run(with_outputs(data, taps_of(data)), feeds, xnnpack)
    for untouched, answer in zip(plain, tapped, strict=True):
        for index, value in untouched.items():
            assert_array_equal(answer[index], value)
    assert any(
        not np.array_equal(a, b) for index in plain[0] for a, b in [(plain[0][index], plain[1][index])]
    )


@needs_runtime
@BOTH_KERNELS
@pytest.mark.parametrize("name", ALL)
def test_taps_are_what_a_model_that_ends_there_gives(name, xnnpack):
    data = model_of(name)
    feeds = feeds_of(data)
    tapped = run(with_outputs(data, taps_of(data)), feeds, xnnpack)
    for tap in taps_of(data):
        ends = run(prefix(data, [tap]), feeds, xnnpack)
        assert list(ends[0]) == [tap]
        assert np.ptp(ends[0][tap].astype(float)) > 0
        assert_same(ends, tapped, read_model(data))


@needs_runtime
@BOTH_KERNELS
@pytest.mark.parametrize("name", ALL)
def test_halves_give_the_whole_answer(name, xnnpack):
    data = model_of(name)
    feeds = feeds_of(data)
    whole = run(data, feeds, xnnpack)
    for tap in taps_of(data):
        behind = suffix(data, [tap])
        carried = run(prefix(data, read_model(behind).inputs), feeds, xnnpack)
        assert_same(run(behind, carried, xnnpack), whole, read_model(data))


@needs_runtime
@BOTH_KERNELS
def test_kept_signatures_can_be_called(xnnpack):
    data = model_of("signature")
    (feed,) = feeds_of(data, 1)
    (expected,) = run(data, [feed], xnnpack)
    (output,) = expected
    kept = interpreter_of(with_outputs(data, taps_of(data)), xnnpack)
    answer = kept.get_signature_runner("serving_default")(in0=feed[0])
    assert list(answer) == ["out0"]
    assert_array_equal(answer["out0"], expected[output])
    assert kept.get_tensor(taps_of(data)[0]).max() > 0
    gone = interpreter_of(prefix(data, taps_of(data)), xnnpack)
    assert gone.get_signature_list() == {}
