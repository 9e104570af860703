"""The neutrality certificate: it passes what reads true, and refuses whatever does not, without a crash."""

from __future__ import annotations

import weakref
from pathlib import Path

import models
import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from maps import minimal_map, with_golden
from tap_models import odd, quantised
from tflite_runs import HANDMADE, RUNTIMES, builtin_kernels, model_of, open_plain, taps_of, values

import edge_monitor.neutrality
from edge_monitor.errors import MapError, ModelError
from edge_monitor.neutrality import certify_neutrality
from edge_monitor.region_map import Runtime, TapNeutrality
from edge_monitor.session_probe import SessionProbe
from edge_monitor.taps import onnx_raw, onnx_session
from edge_monitor.taps.certificate import compare_tap
from edge_monitor.taps.litert import TappedInterpreter, opener
from edge_monitor.taps.onnx_graph import find_candidates, read_graph
from edge_monitor.taps.onnx_prefix import prefix
from edge_monitor.taps.onnx_session import TappedSession
from edge_monitor.taps.tflite_edit import with_outputs
from edge_monitor.taps.untapped_onnx import UntappedOnnx
from edge_monitor.taps.untapped_tflite import UntappedTflite

each_runtime = pytest.mark.parametrize("runtime", RUNTIMES)
NETS = [models.cnn, models.residual_cnn, models.dense, models.two_inputs, models.gated, models.mobilenet]


def some(shape, n=3, seed=1):
    return np.random.default_rng(seed).standard_normal((n, *shape), np.float32)


def fail(*_args, **_options):
    raise RuntimeError("injected\nsecond line")


@pytest.mark.parametrize("build", NETS, ids=lambda build: build.__name__)
def test_onnx_models_are_neutral_at_every_tap(build):
    """Signatures are those of a model that the onnx package extended, further inputs zero."""
    data = build()
    names = list(find_candidates(read_graph(data)))
    found = certify_neutrality(data, taps=names, choose_frames=some)
    assert found.problems == ()
    assert (found.runtime, found.provider) == (Runtime.here("onnx").runtime, "CPUExecutionProvider")
    assert (found.frames, found.verdict) == (3, "equal")
    assert [tap.name for tap in found.taps] == names
    truth = onnx.load_from_string(data)
    observed = next(arg.name for arg in truth.graph.input if arg.name in ("input", "image"))
    truth.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(truth.SerializeToString())
    shapes = {arg.name: [1, *arg.shape[1:]] for arg in session.get_inputs()}
    zeros = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    runs = [session.run(names, zeros | {observed: frame[None]}) for frame in some(shapes[observed][1:])]
    for tap, tensors in zip(found.taps, zip(*runs, strict=True), strict=True):
        assert (tap.dtype, tap.reason, tap.problem) == ("float32", "", "")
        assert tap.max_difference <= tap.tolerance == pytest.approx(1e-5 * np.abs(tensors).max(), rel=1e-3)
        assert tap.signature == pytest.approx(np.mean([np.abs(tensor).mean() for tensor in tensors]))


@each_runtime
@pytest.mark.parametrize("name", HANDMADE)
def test_tensorflow_lite_models_are_neutral_at_every_tap(name, runtime):
    data = model_of(name)
    names = list(taps_of(data))
    found = certify_neutrality(data, runtime=runtime, taps=names)
    assert found.problems == ()
    # The older runtime leaves integers, and memory that moves, to its own kernels.
    alone = runtime == "tflite" and name in ("int8", "moving")
    provider = "no delegate" if alone else "XNNPACK"
    assert (found.runtime, found.provider) == (Runtime.here(runtime).runtime, provider)
    assert (found.frames, found.verdict) == (4, "equal")
    integer = name == "int8"
    for tap in found.taps:
        assert tap.dtype == ("int8" if integer else "float32")
        assert tap.max_difference == 0 if integer else tap.max_difference <= tap.tolerance
        assert (tap.tolerance == 0) == integer


