"""Taps as the kernels keep them: found, compared with plain taps, and given up when anything is odd."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import weakref

import models
import naive
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tap_memory import held
from tap_models import odd, quantised

from edge_monitor.taps import onnx_raw, onnx_session
from edge_monitor.taps.onnx import find_observed_input, input_type, open_session, quiet_options
from edge_monitor.taps.onnx_edit import append_outputs, replace_outputs
from edge_monitor.taps.onnx_graph import find_candidates, find_quantised, read_graph
from edge_monitor.taps.onnx_raw import Source, find_blocks, find_stored, open_tapped
from edge_monitor.taps.onnx_session import TappedSession

BUILDS = {
    "cnn": models.cnn,
    "residual": models.residual_cnn,
    "mobilenet": models.mobilenet,
    "gated": models.gated,
    "dense": models.dense,
    "two_inputs": models.two_inputs,
    "odd": odd,
    "half": lambda: odd(dtype=TensorProto.FLOAT16),
    "uint8": quantised,
    "int8": lambda: quantised(dtype=np.int8),
}
each_model = pytest.mark.parametrize("name", BUILDS)


def options():
    return {"sess_options": quiet_options()}


def feeds_of(data, n=3):
    session = onnxruntime.InferenceSession(data, quiet_options())
    types = {arg.name: input_type(arg) for arg in session.get_inputs()}
    rngs = map(np.random.default_rng, range(n))
    return [
        {k: rng.standard_normal(shape).astype(kind) for k, (shape, kind) in types.items()} for rng in rngs
    ]


def tapped_of(data, feeds):
    observed = find_observed_input(onnxruntime.InferenceSession(data, quiet_options()))
    return TappedSession(data, list(find_candidates(read_graph(data))), feeds, observed, None, options())


def plain_values(data, names, feed):
    """Taps by a model that the onnx package extended."""
    model = onnx.load_from_string(data)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return onnxruntime.InferenceSession(model.SerializeToString(), quiet_options()).run(names, feed)


def check(data, tapped, feeds):
    names = [spec.name for spec in tapped.specs[1:]]
    plain = onnxruntime.InferenceSession(data, quiet_options())
    for feed in feeds:
        observed = tapped.specs[0].name
        tapped.load(feed[observed])
        for found, expected in zip(tapped.run(feed), plain.run(None, feed), strict=True):
            np.testing.assert_array_equal(found, expected)
        reduction = tapped.reduce()
        truths = [feed[observed], *plain_values(data, names, feed)]
        for found, truth in zip(held(tapped._reducer), truths, strict=True):
            np.testing.assert_array_equal(found.ravel(), truth.astype(found.dtype).ravel())
        means = [np.abs(truth.astype(np.float64)).mean() for truth in truths]
        np.testing.assert_allclose(reduction.signals, means, rtol=1e-5)


@each_model
def test_taps_hold_what_the_runtime_computes(name):
    data = BUILDS[name]()
    feeds = feeds_of(data)
    check(data, tapped_of(data, feeds[:2]), feeds)


@each_model
def test_what_is_put_in_order_is_read_before_it_is(name, tmp_path):
    """Wherever this processor's kernels keep a tap in another layout, that is what is read."""
    data = BUILDS[name]()
    tapped = tapped_of(data, feeds_of(data))
    how, path = quiet_options(), tmp_path / "optimised.onnx"
    how.optimized_model_filepath = str(path)
    taps = tapped_tensors(data)
    onnxruntime.InferenceSession(append_outputs(data, taps), how)
    made = {output: node.op for node in read_graph(path.read_bytes()).nodes for output in node.outputs}
    reordered = {tap for tap in taps if made[tap] in ("ReorderOutput", "Transpose")}
    assert reordered.isdisjoint(output.name for output in tapped.session.get_outputs())
    assert reordered or name != "uint8"  # those have channels last on every processor


def tapped_tensors(data):
    graph = read_graph(data)
    behind = find_quantised(graph)
    return [behind[name].tensor if name in behind else name for name in find_candidates(graph)]


def test_quantised_taps_are_integers():
    data = quantised(zero_point=5)
    assert list(find_candidates(read_graph(data))) == ["relu_dq", "add_dq"]
    data = quantised()
    assert list(find_candidates(read_graph(data))) == ["relu_dq", "folded_dq", "add_dq"]
    assert {memory.dtype.name for memory in tapped_of(data, feeds_of(data))._memory} == {"uint8"}


@pytest.mark.parametrize("what", ["replace_outputs", "TemporaryDirectory", "read_graph", "find_blocks"])
def test_whatever_fails_leaves_the_plain_taps(what, monkeypatch):
    def fail(*_args, **_kwargs):
        raise OSError("injected")

    data = models.residual_cnn()
    feeds = feeds_of(data)
    monkeypatch.setattr(onnx_raw, what, fail)
    tapped = tapped_of(data, feeds)
    check(data, tapped, feeds)
    assert [output.name for output in tapped.session.get_outputs()][1:] == ["relu1", "relu2", "add2"]


