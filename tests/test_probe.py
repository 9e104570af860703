"""The probe is a drop-in: same answers, same errors, and nothing of its own ever reaches the caller."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import models
import msgspec
import naive
import numba
import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from maps import minimal_map, with_golden
from onnx import TensorProto, helper
from tap_models import odd

from edge_monitor.errors import InputError, MapError, ModelError
from edge_monitor.kernels.output import summarize_output
from edge_monitor.pipeline import Monitor
from edge_monitor.probe import Probe
from edge_monitor.taps.certificate import Certificate, golden_frames
from edge_monitor.taps.governor import ladder
from edge_monitor.taps.onnx_session import SHORT, TappedSession
from edge_monitor.taps.output import OutputSummarizer
from edge_monitor.types import OutputSummary

DATA = Path(os.environ.get("EDGE_MONITOR_DATA", Path(__file__).parents[2] / "shared" / "data"))
RESNET8 = DATA / "mlperf_tiny" / "resnet8_float.onnx"
CIFAR10 = DATA / "cifar10_test_500.npz"


class Recorder:
    """Takes rows and events; raises when told to."""

    def __init__(self):
        self.rows, self.events, self.fail_row, self.fail_event = [], [], False, False

    def on_row(self, row):
        if self.fail_row:
            raise RuntimeError("row refused")
        self.rows.append(row)

    def on_event(self, event):
        self.events.append(event)
        if self.fail_event:
            raise RuntimeError("event refused")

    @property
    def codes(self):
        return [event.code for event in self.events]


@pytest.fixture
def recorder():
    return Recorder()


def frames(n=6, shape=(1, 3, 16, 16), seed=0):
    return np.random.default_rng(seed).standard_normal((n, *shape), np.float32)


def threads(n):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n
    return options


def session_of(data):
    return onnxruntime.InferenceSession(data, threads(1))


def probe_of(recorder, data=None, **options):
    data = models.cnn() if data is None else data
    options = {"sess_options": threads(1)} | options
    return Probe.onnx(data, on_row=recorder.on_row, on_event=recorder.on_event, **options)


def wrapped(recorder, data=None, **options):
    data = models.cnn() if data is None else data
    session = onnxruntime.InferenceSession(data, options.get("sess_options", threads(1)))
    return Probe.wrap(session, model=data, on_row=recorder.on_row, on_event=recorder.on_event, **options)


both_ways = pytest.mark.parametrize("make", [probe_of, wrapped], ids=["onnx", "wrap"])


@both_ways
def test_answers_are_the_untapped_models(make, recorder):
    data = models.cnn()
    plain = session_of(data)
    probe = make(recorder)
    for frame in frames():
        (found,) = probe.run(None, {"input": frame})
        (expected,) = plain.run(None, {"input": frame})
        np.testing.assert_array_equal(found, expected)
        assert found.flags.writeable
    assert len(recorder.rows) == 6
    assert probe.certificate == Certificate(max_difference=0.0, tolerance=1e-5, frames=4, passed=True)


def test_row_holds_what_the_frame_gave(recorder):
    data = models.cnn()
    probe = probe_of(recorder, data, taps=["clip2", "relu3"])
    assert [tap.name for tap in probe.taps] == ["input", "clip2", "relu3"]
    plain = session_of(data)
    for number, frame in enumerate(frames(3)):
        probe.note(t_capture_ns=1000 + number, speed_mps=np.float32(2.5), gear=3, exposure=None)
        probe.run(None, {"input": frame})
        row = recorder.rows[-1]
        probabilities = plain.run(None, {"input": frame})[0].ravel().astype(float)
        assert row.frame == number
        assert row.t_capture_ns == 1000 + number
        assert row.context == {"speed_mps": 2.5, "gear": 3.0}
        assert all(type(value) is float for value in row.context.values())
        assert row.latency_ns > 0
        assert row.signals[0] == pytest.approx(np.abs(frame).mean(), rel=1e-6)
        assert row.spatial.taps.all()
        assert row.output.top1 == probabilities.argmax()
        assert row.output.confidence == pytest.approx(probabilities.max(), rel=1e-6)
        assert row.output.entropy == pytest.approx(-(probabilities * np.log(probabilities)).sum(), rel=1e-6)
    first, second, third = recorder.rows
    assert first.t_ns < second.t_ns - second.latency_ns < second.t_ns < third.t_ns
    assert len({row.fingerprint for row in recorder.rows}) == 3


def test_a_note_that_is_no_number_is_left_out_and_counted(recorder):
    probe = probe_of(recorder)
    probe.note(t_capture_ns="noon", speed_mps="fast", exposure_s=np.float32(0.25), gear=None)
    probe.run(None, {"input": frames(1)[0]})
    (row,) = recorder.rows
    assert (row.t_capture_ns, row.context) == (None, {"exposure_s": 0.25})
    assert (probe.attached, probe.errors) == (True, 2)
    probe.note(t_capture_ns=2**63, speed_mps=10**400, gear=3)
    probe.run(None, {"input": frames(1)[0]})
    assert (recorder.rows[1].t_capture_ns, recorder.rows[1].context) == (None, {"gear": 3.0})
    assert (probe.attached, probe.errors) == (True, 4)


def test_a_map_has_to_be_loaded():
    with pytest.raises(InputError, match="region_map: is a str, not what load_region_map returns"):
        Probe.onnx(models.cnn(), region_map="map.npz", on_row=list)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"on_row": None}, "on_row: is None, which cannot be called"),
        ({"on_event": 5}, "on_event: is 5, which cannot be called"),
        ({"taps": "relu1"}, "taps: are 'relu1', not a list of names"),
        ({"taps": 5}, "taps: are 5, not a list of names"),
        ({"taps": [3]}, r"taps: are \[3\], not a list of names"),
        ({"taps": []}, "taps: is an empty list"),
        ({"taps": ["nix"]}, "nix: no such tap"),
    ],
)
def test_bad_arguments_are_refused_in_one_line_that_begins_with_the_file(given, words, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(models.cnn())
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}: {words}"):
        Probe.onnx(path, **{"on_row": list, **given})


def test_without_a_map_answers_are_compared_on_two_scales():
    """A slightly other model of pixels 0 to 255 may give the same answers to pixels 0 to 1."""
    found = golden_frames((3, 4, 5), None)
    assert [frame.max() > 200 for frame in found] == [True, False, True, False]
    assert found.min() >= 0
    assert golden_frames((3, 4, 5), None, (-1.0, 2.0)).max() <= 2


def test_note_belongs_to_one_call(recorder):
    probe = probe_of(recorder)
    frame = frames(1)[0]
    probe.note(7, speed_mps=1.0)
    probe.run(None, {"input": np.concatenate([frame, frame])})  # not observed, but its note is used up
    probe.run(None, {"input": frame})
    assert recorder.rows[0].t_capture_ns is None
    assert recorder.rows[0].context == {}


@both_ways
@pytest.mark.parametrize("size", [16, 96])
def test_an_input_is_the_callers_again_behind_the_run(make, recorder, size):
    """Copied when short, let go of when long; a memory that is shared can be closed."""
    data = models.cnn(size=size)
    probe, plain = make(recorder, data), session_of(data)
    frame = frames(1, (1, 3, size, size))[0]
    before = sys.getrefcount(frame)
    for array in (frame, frame[..., ::-1], frame.transpose(0, 1, 3, 2)):
        np.testing.assert_array_equal(
            probe.run(None, {"input": array})[0], plain.run(None, {"input": array})[0]
        )
    del array
    assert sys.getrefcount(frame) == before
    assert (probe.attached, len(recorder.rows)) == (True, 3)
    assert (frame.nbytes <= SHORT) == (size == 16)  # both ways are tried


@both_ways
def test_later_runs_leave_earlier_answers_alone(make, recorder):
    probe = make(recorder)
    first, second = frames(2)
    (answer,) = probe.run(None, {"input": first})
    kept = answer.copy()
    row = recorder.rows[0]
    signals, voxels = row.signals.copy(), row.spatial.voxels.copy()
    (other,) = probe.run(None, {"input": second})
    np.testing.assert_array_equal(answer, kept)
    assert not np.shares_memory(answer, other)
    assert not np.array_equal(answer, other)
    np.testing.assert_array_equal(row.signals, signals)
    np.testing.assert_array_equal(row.spatial.voxels, voxels)


def sizes_of_answers():
    """One answer of a size that the frame decides, and one too long to be copied."""
    g = models._Graph(0)
    g.conv("input", "conv1", 3, 5)
    g.node("Relu", ["conv1"], "relu1")
    g.node("NonZero", ["relu1"], "places")
    g.conv("relu1", "long", 5, 5)
    info = [("places", [4, "M"], TensorProto.INT64), ("long", ["N", 5, 16, 16])]
    return g.model([("input", ["N", 3, 16, 16])], info)


@both_ways
def test_answers_of_any_size_are_the_untapped_models(make, recorder):
    data = sizes_of_answers()
    plain, probe = session_of(data), make(recorder, data)
    kept = [(probe.run(None, {"input": frame}), plain.run(None, {"input": frame})) for frame in frames()]
    for found, expected in kept:  # none was written over by a later run
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert len({found[0].shape for found, _ in kept}) > 1
    assert (len(recorder.rows), probe.attached) == (6, True)


@both_ways
@pytest.mark.parametrize("declared", [[2, 3], [2, 0]])
def test_a_model_that_declares_another_size_is_observed(declared, make, recorder):
    """The runtime warns of it and serves what it computed."""
    g = models._Graph(0)
    g.gemm("input", "fc1", 6, 6)
    g.node("Sigmoid", ["fc1"], "sigmoid1")
    g.node("NonZero", ["sigmoid1"], "answer")
    data = g.model([("input", [1, 6])], [("answer", declared, TensorProto.INT64)])
    plain, probe = session_of(data), make(recorder, data)
    for frame in frames(3, (1, 6)):
        (found,), (expected,) = (model.run(None, {"input": frame}) for model in (probe, plain))
        np.testing.assert_array_equal(found, expected)
        assert found.shape == (2, 6)
    assert (probe.attached, len(recorder.rows), recorder.events) == (True, 3, [])


def test_half_precision_is_observed(recorder):
    data = odd(dtype=TensorProto.FLOAT16)
    plain, probe = session_of(data), probe_of(recorder, data)
    frame = frames(1, (1, 3, 21, 15))[0]
    (found,) = probe.feed(frame)
    np.testing.assert_array_equal(found, plain.run(None, {"input": frame.astype(np.float16)})[0])
    assert recorder.rows[0].signals[0] == pytest.approx(np.abs(frame).mean(), rel=1e-2)


@both_ways
def test_looks_like_the_untapped_session(make, recorder):
    data = models.two_inputs()
    plain, probe = session_of(data), make(recorder, data)
    assert [o.name for o in probe.get_outputs()] == [o.name for o in plain.get_outputs()]
    assert [o.shape for o in probe.get_outputs()] == [o.shape for o in plain.get_outputs()]
    assert [i.name for i in probe.get_inputs()] == ["state", "image"]
    assert probe.get_providers() == plain.get_providers()
    with pytest.raises(AttributeError, match="no_such_thing"):
        probe.no_such_thing  # noqa: B018
    feed = {"state": frames(1, (1, 4))[0], "image": frames(1, (1, 3, 12, 12))[0]}
    for names in (None, [], ["winner"], ["winner", "answer"]):
        for found, expected in zip(probe.run(names, feed), plain.run(names, feed), strict=True):
            np.testing.assert_array_equal(found, expected)
            assert found.dtype == expected.dtype
    assert len(recorder.rows) == 4
    assert recorder.rows[0].output.confidence is None  # logits are no probabilities


@both_ways
def test_other_ways_to_run_are_delegated(make, recorder):
    # Two threads: running in the background needs a thread pool.
    probe, frame = make(recorder, sess_options=threads(2)), frames(1)[0]
    (expected,) = session_of(models.cnn()).run(None, {"input": frame})
    values = {"input": onnxruntime.OrtValue.ortvalue_from_numpy(frame)}
    (value,) = probe.run_with_ort_values(None, values)
    np.testing.assert_array_equal(value.numpy(), expected)
    binding = probe.io_binding()
    binding.bind_cpu_input("input", frame)
    binding.bind_output("probabilities")
    probe.run_with_iobinding(binding)
    np.testing.assert_array_equal(binding.copy_outputs_to_cpu()[0], expected)
    done, answers = threading.Event(), []

    def take(outputs, user_data, error):
        answers.append((outputs, user_data, error))
        done.set()

    probe.run_async(None, {"input": frame}, take, "mine")
    assert done.wait(10)
    (outputs, user_data, error) = answers[0]
    assert (len(outputs), user_data, error) == (1, "mine", "")
    np.testing.assert_array_equal(outputs[0], expected)
    assert recorder.rows == []
    assert (probe.attached, probe.unobserved) == (True, 3)
    np.testing.assert_array_equal(probe.run(None, {"input": frame})[0], expected)
    assert [row.frame for row in recorder.rows] == [3]


def test_calls_that_cannot_be_observed_pass_through_and_count(recorder):
    data = models.cnn()
    plain, probe = session_of(data), probe_of(recorder, data)
    frame = frames(1)[0]
    batch = np.concatenate([frame, 2 * frame])
    np.testing.assert_array_equal(probe.run(None, {"input": batch})[0], plain.run(None, {"input": batch})[0])
    probe.run(None, {"input": frame}, onnxruntime.RunOptions())
    probe.run(None, {"input": frame.tolist()})
    assert probe.unobserved == 3
    assert recorder.rows == []
    probe.run(None, {"input": frame})
    assert recorder.rows[0].frame == 3  # frames that passed unseen are missing frames
    assert probe.attached


def test_any_memory_layout_is_taken(recorder):
    data = models.cnn()
    plain, probe = session_of(data), probe_of(recorder, data)
    frame = frames(1)[0]
    read_only = frame.copy()
    read_only.flags.writeable = False
    channels_last = np.ascontiguousarray(frame.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    reversed_rows = frame[:, :, ::-1]
    for layout in (read_only, channels_last, reversed_rows):
        (expected,) = plain.run(None, {"input": np.ascontiguousarray(layout)})
        np.testing.assert_array_equal(probe.run(None, {"input": layout})[0], expected)
    assert len(recorder.rows) == 3
    assert recorder.rows[1].fingerprint == recorder.rows[0].fingerprint != recorder.rows[2].fingerprint


def text_of(error):
    return re.sub("0x[0-9a-f]+", "address", str(error))


BAD_CALLS = {
    "no feed": (None, None),
    "missing input": (None, {}),
    "unknown input": (None, {"image": np.zeros((1, 3, 16, 16), np.float32)}),
    "one input too many": (None, {"input": np.zeros((1, 3, 16, 16), np.float32), "x": np.zeros(1)}),
    "wrong shape": (None, {"input": np.zeros((1, 3, 8, 16), np.float32)}),
    "wrong rank": (None, {"input": np.zeros((3, 16, 16), np.float32)}),
    "wrong dtype": (None, {"input": np.zeros((1, 3, 16, 16), np.float64)}),
    "no array": (None, {"input": "picture"}),
    "unknown output": (["nothing"], {"input": np.zeros((1, 3, 16, 16), np.float32)}),
    "outputs no list": (5, {"input": np.zeros((1, 3, 16, 16), np.float32)}),
}


@both_ways
@pytest.mark.parametrize("call", BAD_CALLS)
def test_errors_of_the_model_reach_the_caller_as_they_are(make, call, recorder):
    plain, probe = session_of(models.cnn()), make(recorder)
    with pytest.raises(Exception) as expected:  # noqa: PT011
        plain.run(*BAD_CALLS[call])
    with pytest.raises(Exception) as found:  # noqa: PT011
        probe.run(*BAD_CALLS[call])
    assert type(found.value) is type(expected.value)
    assert text_of(found.value) == text_of(expected.value)
    assert found.value.__context__ is None
    assert (probe.attached, probe.errors, recorder.events) == (True, 0, [])
    probe.run(None, {"input": frames(1)[0]})
    assert len(recorder.rows) == 1


@both_ways
def test_a_tap_is_as_unknown_as_in_the_untapped_session(make, recorder):
    plain, probe, frame = session_of(models.cnn()), make(recorder), frames(1)[0]
    values = {"input": onnxruntime.OrtValue.ortvalue_from_numpy(frame)}
    for names in (["relu1"], ["probabilities", "clip2"]):
        for call, feed in (("run", {"input": frame}), ("run_with_ort_values", values)):
            with pytest.raises(Exception, match="Invalid output name") as expected:
                getattr(plain, call)(names, feed)
            with pytest.raises(Exception, match="Invalid output name") as found:
                getattr(probe, call)(names, feed)
            assert type(found.value) is type(expected.value)
            assert str(found.value) == str(expected.value)
    assert (probe.attached, probe.errors, recorder.rows) == (True, 0, [])


def failing_gather():
    """Model whose second input may be out of range: an error that only shows while it runs."""
    nodes = [
        helper.make_node("Relu", ["input"], ["relu"]),
        helper.make_node("Gather", ["relu", "index"], ["output"], axis=1),
    ]
    inputs = [
        helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 6]),
        helper.make_tensor_value_info("index", TensorProto.INT64, [2]),
    ]
    outputs = [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", 2])]
    graph = helper.make_graph(nodes, "net", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


@both_ways
def test_errors_inside_the_running_model_reach_the_caller_as_they_are(make, recorder):
    data = failing_gather()
    plain, probe = session_of(data), make(recorder, data)
    feed = {"input": frames(1, (1, 6))[0], "index": np.array([0, 99])}
    with pytest.raises(Exception, match="out of data bounds") as expected:
        plain.run(None, feed)
    with pytest.raises(Exception, match="out of data bounds") as found:
        probe.run(None, feed)
    assert type(found.value) is type(expected.value)
    assert str(found.value) == str(expected.value)
    assert found.value.__context__ is None
    assert (probe.attached, probe.errors, probe.unobserved) == (True, 0, 1)
    feed["index"] = np.array([5, 0])
    np.testing.assert_array_equal(probe.run(None, feed)[0], plain.run(None, feed)[0])
    assert len(recorder.rows) == 1


def fail(*_args, **_kwargs):
    raise RuntimeError("injected\nsecond line")


def break_reducer(probe, monkeypatch):
    monkeypatch.setattr(probe._tapped._reducer, "reduce", fail)


def break_input(probe, monkeypatch):
    monkeypatch.setattr(probe._tapped._reducer, "load_input", fail)


def break_binding(probe, monkeypatch):
    monkeypatch.setattr(probe._tapped, "_inputs", type("Inputs", (), {"__getitem__": fail})())


def break_bound_run(probe, monkeypatch):
    monkeypatch.setattr(probe._tapped.session, "run_with_iobinding", fail)


def break_outputs(probe, monkeypatch):
    monkeypatch.setattr(probe._tapped, "_answers", [type("Answer", (), {"copy": fail})()])


def break_summary(probe, monkeypatch):
    monkeypatch.setattr(probe._summarizer, "summarize", fail)


def break_row(probe, monkeypatch):
    monkeypatch.setattr(probe, "_on_row", fail)


@both_ways
@pytest.mark.parametrize(
    "break_it",
    [
        break_reducer,
        break_input,
        break_binding,
        break_bound_run,
        break_outputs,
        break_summary,
        break_row,
    ],
)
def test_errors_of_the_probe_never_reach_the_caller(make, break_it, recorder, monkeypatch):
    plain, probe = session_of(models.cnn()), make(recorder)
    first, second, third = frames(3)
    probe.run(None, {"input": first})
    break_it(probe, monkeypatch)
    run_plainly, plain_runs = probe._session.run, []
    monkeypatch.setattr(probe._session, "run", lambda *given: plain_runs.append(1) or run_plainly(*given))
    np.testing.assert_array_equal(
        probe.run(None, {"input": second})[0], plain.run(None, {"input": second})[0]
    )
    assert (probe.attached, probe.errors) == (False, 1)
    # An answer that is in hand already is not computed a second time.
    assert len(plain_runs) == (break_it in (break_input, break_binding, break_bound_run, break_outputs))
    assert probe.unobserved == (break_it is not break_row)  # which gave a row
    assert probe.detach_reason.startswith("RuntimeError: injected")
    assert "\n" not in probe.detach_reason
    assert recorder.codes == ["PROBE_DETACHED"]
    assert recorder.events[0].detail == probe.detach_reason
    np.testing.assert_array_equal(probe.run(None, {"input": third})[0], plain.run(None, {"input": third})[0])
    assert len(recorder.rows) == 1
    assert probe.errors == 1


def test_event_callback_that_fails_is_counted_and_goes_no_further(recorder):
    probe = probe_of(recorder)
    recorder.fail_row = recorder.fail_event = True
    (answer,) = probe.run(None, {"input": frames(1)[0]})
    assert answer.shape == (1, 5)
    assert (probe.attached, probe.errors) == (False, 2)
    assert probe.detach_reason == "RuntimeError: row refused"


def test_exception_that_cannot_be_printed_is_survived(recorder):
    class Unprintable(Exception):
        def __str__(self):
            raise ValueError

    def refuse(_row):
        raise Unprintable

    probe = Probe.onnx(models.cnn(), on_row=refuse, on_event=recorder.on_event)
    probe.run(None, {"input": frames(1)[0]})
    assert not probe.attached
    assert "Unprintable" in probe.detach_reason


def test_probe_without_event_callback(monkeypatch):
    rows = []
    probe = Probe.onnx(models.cnn(), on_row=rows.append)
    break_reducer(probe, monkeypatch)
    probe.run(None, {"input": frames(1)[0]})
    assert (probe.attached, probe.errors, rows) == (False, 1, [])


@both_ways
def test_failure_while_attaching_leaves_the_model_serving(make, recorder, monkeypatch):
    monkeypatch.setattr("edge_monitor.session_probe.TappedSession", fail)
    probe = make(recorder)
    assert (probe.attached, probe.errors, probe.taps, probe.certificate) == (False, 1, (), None)
    assert recorder.codes == ["PROBE_DETACHED"]
    (answer,) = probe.run(None, {"input": frames(1)[0]})
    np.testing.assert_array_equal(answer, session_of(models.cnn()).run(None, {"input": frames(1)[0]})[0])
    assert [output.name for output in probe.get_outputs()] == ["probabilities"]


def refuse(*_args, **_options):
    raise MemoryError


def test_failure_without_a_message_is_told_by_its_type(recorder, monkeypatch):
    monkeypatch.setattr("edge_monitor.session_probe.open_session", refuse)
    with pytest.raises(ModelError, match=r"model: cannot be run \(MemoryError\)"):
        probe_of(recorder)


@both_ways
def test_probe_can_be_copied(make, recorder):
    probe = make(recorder)
    assert copy.copy(probe)._session is probe._session
    assert probe._sess is probe._session._sess  # the runtime's own classes ask for it


def test_threads_neither_wait_nor_mix(recorder):
    """While one call is under way the others pass through; every caller gets its own answer."""
    data = models.cnn()
    plain, probe = session_of(data), probe_of(recorder, data)
    inside, go_on = threading.Event(), threading.Event()
    rows = []

    def hold(row):
        inside.set()
        assert go_on.wait(10)
        rows.append(row)

    probe._on_row = hold
    images = frames(9)
    held = []
    holder = threading.Thread(target=lambda: held.extend(probe.run(None, {"input": images[0]})))
    holder.start()
    assert inside.wait(10)
    answers = [probe.run(None, {"input": image})[0] for image in images[1:]]  # would hang if it waited
    go_on.set()
    holder.join(10)
    for image, answer in zip(images, [held[0], *answers], strict=True):
        np.testing.assert_array_equal(answer, plain.run(None, {"input": image})[0])
    assert (len(rows), probe.unobserved) == (1, 8)
    assert rows[0].signals[0] == pytest.approx(np.abs(images[0]).mean(), rel=1e-6)


def test_many_threads_get_right_answers_and_right_rows(recorder):
    data = models.cnn()
    plain, probe = session_of(data), probe_of(recorder, data)
    images = frames(4)
    expected = [plain.run(None, {"input": image})[0] for image in images]
    wrong = []

    def work(index):
        for _ in range(100):
            (answer,) = probe.run(None, {"input": images[index]})
            wrong.extend([] if np.array_equal(answer, expected[index]) else [index])

    workers = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert wrong == []
    assert len(recorder.rows) + probe.unobserved == 400
    assert probe.attached
    numbers = [row.frame for row in recorder.rows]
    assert numbers == sorted(set(numbers))
    calibrated = {}  # rows of the same frame are the same to the bit, whatever ran beside them
    for row in recorder.rows:
        assert calibrated.setdefault(row.fingerprint, row.signals.tobytes()) == row.signals.tobytes()


def test_run_from_inside_a_callback_does_not_hang(recorder):
    probe = probe_of(recorder)
    frame, answers = frames(1)[0], []
    probe._on_row = lambda row: answers.extend(probe.run(None, {"input": frame}))
    (answer,) = probe.run(None, {"input": frame})
    np.testing.assert_array_equal(answers[0], answer)
    assert probe.attached


@both_ways
@pytest.mark.parametrize("build", [models.cnn, models.residual_cnn, models.dense, models.two_inputs])
def test_map_of_the_model_attaches_and_passes_its_self_test(make, build, recorder):
    data = build()
    region_map = minimal_map(data)
    probe = make(recorder, data, region_map=region_map)
    assert (probe.attached, recorder.events) == (True, [])
    assert probe.taps == region_map.taps
    assert probe.certificate.frames == 3
    assert probe.certificate.max_difference <= 1e-6
    assert recorder.rows == []


@both_ways
@pytest.mark.parametrize(("by", "codes"), [(1e-4, []), (1e-2, ["SELF_TEST_FAILED"])])
def test_answers_that_differ_from_the_recorded_ones_fail_the_self_test(make, by, codes, recorder):
    """Rounding of another processor passes; in any case the probe attaches, it changes no answer."""
    data = models.cnn()
    region_map = minimal_map(data)
    outputs = region_map.golden.outputs.copy()
    outputs[1, 2] += by
    probe = make(recorder, data, region_map=with_golden(region_map, outputs=outputs))
    assert probe.attached
    assert probe.certificate.passed
    assert recorder.codes == codes


@pytest.mark.parametrize("value", [np.nan, np.inf, None])
def test_taps_that_change_the_answer_refuse_to_attach(value, recorder, monkeypatch):
    """The tapped session answers differently on one frame: by a little, or by no number at all."""
    run, calls = TappedSession.run, []

    def altered(self, feed):
        outputs = run(self, feed)
        calls.append(feed)
        if len(calls) == 3:
            outputs[0][0, 1] = outputs[0][0, 1] + 1e-4 if value is None else value
        return outputs

    monkeypatch.setattr(TappedSession, "run", altered)
    probe = probe_of(recorder)
    assert (probe.attached, recorder.codes) == (False, ["ANSWER_CHANGED"])
    assert probe.certificate.max_difference == pytest.approx(1e-4 if value is None else np.inf, rel=1e-2)
    assert [output.name for output in probe._session.get_outputs()] == ["probabilities"]


@pytest.mark.parametrize(("factor", "passes"), [(1.0005, True), (1.002, False), (np.nan, False)])
def test_self_test_compares_golden_signals(factor, passes, recorder):
    data = models.cnn()
    region_map = minimal_map(data)
    signals = region_map.golden.signals.copy()
    signals[:, 2] *= factor
    probe = probe_of(recorder, data, region_map=with_golden(region_map, signals=signals))
    assert probe.attached
    assert recorder.codes == ([] if passes else ["SELF_TEST_FAILED"])
    assert passes or "clip2" in recorder.events[0].detail
    probe.run(None, {"input": frames(1)[0]})
    assert len(recorder.rows) == 1


def test_map_of_another_model_is_refused(recorder):
    region_map = minimal_map(models.cnn(seed=0))
    with pytest.raises(MapError, match=r"belongs to model .*, this one is"):
        probe_of(recorder, models.cnn(seed=1), region_map=region_map)


def test_map_whose_parts_do_not_fit_the_model_is_refused(recorder):
    data = models.cnn()
    region_map = minimal_map(data)
    swapped = msgspec.structs.replace(region_map, taps=(region_map.taps[1], *region_map.taps[1:]))
    with pytest.raises(MapError, match="tap relu1"):
        probe_of(recorder, data, region_map=swapped)


@both_ways
def test_golden_frames_that_do_not_fit_leave_the_model_serving(make, recorder):
    data = models.cnn()
    small = with_golden(minimal_map(data), frames=np.zeros((3, 3, 8, 8), np.float32))
    probe = make(recorder, data, region_map=small)
    assert (probe.attached, probe.certificate, recorder.codes) == (False, None, ["SELF_TEST_FAILED"])
    assert probe.detach_reason.startswith("golden.frames: shape is (3, 3, 8, 8), the model's input is")
    (frame,) = frames(1)
    np.testing.assert_array_equal(
        probe.run(None, {"input": frame})[0], session_of(data).run(None, {"input": frame})[0]
    )


def test_answers_of_changing_length(recorder):
    """As of a detector, which lists what it found."""
    g = models._Graph(0)
    g.gemm("input", "fc1", 6, 6)
    g.node("Relu", ["fc1"], "relu1")
    g.node("NonZero", ["relu1"], "found")
    data = g.model([("input", ["N", 6])], [("found", [2, None], TensorProto.INT64)])
    probe = probe_of(recorder, data)
    assert (probe.attached, recorder.events) == (True, [])
    assert probe.certificate.max_difference == 0.0
    lengths = {probe.run(None, {"input": frame})[0].shape for frame in frames(6, (1, 6))}
    assert len(lengths) > 1
    assert len(recorder.rows) == 6


def test_what_cannot_be_observed_is_refused_at_the_start(recorder, tmp_path):
    with pytest.raises(ModelError, match="no such tap; nearest: relu3, relu1, clip2"):
        probe_of(recorder, taps=["relu"])
    with pytest.raises(ModelError, match="no post-activation tensor"):
        probe_of(recorder, models.no_activations())
    with pytest.raises(ModelError, match=r"none.onnx: No such file"):
        probe_of(recorder, tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="not a whole ONNX model"):
        probe_of(recorder, b"nonsense")
    with pytest.raises(ModelError, match="is not fixed"):
        probe_of(recorder, models.cnn(size="S"))
    with pytest.raises(InputError, match="give one of the two"):
        probe_of(recorder, taps=["relu1"], region_map=minimal_map(models.cnn()))
    with pytest.raises(ModelError, match=r"has outputs \['logits'\], the session has \['probabilities'\]"):
        Probe.wrap(session_of(models.cnn()), model=models.dense(), on_row=recorder.on_row)


def test_session_options_are_the_callers(recorder):
    options = threads(2)
    probe = probe_of(recorder, sess_options=options, providers=["CPUExecutionProvider"])
    assert probe.get_session_options().intra_op_num_threads == 2
    session = onnxruntime.InferenceSession(models.cnn(), options)
    wrap = Probe.wrap(session, model=models.cnn(), on_row=recorder.on_row)
    assert wrap._session is session
    assert wrap._tapped.session.get_session_options().intra_op_num_threads == 2
    with pytest.raises(TypeError):
        probe_of(recorder, sess_options="fast")


def test_non_finite_values_are_counted(recorder):
    probe = probe_of(recorder)
    frame = frames(1)[0]
    frame[0, 1, 3, 4] = np.nan
    probe.run(None, {"input": frame})
    row = recorder.rows[0]
    assert row.nonfinite[0] == 1
    assert row.output == OutputSummary(top1=-1, confidence=None, entropy=None, nonfinite=5)
    assert probe.attached


VALUES = st.floats(0, 1, width=32) | st.sampled_from([np.nan, np.inf, -np.inf, -1e-6, 2.0])


@given(arrays(np.float32, st.integers(0, 40), elements=VALUES))
def test_output_summary_is_the_definition(values):
    check_summary(values)


@given(arrays(np.float64, st.integers(1, 40), elements=st.floats(0, 1)), st.floats(0.9985, 1.0015))
def test_output_summary_of_probabilities_is_the_definition(values, total):
    values = values + 1e-9
    check_summary((values * (total / values.sum())).astype(np.float32))


@pytest.mark.parametrize("values", [[-0.5, 1.5], [0.5, 0.5], [1.0], [0.3, 0.3], [0.0, 1.0], [2.0, -1.0], []])
def test_output_summary_of_examples_is_the_definition(values):
    check_summary(np.array(values, np.float32))


def check_summary(values):
    expected = naive.output_summary(values)
    total = values.astype(np.float64).sum() if np.isfinite(values).all() else 0.0
    if abs(abs(total - 1) - 1e-3) < 1e-9:
        return  # on the very border the order of summation decides
    found = np.empty(3)
    nonfinite = summarize_output(values, found)
    np.testing.assert_allclose([*found, nonfinite], expected, rtol=1e-12, atol=1e-12)


def test_output_summary_of_other_types():
    summarize = OutputSummarizer().summarize
    assert summarize(np.array([[3]])) is None
    assert summarize(np.array([1.0], np.float32)) == OutputSummary(0, None, None, 0)  # one score is no choice
    assert summarize(np.array([[0.25, 0.75]], np.float16)).top1 == 1
    half = summarize(np.full((1, 2, 1, 1), 0.5))
    assert half.entropy == pytest.approx(np.log(2))
    assert summarize(np.array([0.0, 1.0], np.float32)).entropy == 0.0
    assert summarize(np.array([1.0, 1e300])).nonfinite == 1  # and NumPy warns nobody


@pytest.mark.skipif(not (RESNET8.exists() and CIFAR10.exists()), reason=f"no real data in {DATA}")
@both_ways
def test_resnet8_keeps_its_accuracy(make, recorder):
    data = RESNET8.read_bytes()
    images, labels = (np.load(CIFAR10)[key] for key in ("images", "labels"))
    plain, probe = session_of(data), make(recorder, data)
    right = 0
    for image, label in zip(images, labels, strict=True):
        feed = {"input": np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32)}
        (answer,) = probe.run(None, feed)
        np.testing.assert_array_equal(answer, plain.run(None, feed)[0])
        right += int(answer.argmax() == label)
    assert right / len(labels) == 0.89
    assert len(recorder.rows) == len(labels)
    assert [row.output.top1 for row in recorder.rows[:3]] == [3, 8, 8]


# The governor.


def rated(data, rate_hz):
    """Map of a stream so fast that any probe is over its budget, or so slow that none is."""
    return minimal_map(data, frame_rate_hz=rate_hz)


def test_within_the_budget_all_taps_are_scanned_in_every_frame(recorder):
    data = models.cnn()
    probe = probe_of(recorder, data, region_map=rated(data, 1e-3))
    for frame in frames(70):
        probe.run(None, {"input": frame})
    assert probe.governor.step == (3, 1)
    assert all(row.spatial.taps.all() for row in recorder.rows)


def test_over_budget_voxels_are_scanned_less_and_signals_never(recorder):
    """Fewer taps at a time, then fewer frames; what is still read is what an unhurried probe reads."""
    data = models.cnn()
    unhurried = Recorder()
    hurried = probe_of(recorder, data, region_map=rated(data, 1e7))
    calm = probe_of(unhurried, data, region_map=rated(data, 1e-3))
    for frame in frames(64 * 8):
        (found,), (expected,) = hurried.run(None, {"input": frame}), calm.run(None, {"input": frame})
        np.testing.assert_array_equal(found, expected)
    assert hurried.governor.step == (2, 8)
    scanned = [0 if row.spatial is None else int(row.spatial.taps.sum()) for row in recorder.rows]
    assert scanned[:64] == [4] * 64
    assert scanned[64:128] == [3] * 64
    assert scanned[128:192] == [3, 0] * 32
    for row, whole in zip(recorder.rows, unhurried.rows, strict=True):
        np.testing.assert_allclose(row.signals, whole.signals, rtol=1e-6)  # added up in another order
        np.testing.assert_array_equal(row.picture, whole.picture)
        if row.spatial is not None:
            of_tap = np.repeat(row.spatial.taps, [tap.n_voxels for tap in hurried.taps])
            np.testing.assert_array_equal(row.spatial.voxels[of_tap], whole.spatial.voxels[of_tap])
            assert np.isnan(row.spatial.voxels[~of_tap]).all()


def test_what_is_read_before_the_run_is_on_the_budget_too(recorder, monkeypatch):
    data = models.cnn()
    probe = probe_of(recorder, data, region_map=rated(data, 30.0))
    load, costs_ns = probe._tapped.load, []
    monkeypatch.setattr(probe._tapped, "load", lambda frame: (time.sleep(2e-3), load(frame)))
    monkeypatch.setattr(probe.governor, "spent", costs_ns.append)
    probe.run(None, {"input": frames(1)[0]})
    assert costs_ns[0] >= 2_000_000


@pytest.mark.parametrize("step", ladder(4))
def test_frozen_activations_are_found_at_every_step(step, recorder, monkeypatch):
    data = models.cnn()
    region_map = rated(data, 30.0)
    probe = probe_of(recorder, data, region_map=region_map)
    monkeypatch.setattr(probe.governor, "step", step)
    monkeypatch.setattr(probe.governor, "spent", lambda _: None)
    tapped, (first, *others) = probe._tapped, frames(20)
    probe.run(None, {"input": first})
    frozen = [memory.copy() for memory in tapped._memory]
    run = tapped.run

    def run_and_freeze(feed):
        answer = run(feed)
        for memory, values in zip(tapped._memory, frozen, strict=True):
            np.copyto(memory, values)
        return answer

    monkeypatch.setattr(tapped, "run", run_and_freeze)
    for frame in others:
        probe.run(None, {"input": frame})
    monitor = Monitor(region_map)
    reports = [monitor.step(row) for row in recorder.rows]
    assert [report.vitals.stale for report in reports] == list(range(20))


def test_without_a_map_nothing_is_saved(recorder):
    """Calibration needs all there is, and a stream's rate is not known before."""
    probe = probe_of(recorder)
    for frame in frames(130):
        probe.run(None, {"input": frame})
    assert probe.governor is None
    assert all(row.spatial.taps.all() for row in recorder.rows)