def test_it_is_told_how_each_tap_of_an_onnx_model_is_read(monkeypatch):
    """Nobody sees by the answers that taps are put in order first, which is slower."""

    def readings(data):
        found = certify_neutrality(data)
        assert found.problems == ()
        return {tap.reading for tap in found.taps}

    assert "channels last" in readings(quantised())
    assert readings(models.dense()) == {"plain"}
    with monkeypatch.context() as patch:
        patch.setattr(onnx_raw, "replace_outputs", fail)
        assert readings(quantised()) == {"plain"}
    monkeypatch.setattr(onnx_session, "CPU", ["OtherExecutionProvider"])
    assert readings(quantised()) == {"copied"}


@each_runtime
def test_it_is_told_how_each_tap_of_a_tensorflow_lite_model_is_read(runtime):
    found = certify_neutrality(model_of("int8"), runtime=runtime)
    assert {tap.reading for tap in found.taps} == {"channels last"}


@pytest.mark.parametrize("name", ["net.tflite", "net.onnx"])
def test_the_model_is_read_once_and_named(name, tmp_path, monkeypatch):
    path, reads = tmp_path / name, []
    path.write_bytes(model_of("float") if name.endswith("tflite") else models.cnn())
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: (reads.append(self), read(self))[1])
    assert certify_neutrality(path).problems == ()
    assert reads.count(path) == 1
    path.write_bytes(b"nonsense")
    with pytest.raises(ModelError, match=name):
        certify_neutrality(path)


@each_runtime
def test_the_callers_options_are_certified(runtime):
    data = model_of("int8")
    found = certify_neutrality(data, runtime=runtime, options=builtin_kernels(runtime))
    assert (found.provider, found.problems) == ("no delegate", ())


@each_runtime
def test_values_of_a_quantised_tap_are_the_stored_integers(runtime):
    data = model_of("int8")
    tap = taps_of(data)["relu1"].tensor
    untapped = UntappedTflite(data, "model", runtime, {})
    (frame,) = frames = some((3, 8, 6), 1)
    cut = untapped.open("relu1")
    (answer,) = untapped.answers(cut, frames)
    assert answer[0].dtype == np.int8
    plain = open_plain(with_outputs(data, [tap.index]), runtime, **builtin_kernels(runtime))
    plain.allocate_tensors()
    (observed,) = plain.get_input_details()
    scale, zero = observed["quantization"]
    stored = np.clip(np.rint(frame / np.float32(scale) + zero), -128, 127).astype(np.int8)
    plain.set_tensor(observed["index"], stored.transpose(1, 2, 0)[None])
    plain.invoke()
    expected = plain.get_tensor(tap.index).transpose(0, 3, 1, 2)
    found = untapped.values(answer)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 1  # built-in kernels round otherwise
    assert (found == expected).mean() > 0.9
    assert values(tap, answer[0]).shape == found.shape[1:]


def altered(monkeypatch, kind, change, at=1):
    """Let a tap be read wrong: ``change`` gets its values."""
    read = kind.values

    def values_of(self):
        tensors = read(self)
        change(tensors[at])
        return tensors

    monkeypatch.setattr(kind, "values", values_of)


def put(value, *, add=False):
    def change(tensor):
        tensor.flat[7] = value + (tensor.flat[7] if add else 0)

    return change


@pytest.mark.parametrize(
    ("change", "difference"),
    [(put(1e-3, add=True), 1e-3), (put(np.nan), np.inf), (put(np.inf), np.inf)],
    ids=["small", "nan", "inf"],
)
def test_a_tap_that_is_read_wrong_is_named(change, difference, monkeypatch):
    altered(monkeypatch, TappedSession, change)
    found = certify_neutrality(models.cnn())
    assert found.taps[1].max_difference == pytest.approx(difference, rel=1e-3)
    assert [tap.verdict for tap in found.taps] == ["equal", "differs", "equal"]
    (problem,) = found.problems
    assert problem.startswith("tap clip2 differs by ")