@pytest.mark.parametrize("taken", ["tap", "answer"])
def test_other_values_are_never_served(taken, monkeypatch):
    """Taps that were mistaken for each other, and an edit that touches the answer."""
    data = odd()

    def mistake(graph, taps):
        found = find_stored(graph, taps)
        if not found:
            pytest.skip("no blocked layout here")
        if taken == "answer":
            return found | {"output": found["relu1"]}
        return found | {"relu0": found["relu1"], "relu1": found["relu0"]}

    monkeypatch.setattr(onnx_raw, "find_stored", mistake)
    feeds = feeds_of(data)
    tapped = tapped_of(data, feeds)
    check(data, tapped, feeds)
    assert {output.name for output in tapped.session.get_outputs()} == {
        "output",
        *(f"relu{i}" for i in range(5)),
    }


def test_a_tap_of_one_value_is_read_plainly_and_the_others_are_not():
    """A dead layer fits any block, and what it holds when it wakes up shall not be scrambled."""
    g = models._Graph(0)
    g.conv("input", "conv1", 3, 12)
    g.node("Relu", ["conv1"], "relu1")
    g.conv("relu1", "conv2", 12, 12)
    g._initializers[-1] = numpy_helper.from_array(np.full(12, -1e6, np.float32), "b_conv2")
    g.node("Relu", ["conv2"], "dead")
    g.node("GlobalAveragePool", ["dead"], "output")
    data = g.model([("input", [1, 3, 8, 8])], [("output", [1, 12, 1, 1])])
    feeds = feeds_of(data)
    alone = open_tapped(data, ["dead"], feeds, options())
    assert [source.output for source in alone.sources] == ["dead"]
    both = open_tapped(data, ["relu1", "dead"], feeds, options())
    assert both.sources[1].output == "dead"
    first = open_tapped(data, ["relu1"], feeds, options())
    assert both.sources[0] == first.sources[0]
    assert all(source.dtype == np.float32 for source in both.sources)


def test_low_optimisation_has_plain_taps():
    data = models.cnn()
    how = quiet_options()
    how.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    found = open_tapped(data, ["relu1"], feeds_of(data), {"sess_options": how})
    assert found.sources[0].output == "relu1"


def test_the_callers_options_and_file_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    how, path = quiet_options(), tmp_path / "mine.onnx"
    how.optimized_model_filepath = str(path)
    path.write_bytes(b"mine")
    data = models.cnn()
    open_tapped(data, ["relu1"], feeds_of(data), {"sess_options": how})
    assert path.read_bytes() == b"mine"
    assert (how.optimized_model_filepath, how.log_severity_level) == (str(path), 3)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_options_that_two_threads_share_stay_as_they_are(monkeypatch):
    """One thread's temporary file must not be what the other one restores."""
    how, data = quiet_options(), models.cnn()
    feeds = feeds_of(data)
    both = threading.Barrier(2)
    plain = onnxruntime.InferenceSession
    seen = []

    class Meeting(plain):
        def __init__(self, *args, **kwargs):
            before = how.optimized_model_filepath
            with contextlib.suppress(threading.BrokenBarrierError):
                both.wait(timeout=1)
            seen.append((before, how.optimized_model_filepath))
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Meeting)
    opening = [
        threading.Thread(target=target, args=(*args, {"sess_options": how}))
        for target, args in ((open_tapped, (data, ["relu1"], feeds)), (open_session, (data, ())))
    ]
    for thread in opening:
        thread.start()
    for thread in opening:
        thread.join()
    assert all(before == after for before, after in seen)
    assert (how.optimized_model_filepath, how.log_severity_level) == ("", 3)


def test_one_session_is_alive_at_a_time(monkeypatch):
    alive, most = weakref.WeakSet(), []
    plain = onnxruntime.InferenceSession

    class Counted(plain):
        def __init__(self, *args, **kwargs):
            alive.add(self)
            most.append(len(alive))
            super().__init__(*args, **kwargs)

    data = models.cnn()
    feeds = feeds_of(data)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Counted)
    found = open_tapped(data, ["relu1"], feeds, options())
    assert list(alive) == [found.session]
    assert max(most) == 1


