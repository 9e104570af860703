"""Taps of TensorFlow Lite models: right values, read from the right memory, whatever moves."""

from __future__ import annotations

import sys
from itertools import pairwise, product
from types import SimpleNamespace

import models as onnx_models
import msgspec
import numpy as np
import pytest
import tflite_models as models
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from tap_memory import held
from tflite_runs import (
    ALL,
    RUNTIMES,
    builtin_kernels,
    feeds_of,
    model_of,
    open_plain,
    run,
    taps_of,
    values,
)

from edge_monitor.errors import InputError, MapError, ModelError
from edge_monitor.kernels import tap_moments as kernel
from edge_monitor.taps import litert, model_file, tflite_schema
from edge_monitor.taps.litert import TappedInterpreter, opener
from edge_monitor.taps.reducer import TapReducer, input_spec, tap_spec
from edge_monitor.taps.tflite_edit import prefix
from edge_monitor.taps.tflite_file import Tensor, read_model
from edge_monitor.taps.tflite_values import StoredTensor, find_observed_input, read_answer

each_runtime = pytest.mark.parametrize("runtime", RUNTIMES)
both_kernels = pytest.mark.parametrize("xnnpack", [True, False], ids=["xnnpack", "builtin"])


def tapped_of(data, runtime, names=None, specs=None, **options):
    graph = read_model(data)
    tapped = TappedInterpreter(
        data,
        graph,
        list(taps_of(data)) if names is None else names,
        find_observed_input(graph, "model"),
        specs,
        opener(runtime, {"num_threads": 1} | options),
    )
    tapped.allocate()
    return tapped


def observe(tapped, feed):
    """Reduction of a run, and what its taps held."""
    for index, value in feed.items():
        tapped.interpreter.set_tensor(index, value)
    assert tapped.load()
    tapped.interpreter.invoke()
    reduction = tapped.reduce()
    # Without a reduction the taps lie where nobody knows.
    return reduction, [tapped._reducer.input.copy()] if reduction is None else held(tapped._reducer)