@each_runtime
def test_one_step_of_one_integer_is_a_difference(runtime, monkeypatch):
    altered(monkeypatch, TappedInterpreter, lambda tensor: np.bitwise_xor(tensor, 1, out=tensor))
    found = certify_neutrality(model_of("int8"), runtime=runtime)
    assert [tap.max_difference for tap in found.taps] == [0, 1, 0]
    assert found.problems == (found.taps[1].problem,)


@each_runtime
def test_memory_that_is_never_read_anew_is_found(runtime, monkeypatch):
    """As a runtime whose tensors moved away from the cached address would leave it."""
    first = []
    read = TappedInterpreter.values

    def stale(self):
        first.append(read(self))
        return first[0]

    monkeypatch.setattr(TappedInterpreter, "values", stale)
    found = certify_neutrality(model_of("float"), runtime=runtime)
    assert {tap.verdict for tap in found.taps} == {"differs"}


def test_rounding_passes_and_is_told_from_equality(monkeypatch):
    altered(monkeypatch, TappedSession, lambda tensor: np.multiply(tensor, 1 + 1e-6, out=tensor))
    found = certify_neutrality(models.cnn())
    assert [tap.verdict for tap in found.taps] == ["equal", "equal within rounding", "equal"]
    assert found.problems == ()


numbers = st.one_of(st.floats(-1e3, 1e3, width=32), st.sampled_from([np.nan, np.inf, -np.inf]))


@settings(deadline=None)
@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=8))
def test_largest_difference_by_the_definition(pairs):
    a, b = np.float32(pairs).T
    found = compare_tap("tap", [a], [b], 0.0, "plain")
    apart = [
        0.0 if x == y or (np.isnan(x) and np.isnan(y)) else abs(float(x) - float(y))
        for x, y in zip(a, b, strict=True)
    ]
    expected = max(np.inf if np.isnan(x) else x for x in apart)
    assert found.max_difference == expected
    largest = max([abs(float(x)) for x in b if np.isfinite(x)], default=0.0)
    assert found.tolerance == pytest.approx(1e-5 * largest)


def test_half_precision_may_round_and_other_shapes_differ():
    half = np.array([1000.0, 2.0], np.float16)
    assert compare_tap("tap", [half], [half], 0.0, "plain").tolerance == pytest.approx(2 * 2**-10 * 1000)
    found = compare_tap("tap", [np.zeros(3)], [np.zeros(2)], 0.0, "plain")
    assert (found.max_difference, found.verdict) == (np.inf, "differs")


def test_answers_that_differ_are_refused(monkeypatch):
    """The probe passed its own check at start; on these frames it answers otherwise."""
    run = SessionProbe.run
    monkeypatch.setattr(SessionProbe, "run", lambda self, *args: [0.9 * x for x in run(self, *args)])
    found = certify_neutrality(models.cnn())
    assert found.verdict == "differs"
    (problem,) = found.problems
    assert problem.startswith("answers differ by ")
    assert [tap.verdict for tap in found.taps] == ["equal"] * 3


def test_a_probe_that_does_not_attach_is_refused_with_its_reason(monkeypatch):
    run = TappedSession.run
    monkeypatch.setattr(TappedSession, "run", lambda self, feed: [0.9 * x for x in run(self, feed)])
    found = certify_neutrality(models.cnn())
    assert (found.verdict, found.taps) == ("differs", ())
    (problem,) = found.problems
    assert problem.startswith("ANSWER_CHANGED: answers to 4 frames differ by")


def test_the_maps_frames_taps_and_self_test_are_used(monkeypatch):
    data = models.cnn()
    region_map = minimal_map(data, ["relu3", "relu1"])
    found = certify_neutrality(data, region_map=region_map)
    assert (found.frames, found.problems) == (3, ())
    signatures = dict(zip(["relu3", "relu1"], region_map.golden.signals.mean(axis=0)[1:], strict=True))
    assert {tap.name: tap.signature for tap in found.taps} == pytest.approx(signatures, rel=1e-5)
    broken = with_golden(region_map, signals=region_map.golden.signals * [1.0, 1.01, 1.0])
    (problem,) = certify_neutrality(data, region_map=broken).problems
    assert problem.startswith("SELF_TEST_FAILED: signal of tap relu3 is off by")
    with pytest.raises(MapError, match="belongs to model"):
        certify_neutrality(models.cnn(seed=1), region_map=region_map)