def test_a_monitor_lives_with_what_a_hurried_probe_sends(recorder):
    data = models.cnn()
    region_map = rated(data, 1e7)
    probe = probe_of(recorder, data, region_map=region_map)
    for frame in frames(64 * 4):
        probe.run(None, {"input": frame})
    monitor = Monitor(region_map)
    reports = [monitor.step(row) for row in recorder.rows]
    assert all(np.isfinite(row.signals).all() for row in recorder.rows)
    partial = next(i for i, row in enumerate(recorder.rows) if row.spatial and not row.spatial.taps.all())
    of_tap = np.repeat(recorder.rows[partial].spatial.taps, [tap.n_voxels for tap in probe.taps])
    assert np.isnan(reports[partial].regions.z[~of_tap]).all()
    assert np.isfinite(reports[partial].regions.z[of_tap]).all()
    assert reports[partial + 1].frame == partial + 1


@pytest.mark.native
def test_a_machine_under_full_load_loses_no_frame_and_no_scan(recorder):
    """Two busy processes per processor take time, but none of the probe's."""
    data = models.cnn()
    probe = probe_of(recorder, data, region_map=rated(data, 30.0))
    plain = session_of(data)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * os.cpu_count())]
    try:
        for frame in frames(300):
            (found,) = probe.run(None, {"input": frame})
            np.testing.assert_array_equal(found, plain.run(None, {"input": frame})[0])
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert probe.attached
    assert [row.frame for row in recorder.rows] == list(range(300))
    assert all(np.isfinite(row.signals).all() for row in recorder.rows)
    if not numba.config.DISABLE_JIT:  # kernels as plain Python are over any budget
        assert probe.governor.step == (3, 1)
        assert all(row.spatial.taps.all() for row in recorder.rows)