@each_runtime
@both_kernels
@pytest.mark.parametrize("name", ALL)
def test_taps_are_those_of_a_model_that_ends_there(name, xnnpack, runtime):
    data, options = model_of(name), {} if xnnpack else builtin_kernels(runtime)
    graph = read_model(data)
    tapped = tapped_of(data, runtime, **options)
    ends = {tap.tensor.index: tap for tap in taps_of(data).values()}
    cut = {index: open_plain(prefix(data, [index]), runtime, **options) for index in ends}
    for interpreter in cut.values():
        interpreter.allocate_tensors()
    observed = graph.tensors[find_observed_input(graph, "model").index]
    for feed in feeds_of(data):
        _, (found_input, *found) = observe(tapped, feed)
        assert_array_equal(found_input, values(observed, feed[observed.index]))
        for view, (index, interpreter) in zip(found, cut.items(), strict=True):
            inputs = {detail["index"] for detail in interpreter.get_input_details()}
            (stored,) = run(interpreter, {i: value for i, value in feed.items() if i in inputs})
            expected = values(graph.tensors[index], stored)
            assert np.ptp(expected) > 0
            if name == "moving":  # tflite-runtime leaves it to other kernels where its sizes are fixed
                np.testing.assert_allclose(view, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
            else:
                assert_array_equal(view, expected)


@each_runtime
@pytest.mark.parametrize("name", ["float", "int8"])
def test_reduction_is_numpys_of_the_values(name, runtime):
    data = model_of(name)
    tapped = tapped_of(data, runtime)
    for feed in feeds_of(data):
        reduction, views = observe(tapped, feed)
        means = [np.abs(view.astype(np.float64)).mean() for view in views]
        np.testing.assert_allclose(reduction.signals, means, rtol=1e-6)
        assert reduction.nonfinite.sum() == 0
        start = 0
        for spec, view in zip(tapped.specs, views, strict=True):
            sums = np.abs(view.astype(np.float64)).sum(axis=(1, 2))
            np.testing.assert_allclose(
                reduction.spatial.channels[start : start + len(view)], sums, rtol=1e-6, err_msg=spec.name
            )
            start += len(view)


@each_runtime
@pytest.mark.parametrize("name", ["float", "int8"])
def test_taps_are_read_in_place(name, runtime):
    """What the kernel reads is the runtime's own memory, whatever has been allocated anew."""
    data = model_of(name)
    tapped = tapped_of(data, runtime)
    rows = tapped._reducer._table.taps
    for feed in feeds_of(data):
        reduction, _ = observe(tapped, feed)
        for tap, row in zip(tapped._taps, rows[1:], strict=True):
            assert row[kernel.ADDRESS] == tapped._view(tap.index).ctypes.data
        with tapped.reallocating():
            tapped.interpreter.allocate_tensors()
        again, _ = observe(tapped, feed)
        assert_array_equal(again.signals, reduction.signals)
    assert {tap.layout.dtype for tap in tapped._taps} == {"float32" if name == "float" else "int8"}


@each_runtime
def test_scales_of_each_channel(runtime):
    """No kernel reads those in place: their values are made at every frame."""
    data = model_of("int8")
    graph, taps = read_model(data), taps_of(data)
    tensor = taps["relu1"].tensor
    n = tensor.shape[-1]
    scales, zeros = tuple(np.linspace(0.01, 0.1, n).astype(np.float32).tolist()), tuple(range(-n, 0))
    by_channel = msgspec.structs.replace(tensor, scales=scales, zero_points=zeros, axis=3)
    tensors = tuple(by_channel if t.index == tensor.index else t for t in graph.tensors)
    graph = graph._replace(tensors=tensors)
    observed = find_observed_input(graph, "model")
    tapped = TappedInterpreter(data, graph, ["relu1"], observed, None, opener(runtime, {"num_threads": 1}))
    tapped.allocate()
    assert tapped.readings == ("copied",)
    for feed in feeds_of(data):
        _, (_, found) = observe(tapped, feed)
        stored = tapped.interpreter.get_tensor(tensor.index)[0].transpose(2, 0, 1).astype(np.float32)
        expected = np.float32(scales)[:, None, None] * (stored - np.float32(zeros)[:, None, None])
        assert_array_equal(found, expected)


@each_runtime
def test_input_is_planar_as_on_the_other_runtime(runtime):
    """The same picture gives the same tap 0, statistics and fingerprint as (C, H, W) from anywhere."""
    data = model_of("float")
    tapped = tapped_of(data, runtime)
    by_hand = TapReducer((input_spec("image", (3, 8, 6)),), ())
    assert tapped.specs[0] == input_spec("image", (3, 8, 6))
    for feed in feeds_of(data):
        (frame,) = feed.values()
        reduction, _ = observe(tapped, feed)
        by_hand.load_input(frame[0].transpose(2, 0, 1))
        expected = by_hand.reduce()
        assert reduction.fingerprint == expected.fingerprint
        assert_array_equal(reduction.picture, expected.picture)
        assert reduction.signals[0] == expected.signals[0]


@each_runtime
@both_kernels
def test_memory_that_moves_when_the_model_runs(runtime, xnnpack):
    """What comes behind the repetition gets memory only when the model runs, and all else goes with it."""
    data = model_of("moving")
    options = {} if xnnpack else builtin_kernels(runtime)
    tapped, whole = tapped_of(data, runtime, ["relu1"], **options), tapped_of(data, runtime, **options)
    plain = open_plain(data, runtime, **options)
    plain.allocate_tensors()
    rng, (image, more), (output,) = np.random.default_rng(0), *read_model(data)[2:4]
    places = set()
    for times in (0, 40, 3, 0, 90, 0):
        feed = {
            image: rng.normal(size=(1, 4, 6, 3)).astype(np.float32),
            more: np.array([0, times, times, 0], np.int32),
        }
        (expected,) = run(plain, feed)
        _, (found_input, relu1) = observe(tapped, feed)
        assert_array_equal(tapped.interpreter.get_tensor(output), expected)
        assert_array_equal(found_input, feed[image][0].transpose(2, 0, 1))
        tap = taps_of(data)["relu1"].tensor
        assert_array_equal(relu1, values(tap, tapped.interpreter.get_tensor(tap.index)))
        reduction, views = observe(whole, feed)
        assert_array_equal(views[0], found_input)
        places.add(whole._view(image).ctypes.data)
        assert (reduction is None) == (times > 0)  # relu2 has other sizes than were agreed on
    assert len(places) > 1  # even the input was moved


@each_runtime
def test_one_frame_only(runtime):
    data = model_of("float")
    tapped = tapped_of(data, runtime)
    (feed,) = feeds_of(data, 1)
    (index,) = feed
    for shape in ((2, 8, 6, 3), (1, 4, 6, 3)):
        with tapped.reallocating():
            tapped.interpreter.resize_tensor_input(index, shape)
            tapped.interpreter.allocate_tensors()
        assert not tapped.load()
        assert tapped.reduce() is None
    with tapped.reallocating():
        tapped.interpreter.resize_tensor_input(index, (1, 8, 6, 3))
        tapped.interpreter.allocate_tensors()
    again, views = observe(tapped, feed)
    _, expected = observe(tapped_of(data, runtime), feed)
    for view, other in zip(views, expected, strict=True):
        assert_array_equal(view, other)
    assert again is not None


@each_runtime
def test_interpreters_come_and_go_in_any_order(runtime):
    data = model_of("float")
    feeds = feeds_of(data, 3)
    expected = [observe(tapped_of(data, runtime), feed)[0].signals for feed in feeds]
    alive = []
    rng = np.random.default_rng(0)
    for _ in range(60):
        if len(alive) < 2 or rng.random() < 0.5:
            alive.append(tapped_of(data, runtime))
        else:
            alive.pop(rng.integers(len(alive)))
        place = rng.integers(len(feeds))
        for tapped in alive:
            assert_array_equal(observe(tapped, feeds[place])[0].signals, expected[place])


@each_runtime
def test_runtime_may_run_while_addresses_are_known(runtime):
    """The runtime refuses to run or to allocate while an array of its own is alive: none is kept."""
    data = model_of("float")
    tapped = tapped_of(data, runtime)
    feed = feeds_of(data, 1)[0]
    observe(tapped, feed)
    tapped.interpreter.allocate_tensors()
    plain = open_plain(data, runtime)
    plain.allocate_tensors()
    for found, expected in zip(run(tapped.interpreter, feed), run(plain, feed), strict=False):
        assert_array_equal(found, expected)  # the model's own answers come first


@each_runtime
def test_non_finite_values_are_kept(runtime):
    data = model_of("float")
    tapped = tapped_of(data, runtime)
    ((index, frame),) = feeds_of(data, 1)[0].items()
    frame[0, 3, 4, 1], frame[0, 0, 0, 0] = np.nan, -np.inf
    reduction, views = observe(tapped, {index: frame})
    assert reduction.nonfinite[0] == 2
    assert np.isnan(views[0][1, 3, 4])
    assert views[0][0, 0, 0] == -np.inf
    assert reduction.nonfinite[1:].min() > 0


def tensor_of(dtype, shape, scales=(), zero_points=(), axis=0):
    return Tensor(3, "t", shape, dtype, scales, zero_points, axis, constant=False, variable=False)


@given(
    st.sampled_from(["int8", "uint8"]),
    st.tuples(*[st.integers(1, 5)] * 3),
    st.booleans(),
    st.data(),
)
def test_integers_are_read_by_the_definition(dtype, sizes, by_channel, data):
    height, width, channels = sizes
    n = channels if by_channel else 1
    limits = np.iinfo(dtype)
    scale = st.floats(2.0**-20, 2.0**10, width=32)
    scales = tuple(data.draw(st.lists(scale, min_size=n, max_size=n)))
    zero = st.integers(int(limits.min), int(limits.max))
    zeros = tuple(data.draw(st.lists(zero, min_size=n, max_size=n)))
    tensor = tensor_of(dtype, (1, height, width, channels), scales, zeros, 3)
    seed = data.draw(st.integers(0, 999))
    stored = np.random.default_rng(seed).integers(limits.min, limits.max, tensor.shape, dtype, endpoint=True)
    layout = StoredTensor(tensor, "t")
    assert layout.shape == (channels, height, width)
    out = np.empty(layout.shape, np.float32)
    layout.read(layout.planar(stored), out)
    for c, y, x in product(range(channels), range(height), range(width)):
        exact = scales[c % n] * (int(stored[0, y, x, c]) - zeros[c % n])
        assert out[c, y, x] == np.float32(exact)
    assert_array_equal(layout.encode(out), stored)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint8"])
@pytest.mark.parametrize("shape", [(1, 2, 3, 4), (1, 5)])
def test_frames_are_stored_and_read_back(dtype, shape):
    quantised = {} if dtype.startswith("float") else {"scales": (0.25,), "zero_points": (7,)}
    layout = StoredTensor(tensor_of(dtype, shape, **quantised), "t")
    frame = np.arange(np.prod(shape), dtype=np.float32).reshape(layout.shape) / 4
    stored = layout.encode(frame)
    assert layout.fits(stored)
    out = np.empty((*layout.shape, 1, 1)[:3], np.float32)
    layout.read(layout.planar(stored), out)
    assert_array_equal(out.reshape(layout.shape), frame)


def test_what_cannot_be_stored_is_clipped():
    layout = StoredTensor(tensor_of("int8", (1, 4), (0.5,), (-128,)), "t")
    frame = np.array([-1.0, 1e9, np.nan, 0.3], np.float32)
    assert layout.encode(frame).tolist() == [[-128, 127, -128, -127]]
    assert layout.span() == (0.0, 127.5)
    infinite = np.array([np.inf, -np.inf, 3e38, -3e38], np.float32)  # in steps of 0.5 all overflow
    assert layout.encode(infinite).tolist() == [[127, -128, 127, -128]]
    by_channel = StoredTensor(tensor_of("int8", (1, 2), (0.5, 0.125), (0, 0), 1), "t")
    assert by_channel.encode(np.array([np.inf, -np.inf], np.float32)).tolist() == [[127, -128]]
    assert StoredTensor(tensor_of("uint8", (1, 4)), "t").span() == (0.0, 255.0)
    assert StoredTensor(tensor_of("float32", (1, 4)), "t").span() == (0.0, 1.0)


def test_integers_of_a_softmax_become_probabilities():
    tensor = tensor_of("int8", (1, 3), (1 / 256,), (-128,))
    probabilities = read_answer(tensor, np.array([[-128, -64, 62]], np.int8))  # 0 + 64 + 190 of 256
    assert probabilities.sum() == pytest.approx(1.0, abs=1e-6)
    assert probabilities[0, 2] == pytest.approx(190 / 254)
    logits = read_answer(tensor_of("int8", (1, 3), (0.5,), (0,)), np.array([[2, 4, 6]], np.int8))
    assert logits.tolist() == [[1.0, 2.0, 3.0]]
    unsigned = read_answer(tensor_of("uint8", (1, 3), (1 / 256,), (0,)), np.array([[0, 64, 190]], np.uint8))
    assert_array_equal(unsigned, probabilities)
    floats = np.array([[0.2, 0.7]], np.float32)
    assert read_answer(tensor_of("float32", (1, 2)), floats) is floats


def test_only_integers_of_a_softmax_are_scaled():
    logits = np.array([[10, *[-2] * 5, *[-1] * 4]], np.int8)  # sum to -0.8
    found = read_answer(tensor_of("int8", (1, 10), (0.2,), (0,)), logits)
    assert_array_equal(found, np.float32(0.2) * logits.astype(np.float32))
    near_one = np.array([[3, 1, 0]], np.int8)  # sum to 1 by chance
    found = read_answer(tensor_of("int8", (1, 3), (0.26,), (0,)), near_one)
    assert_array_equal(found, np.float32(0.26) * near_one.astype(np.float32))
    sigmoids = read_answer(tensor_of("int8", (1, 2), (1 / 256,), (-128,)), np.array([[72, 52]], np.int8))
    assert sigmoids.tolist() == [[200 / 256, 180 / 256]]
    for dtype, zero in (("int8", -128), ("uint8", 0)):  # 1000 equal classes are 0.256 steps each
        flat = read_answer(tensor_of(dtype, (1, 1000), (1 / 256,), (zero,)), np.full((1, 1000), zero, dtype))
        assert_array_equal(flat, np.zeros((1, 1000)))


def test_observed_input_is_the_first_picture_else_the_first_vector():
    def found(*shapes):
        net = models.Net()
        inputs = [net.tensor(f"in{i}", shape, dtype) for i, (shape, dtype) in enumerate(shapes)]
        outputs = [net.unary("RELU", index, f"relu{index}") for index in inputs]
        return find_observed_input(read_model(net.model(inputs, outputs)), "m").name

    vector, picture = ((1, 4), "float32"), ((1, 4, 4, 3), "float32")
    assert found(vector, picture) == "in1"
    assert found(((1, 4), "int32"), vector) == "in1"
    assert found(((1, 4, 4, 3), "uint8")) == "in0"
    with pytest.raises(ModelError, match=r"m: needs an input .*, has in0 int32\(1, 4\)"):
        found(((1, 4), "int32"))
    with pytest.raises(ModelError, match=r"has in0 float32\(2, 4\)"):
        found(((2, 4), "float32"))


@each_runtime
def test_free_sizes_are_refused(runtime):
    net = models.Net()
    image = net.value("image", (1, 4, 4, 3))
    net.tensors[image][7] = models.Vector("i", [-1, -1, 4, 3])
    data = net.model([image], [net.mean(net.conv(image, "relu1", 4, fused="RELU"), "mean")])
    with pytest.raises(ModelError, match=r"input image: shape .* is not fixed; export it with fixed sizes"):
        tapped_of(data, runtime)


@each_runtime
def test_recorded_specifications_are_kept_or_refused(runtime):
    data = model_of("float")
    specs = (input_spec("image", (3, 8, 6)), tap_spec("relu2", (8, 8, 6), (2, 1, 1)))
    assert tapped_of(data, runtime, ["relu2"], specs).specs == specs
    wrong = (specs[0], tap_spec("relu2", (8, 6, 8)))
    with pytest.raises(MapError, match=r"tap relu2: is \(8, 6, 8\) in the map"):
        tapped_of(data, runtime, ["relu2"], wrong)


@pytest.mark.parametrize(
    ("runtime", "module", "extra"),
    [("litert", "ai_edge_litert", "litert"), ("tflite", "tflite_runtime", "tflite")],
)
def test_missing_package_is_named(runtime, module, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"{module}.interpreter", raising=False)
    with pytest.raises(InputError, match=rf"runtime {runtime}: .*pip install '\.\[{extra}\]'") as e:
        opener(runtime, {})
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("installed", "expected"),
    [({"ai_edge_litert"}, "litert"), ({"tflite_runtime"}, "tflite"), (set(), "litert")],
)
def test_the_runtime_that_is_there_serves_models_of_our_own(installed, expected, monkeypatch):
    monkeypatch.setattr(model_file, "find_spec", lambda name: name if name in installed else None)
    assert model_file.installed_runtime() == expected
    monkeypatch.setattr(model_file, "find_spec", lambda name: name)
    assert model_file.installed_runtime() == "litert"