def test_self_test_on_another_runtime_says_so():
    data = models.cnn()
    region_map = minimal_map(data)
    elsewhere = msgspec.structs.replace(region_map.neutrality, runtime="onnxruntime 0.1")
    broken = with_golden(region_map, signals=region_map.golden.signals * 1.01)
    (problem,) = certify_neutrality(
        data, region_map=msgspec.structs.replace(broken, neutrality=elsewhere)
    ).problems
    here = Runtime.here("onnx").runtime
    assert problem.endswith(f"; the map was recorded on onnxruntime 0.1, this is {here}")


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((3, 3, 8, 8), np.float32),
        np.zeros((0, 3, 16, 16)),
        np.array(1.0),
        np.full((3, 3, 16, 16), "a"),
    ],
    ids=["shape", "none", "scalar", "letters"],
)
def test_golden_frames_that_do_not_fit_are_a_flag(frames):
    data = models.cnn()
    found = certify_neutrality(data, region_map=with_golden(minimal_map(data), frames=frames))
    assert (found.frames, found.verdict, found.taps) == (0, "not compared", ())
    (problem,) = found.problems
    assert problem.startswith("SELF_TEST_FAILED: golden.frames")


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, np.bool_])
def test_golden_frames_of_another_number_type_are_taken_as_they_are(dtype):
    data = models.cnn()
    frames = np.random.default_rng(0).integers(0, 2, (3, 3, 16, 16)).astype(np.float32)
    region_map = with_golden(minimal_map(data, frames=frames), frames=frames.astype(dtype))
    assert certify_neutrality(data, region_map=region_map).problems == ()


def test_a_cut_model_that_cannot_be_run_leaves_its_tap_unknown(monkeypatch):
    def cut(data, name):
        return fail() if name == "clip2" else prefix(data, name)

    monkeypatch.setattr("edge_monitor.taps.untapped_onnx.prefix", cut)
    found = certify_neutrality(models.cnn())
    assert found.problems == ("tap clip2 could not be compared: injected",)
    assert [tap.verdict for tap in found.taps] == ["equal", "not compared", "equal"]
    assert found.taps[1].signature > 0


@each_runtime
def test_a_model_that_keeps_state_cannot_be_certified(runtime, monkeypatch):
    """The answers are compared all the same."""

    def refuse(_data, _tensors):
        raise ModelError("model", "keeps state from frame to frame (ASSIGN_VARIABLE); it cannot be cut")

    monkeypatch.setattr("edge_monitor.taps.untapped_tflite.prefix", refuse)
    found = certify_neutrality(model_of("float"), runtime=runtime)
    assert found.verdict == "equal"
    assert {tap.verdict for tap in found.taps} == {"not compared"}
    assert len(found.problems) == 3
    assert "keeps state" in found.problems[0]


BREAKS = {
    "untapped": lambda patch: patch.setattr(UntappedOnnx, "open", fail),
    "tap values": lambda patch: patch.setattr(SessionProbe, "tap_values", fail),
    "probe's run": lambda patch: patch.setattr(SessionProbe, "run", fail),
    "comparison": lambda patch: patch.setattr(edge_monitor.neutrality, "certify", fail),
}


@pytest.mark.parametrize("broken", BREAKS)
def test_failures_while_certifying_are_problems(broken, monkeypatch):
    BREAKS[broken](monkeypatch)
    found = certify_neutrality(models.cnn())
    assert found.taps == ()
    assert found.problems == ("the frames could not be compared: injected",)


def test_a_probe_that_detaches_meanwhile_is_refused(monkeypatch):
    reduce, calls = TappedSession.reduce, []

    def second_frame_fails(self):
        calls.append(self)
        return fail() if len(calls) == 6 else reduce(self)  # four at start

    monkeypatch.setattr(TappedSession, "reduce", second_frame_fails)
    found = certify_neutrality(models.cnn())
    assert found.problems == (
        "PROBE_DETACHED: RuntimeError: injected",
        "the frames could not be compared: probe: did not observe frame 1",
    )