def test_other_providers_hand_over_ordinary_outputs(monkeypatch):
    monkeypatch.setattr(onnx_raw, "CPU", ["OtherExecutionProvider"])
    monkeypatch.setattr(onnx_session, "CPU", ["OtherExecutionProvider"])
    for build in (models.residual_cnn, odd, quantised):
        data = build()
        feeds = feeds_of(data)
        tapped = tapped_of(data, feeds)
        assert tapped._binding is None
        check(data, tapped, feeds)


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 5), st.integers(1, 5)),
    block=st.integers(1, 20),
    seed=st.integers(0, 999),
)
def test_blocks_are_found_by_the_values(shape, block, seed):
    tensor = np.random.default_rng(seed).standard_normal(shape)
    memory = naive.in_memory(tensor, block, 0.0)
    found = find_blocks([tensor[None]], [memory])
    if shape[1] * shape[2] == 1:
        assert block in found
    else:
        # A block of all channels or more is channels last, whatever fills it up.
        assert found == {block}
    memory[seed % memory.size] += 1
    if seed % memory.size < tensor.size and memory.size == tensor.size:
        assert find_blocks([tensor[None]], [memory]) == set()


def test_blocks_of_what_is_no_map():
    assert find_blocks([np.ones((1, 8))], [np.ones((1, 8))]) == set()
    assert find_blocks([np.ones((1, 2, 3, 1))], [np.ones((1, 5))]) == set()
    assert find_blocks([np.zeros((1, 4, 2, 2))], [np.zeros((1, 8, 2, 2))]) == {8}
    assert find_blocks([np.zeros((1, 4, 2, 2))], [np.zeros((1, 4, 2, 2))]) == {1, 2, 4}


@each_model
def test_outputs_are_replaced_as_the_onnx_package_would(name):
    data = BUILDS[name]()
    graph = read_graph(data)
    instead = {graph.outputs[0]: graph.nodes[0].outputs[0]}
    truth = onnx.load_from_string(data)
    truth.graph.output[0].CopyFrom(onnx.ValueInfoProto(name=graph.nodes[0].outputs[0]))
    last = next(i for i, node in enumerate(truth.graph.node) if graph.outputs[0] in node.output)
    if not any(graph.outputs[0] in node.input for node in truth.graph.node):
        del truth.graph.node[last]
    assert onnx.load_from_string(replace_outputs(data, instead)) == truth


def test_an_operator_is_left_out_only_if_nobody_reads_it_and_it_made_something():
    """Bodies of If read tensors of the outer graph; an operator may return nothing at all."""
    body = helper.make_graph(
        [helper.make_node("Neg", ["read"], ["negated"])],
        "body",
        [],
        [helper.make_tensor_value_info("negated", TensorProto.FLOAT, [1, 2])],
    )
    nodes = [
        helper.make_node("Relu", ["input"], ["kept"]),
        helper.make_node("Transpose", ["kept"], ["read"], perm=[1, 0]),
        helper.make_node("Transpose", ["kept"], ["unread"], perm=[1, 0]),
        helper.make_node("If", ["which"], ["answer"], then_branch=body, else_branch=body),
        helper.make_node("Report", ["kept"], [], domain="custom"),
    ]
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 2])]
    outputs = [onnx.ValueInfoProto(name=name) for name in ("answer", "read", "unread")]
    model = helper.make_model(helper.make_graph(nodes, "net", inputs, outputs), ir_version=8)
    edited = onnx.load_from_string(
        replace_outputs(model.SerializeToString(), {"read": "kept", "unread": "other"})
    )
    assert [node.op_type for node in edited.graph.node] == ["Relu", "Transpose", "If", "Report"]
    assert [output.name for output in edited.graph.output] == ["answer", "kept", "other"]


@pytest.mark.parametrize(("block", "reading"), [(1, "plain"), (8, "channels last"), (16, "blocked")])
def test_how_a_tap_is_read_follows_from_its_layout(block, reading):
    assert Source("tap", (1, 8, 4, 4), (1, 16, 4, 4), np.dtype(np.float32), block).reading == reading


def test_stored_tensors_are_nobodys_outputs():
    nodes = [
        helper.make_node("Neg", ["input"], ["kept"]),
        helper.make_node("Transpose", ["kept"], ["tap1"], perm=[0, 3, 1, 2]),
        helper.make_node("Transpose", ["kept"], ["tap2"], perm=[0, 3, 1, 2]),
        helper.make_node("Transpose", ["answer"], ["tap3"], perm=[0, 3, 1, 2]),
        helper.make_node("Transpose", ["input"], ["tap4"], perm=[0, 3, 1, 2]),
        helper.make_node("Relu", ["tap1"], ["tap5"]),
        helper.make_node("Transpose", ["tap5"], ["last"], perm=[0, 2, 3, 1]),
        helper.make_node("Neg", ["last"], ["answer"]),
    ]
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2, 2, 2]) for n in ("input", "answer")]
    model = helper.make_model(helper.make_graph(nodes, "net", info[:1], info[1:]), ir_version=8)
    graph = read_graph(model.SerializeToString())
    assert find_stored(graph, ["tap3", "tap4", "tap5"]) == {"tap5": "last"}
    assert find_stored(graph, ["tap1", "tap2"]) == {}  # both from one tensor