def test_kind_of_a_model_file():
    assert model_file.is_tflite(model_of("float"))
    assert model_file.is_tflite(b"", "cut/short.TFLITE")
    assert not model_file.is_tflite(onnx_models.cnn(), "model.onnx")


def test_unknown_runtime_is_refused():
    with pytest.raises(InputError, match="runtime: is 'torch', must be one of litert, tflite"):
        opener("torch", {})


def test_numpy_2_with_tflite_runtime_is_named(monkeypatch):
    """Before an interpreter is made: NumPy would print fifty lines about it."""
    module = SimpleNamespace(Interpreter=lambda **options: options)
    monkeypatch.setattr(litert, "import_module", lambda name: module)
    monkeypatch.setattr(np, "__version__", "2.4.6")
    with pytest.raises(InputError, match=r"tflite-runtime: does not work with NumPy 2.4.6: .*'numpy<2'"):
        opener("tflite", {})
    made = {"model_content": b"", "num_threads": 1}
    assert opener("litert", {"num_threads": 1})(b"") == made
    monkeypatch.setattr(np, "__version__", "1.26.4")
    assert opener("tflite", {"num_threads": 1})(b"") == made


def test_schema_field_of_free_sizes():
    """The test above writes a tensor's shape signature by number; it must be none of those read."""
    read = {value for name, value in vars(tflite_schema).items() if name.startswith("TENSOR_")}
    assert 7 not in read


def test_windows_of_frames_differ():
    """Frames that the tests above feed are no copies of each other."""
    for name in ("float", "int8"):
        feeds = feeds_of(model_of(name))
        assert not any(np.array_equal(a[0], b[0]) for a, b in pairwise(feeds))