def test_models_that_cannot_be_run_or_tapped_are_refused_as_by_the_probe():
    with pytest.raises(ModelError, match="not a whole ONNX model"):
        certify_neutrality(b"nonsense")
    with pytest.raises(ModelError, match="no such tap"):
        certify_neutrality(models.cnn(), taps=["relu"])
    with pytest.raises(ModelError, match="no post-activation tensor"):
        certify_neutrality(models.no_activations())


def test_a_tapped_session_that_lost_its_provider_is_refused(monkeypatch):
    """The runtime falls back without an error; the model's own session is as asked for."""

    class Fallen:
        def __init__(self, session):
            self._session = session

        def get_providers(self):
            return ["OtherExecutionProvider"]

        def __getattr__(self, name):
            return getattr(self._session, name)

    def open_fallen(model, options, save_as=None):
        return Fallen(open_plain(model, options, save_as))

    open_plain = onnx_raw._open
    monkeypatch.setattr(onnx_raw, "_open", open_fallen)
    found = certify_neutrality(models.cnn())
    assert found.provider == "CPUExecutionProvider"
    (problem,) = found.problems
    assert problem == "PROBE_DETACHED: RuntimeError: the tapped session does without CPUExecutionProvider"


@pytest.mark.parametrize("providers", [None, [("CPUExecutionProvider", {})]])
def test_providers_are_compared_however_they_are_given(providers):
    options = {} if providers is None else {"providers": providers}
    assert certify_neutrality(models.cnn(), options=options).problems == ()


@each_runtime
def test_a_delegate_that_cannot_be_built_for_the_taps_is_refused(runtime, monkeypatch):
    data = model_of("float")

    def picky(*args):
        make = opener(*args)
        return lambda model: make(model) if model == data else fail()

    monkeypatch.setattr("edge_monitor.interpreter_probe.opener", picky)
    found = certify_neutrality(data, runtime=runtime)
    assert found.problems == ("PROBE_DETACHED: RuntimeError: injected",)
    assert (found.provider, found.verdict, found.taps) == ("XNNPACK", "not compared", ())


@each_runtime
def test_one_interpreter_is_alive_at_a_time(runtime, monkeypatch):
    """A delegate may serve no two."""
    alive, others = weakref.WeakSet(), []

    def counting(*args):
        make = opener(*args)

        def open_interpreter(data):
            others.append(len(alive))
            interpreter = make(data)
            alive.add(interpreter)
            return interpreter

        return open_interpreter

    for module in ("edge_monitor.interpreter_probe", "edge_monitor.taps.untapped_tflite"):
        monkeypatch.setattr(f"{module}.opener", counting)
    assert certify_neutrality(model_of("float"), runtime=runtime).problems == ()
    assert others == [0] * 7  # plain, tapped, tapped anew; plain again, three prefixes


def test_a_problem_is_told_in_words():
    def tap(difference, reason=""):
        return TapNeutrality("relu", "int8", difference, 0.5, 1.0, reason)

    assert (tap(0.5).verdict, tap(0.5).problem) == ("equal within rounding", "")
    assert tap(0.75).problem == ("tap relu differs by 0.75 from the model that ends there, tolerated are 0.5")
    assert tap(None, "why").problem == "tap relu could not be compared: why"


def test_a_model_of_half_precision_is_certified():
    """Its input takes float16, and frames are float32 until then."""
    found = certify_neutrality(odd(dtype=onnx.TensorProto.FLOAT16))
    assert found.problems == ()
    assert {tap.dtype for tap in found.taps} == {"float16"}


def test_a_runtime_that_does_not_tell_its_provider_is_certified_all_the_same(monkeypatch):
    def fail(*_args):
        raise AttributeError("injected")

    monkeypatch.setattr(UntappedOnnx, "provider", fail)
    found = certify_neutrality(models.cnn())
    assert (found.provider, found.problems) == ("unknown", ())
