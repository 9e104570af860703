"""The probe is a drop-in for the interpreter: same answers, same errors, and nothing of its own shows."""

from __future__ import annotations

import copy
import gc
import re
import subprocess
import sys
import threading
import time
import weakref
from importlib.util import find_spec
from pathlib import Path

import models
import msgspec
import numpy as np
import pytest
import tflite_models
from maps import neutral_map, with_golden
from numpy.testing import assert_array_equal
from tflite_runs import (
    ALL,
    CIFAR10,
    RESNET8,
    RUNTIMES,
    builtin_kernels,
    feeds_of,
    model_of,
    needs_data,
    open_plain,
    run,
    taps_of,
    values,
)

from edge_monitor.config import FrameSettings
from edge_monitor.errors import InputError, MapError, ModelError
from edge_monitor.offline.calibrate import calibrate
from edge_monitor.offline.observe import observe
from edge_monitor.pipeline import Monitor
from edge_monitor.probe import Probe
from edge_monitor.region_map import Golden, Runtime
from edge_monitor.service import Watch, open_probe
from edge_monitor.taps.litert import TappedInterpreter, opener
from edge_monitor.taps.reducer import input_spec, tap_spec
from edge_monitor.taps.tflite_file import read_model

each_runtime = pytest.mark.parametrize("runtime", RUNTIMES)


class Recorder:
    """Takes rows and events."""

    def __init__(self):
        self.rows, self.events = [], []

    @property
    def codes(self):
        return [event.code for event in self.events]


@pytest.fixture
def recorder():
    return Recorder()


def probe_of(recorder, runtime, data=None, **options):
    data = model_of("float") if data is None else data
    how = {"on_row": recorder.rows.append, "on_event": recorder.events.append, "num_threads": 1} | options
    return Probe.litert(data, runtime, **how)


def ready(recorder, runtime, data=None, **options):
    probe = probe_of(recorder, runtime, data, **options)
    probe.allocate_tensors()
    return probe


def plain_of(runtime, data=None, **options):
    interpreter = open_plain(model_of("float") if data is None else data, runtime, **options)
    interpreter.allocate_tensors()
    return interpreter


def text_of(error):
    return re.sub("0x[0-9a-f]+", "address", str(error))


@each_runtime
@pytest.mark.parametrize("xnnpack", [True, False], ids=["xnnpack", "builtin"])
@pytest.mark.parametrize("name", ALL)
def test_answers_are_the_untapped_models(name, xnnpack, runtime, recorder):
    data, options = model_of(name), {} if xnnpack else builtin_kernels(runtime)
    every_tap = list(taps_of(data))
    plain, probe = (
        plain_of(runtime, data, **options),
        ready(recorder, runtime, data, taps=every_tap, **options),
    )
    answers = []
    for feed in feeds_of(data, 44):
        found, expected = run(probe, feed), run(plain, feed)
        for one, other in zip(found, expected, strict=True):
            assert_array_equal(one, other)
            assert one.dtype == other.dtype
        answers.append(expected[-1].tobytes())
    assert len(set(answers)) > 20  # of pictures that are all different
    assert len(recorder.rows) == 44
    assert probe.certificate.max_difference == 0.0
    assert (probe.attached, probe.unobserved, recorder.events) == (True, 0, [])
    assert [tap.name for tap in probe.taps[1:]] == every_tap


@each_runtime
@pytest.mark.parametrize("name", ["float", "int8"])
def test_row_holds_what_the_frame_gave(name, runtime, recorder):
    data = model_of(name)
    graph = read_model(data)
    plain, probe = plain_of(runtime, data), ready(recorder, runtime, data)
    assert [tap.name for tap in probe.taps] == ["image", "relu1", "relu2", "silu"]
    for number, feed in enumerate(feeds_of(data)):
        probe.note(t_capture_ns=1000 + number, speed_mps=np.float32(2.5), exposure=None)
        run(probe, feed)
        row = recorder.rows[-1]
        assert (row.frame, row.t_capture_ns, row.context) == (number, 1000 + number, {"speed_mps": 2.5})
        assert row.latency_ns > 0
        indices = [graph.inputs[0], *(taps_of(data)[tap.name].tensor.index for tap in probe.taps[1:])]
        # Inputs and taps are outputs of the tapped model, where they can be asked for.
        read = [values(graph.tensors[index], probe.get_tensor(index)) for index in indices]
        means = [np.abs(value.astype(np.float64)).mean() for value in read]
        np.testing.assert_allclose(row.signals, means, rtol=1e-6)
        (stored,) = run(plain, feed)
        probabilities = values(graph.tensors[graph.outputs[0]], stored).ravel().astype(float)
        probabilities /= probabilities.sum()
        assert row.output.top1 == probabilities.argmax()
        assert row.output.confidence == pytest.approx(probabilities.max(), rel=1e-5)
    first, second, *_ = recorder.rows
    assert first.t_ns < second.t_ns - second.latency_ns < second.t_ns
    assert len({row.fingerprint for row in recorder.rows}) == 4


@each_runtime
@pytest.mark.parametrize("name", ["float", "signature", "two_heads"])
def test_looks_like_the_untapped_interpreter(name, runtime, recorder):
    data = model_of(name)
    plain, probe = open_plain(data, runtime), probe_of(recorder, runtime, data)

    def described(interpreter):
        return repr((interpreter.get_input_details(), interpreter.get_output_details()))

    calls = [
        lambda interpreter: interpreter.invoke(),
        lambda interpreter: interpreter.get_tensor(0),
        lambda interpreter: interpreter.set_tensor(0, np.zeros((1, 8, 6, 3), np.float32)),
        lambda interpreter: interpreter.set_tensor(0, np.zeros((3, 3), np.float64)),
        lambda interpreter: interpreter.resize_tensor_input(99, [1]),
        lambda interpreter: interpreter.get_signature_runner("none"),
        lambda interpreter: interpreter.no_such_thing,
    ]
    for _ in range(2):
        assert described(probe) == described(plain)
        assert probe.get_signature_list() == plain.get_signature_list()
        for call in calls:
            outcomes = []
            for interpreter in (plain, probe):
                try:
                    outcomes.append(np.shape(call(interpreter)))
                except Exception as error:  # noqa: BLE001
                    outcomes.append((type(error), text_of(error)))
            assert outcomes[0] == outcomes[1]
        plain.allocate_tensors()  # before it the interpreter refuses more
        probe.allocate_tensors()
    assert (probe.attached, probe.errors) == (True, 0)


@each_runtime
def test_errors_of_the_runtime_reach_the_caller_as_they_are(runtime, recorder):
    plain, probe = plain_of(runtime), ready(recorder, runtime)
    errors = []
    for interpreter in (plain, probe):
        held = interpreter.tensor(0)()
        with pytest.raises(RuntimeError, match="reference to internal data") as caught:
            interpreter.invoke()
        errors.append(caught.value)
        assert held.shape == (1, 8, 6, 3)
        del held
    assert text_of(errors[0]) == text_of(errors[1])
    assert errors[1].__context__ is None
    assert (probe.attached, probe.errors, probe.unobserved) == (True, 0, 1)
    probe.invoke()
    assert len(recorder.rows) == 1


@each_runtime
def test_input_written_in_place_is_seen(runtime, recorder):
    probe = ready(recorder, runtime)
    probe.tensor(0)()[:] = 2.0
    probe.invoke()
    probe.invoke()  # the input stays in its tensor
    assert [row.signals[0] for row in recorder.rows] == [2.0, 2.0]


@each_runtime
def test_other_sizes_are_served_unobserved(runtime, recorder):
    plain, probe = plain_of(runtime), ready(recorder, runtime)
    (feed,) = feeds_of(model_of("float"), 1)
    (frame,) = feed.values()
    for shape in ((2, 8, 6, 3), (1, 8, 6, 3), (1, 4, 6, 3), (1, 8, 6, 3)):
        for interpreter in (plain, probe):
            interpreter.resize_tensor_input(0, shape)
            with pytest.raises(RuntimeError, match="not ready"):
                interpreter.invoke()
            interpreter.allocate_tensors()
        value = np.resize(frame, shape)
        for _ in range(3):
            assert_array_equal(run(probe, {0: value})[0], run(plain, {0: value})[0])
    assert len(recorder.rows) == 6
    assert probe.unobserved == 2 * 3 + 4  # and a call before each allocation
    assert (probe.attached, probe.errors) == (True, 0)
    expected = recorder.rows[0].signals
    for row in recorder.rows:
        assert_array_equal(row.signals, expected)


@each_runtime
def test_allocation_anew_is_followed(runtime, recorder):
    plain, probe = plain_of(runtime), ready(recorder, runtime)
    rng = np.random.default_rng(0)
    for feed in feeds_of(model_of("float"), 20):
        if rng.random() < 0.5:
            probe.resize_tensor_input(0, (3, 8, 6, 3))
            probe.allocate_tensors()
            probe.resize_tensor_input(0, (1, 8, 6, 3))
        probe.allocate_tensors()
        assert_array_equal(run(probe, feed)[0], run(plain, feed)[0])
        assert recorder.rows[-1].signals[0] == pytest.approx(np.abs(feed[0]).mean(), rel=1e-6)
    assert len(recorder.rows) == 20


@each_runtime
def test_signature_runners_are_observed(runtime, recorder):
    data = model_of("signature")
    plain, probe = open_plain(data, runtime), probe_of(recorder, runtime, data)
    runners = [interpreter.get_signature_runner("serving_default") for interpreter in (plain, probe)]
    assert repr(runners[0].get_input_details()) == repr(runners[1].get_input_details())
    assert list(runners[0].get_output_details()) == list(runners[1].get_output_details())
    frames = [feed[0] for feed in feeds_of(data, 6)]
    for batch in (*frames[:3], np.concatenate(frames * 20), *frames[3:]):
        expected, found = (runner(in0=batch) for runner in runners)
        assert list(found) == list(expected) == ["out0"]
        assert_array_equal(found["out0"], expected["out0"])
    assert len(recorder.rows) == 6
    assert probe.unobserved == 1
    for row, frame in zip(recorder.rows, frames, strict=True):
        assert row.signals[0] == pytest.approx(np.abs(frame).mean(), rel=1e-6)
    again = Recorder()
    by_invoke = ready(again, runtime, data)
    for frame in frames:
        run(by_invoke, {0: frame})
    for row, other in zip(recorder.rows, again.rows, strict=True):
        # After a resize tflite-runtime computes with other kernels.
        np.testing.assert_allclose(row.signals, other.signals, rtol=1e-6)
        assert row.fingerprint == other.fingerprint
    for wrong in ({"in1": frames[0]}, {}, {"in0": frames[0], "in1": frames[0]}):
        errors = []
        for runner in runners:
            with pytest.raises(ValueError, match="nput") as caught:
                runner(**wrong)
            errors.append(str(caught.value))
        assert errors[0] == errors[1]
    only_one, named = probe.get_signature_runner(), runners[0]
    assert_array_equal(only_one(in0=frames[0])["out0"], named(in0=frames[0])["out0"])
    assert (probe.attached, probe.errors) == (True, 0)


@each_runtime
def test_non_finite_values_are_counted(runtime, recorder):
    plain, probe = plain_of(runtime), ready(recorder, runtime)
    (feed,) = feeds_of(model_of("float"), 1)
    feed[0][0, 3, 4, 1] = np.nan
    assert_array_equal(run(probe, feed)[0], run(plain, feed)[0])
    row = recorder.rows[0]
    assert row.nonfinite[0] == 1
    assert row.nonfinite[1:].min() > 0
    assert np.isfinite(row.signals[:2]).all()
    assert row.output.nonfinite == 4
    assert probe.attached


def fail(*_args, **_kwargs):
    raise RuntimeError("injected\nsecond line")


BREAKS = {
    "load": lambda probe, patch: patch.setattr(probe._tapped._reducer, "load_input", fail),
    "find": lambda probe, patch: (probe.allocate_tensors(), patch.setattr(probe._tapped, "_view", fail)),
    "place": lambda probe, patch: (
        probe.allocate_tensors(),
        patch.setattr(probe._tapped._reducer, "place", fail),
    ),
    "reduce": lambda probe, patch: patch.setattr(probe._tapped._reducer, "reduce", fail),
    "summary": lambda probe, patch: patch.setattr(probe._summarizer, "summarize", fail),
    "row": lambda probe, patch: patch.setattr(probe, "_on_row", fail),
}


@each_runtime
@pytest.mark.parametrize("broken", BREAKS)
def test_errors_of_the_probe_never_reach_the_caller(broken, runtime, recorder, monkeypatch):
    plain, probe = plain_of(runtime), ready(recorder, runtime)
    first, second, third = feeds_of(model_of("float"), 3)
    run(probe, first)
    BREAKS[broken](probe, monkeypatch)
    assert_array_equal(run(probe, second)[0], run(plain, second)[0])
    assert (probe.attached, probe.errors) == (False, 1)
    assert probe.unobserved == (broken != "row")  # which was handed over
    assert probe.detach_reason.startswith("RuntimeError: injected")
    assert "\n" not in probe.detach_reason
    assert recorder.codes == ["PROBE_DETACHED"]
    assert_array_equal(run(probe, third)[0], run(plain, third)[0])
    probe.allocate_tensors()
    probe.resize_tensor_input(0, (2, 8, 6, 3))
    probe.allocate_tensors()
    probe.invoke()
    assert (len(recorder.rows), probe.errors, probe.unobserved) == (1, 1, 2 + (broken != "row"))


@each_runtime
def test_failure_while_attaching_leaves_the_model_serving(runtime, recorder, monkeypatch):
    monkeypatch.setattr("edge_monitor.interpreter_probe.TappedInterpreter", fail)
    probe = probe_of(recorder, runtime)
    assert (probe.attached, probe.errors, probe.taps, probe.certificate) == (False, 1, (), None)
    assert recorder.codes == ["PROBE_DETACHED"]
    probe.allocate_tensors()
    (feed,) = feeds_of(model_of("float"), 1)
    assert_array_equal(run(probe, feed)[0], run(plain_of(runtime), feed)[0])
    assert len(probe._interpreter.get_output_details()) == 1
    assert recorder.rows == []


@each_runtime
@pytest.mark.parametrize("broken", ["allocate", "reduce", "reopen"])
def test_one_interpreter_is_alive_at_a_time(broken, runtime, recorder, monkeypatch):
    """Even where vetting fails: a delegate may serve no two."""
    alive, others = weakref.WeakSet(), []

    def counting(*args):
        make = opener(*args)

        def open_interpreter(data):
            others.append(len(alive))
            interpreter = make(data)
            alive.add(interpreter)
            return interpreter

        return open_interpreter

    monkeypatch.setattr("edge_monitor.interpreter_probe.opener", counting)
    monkeypatch.setattr(TappedInterpreter, broken, fail)
    probe = ready(recorder, runtime)
    assert (probe.attached, recorder.codes) == (False, ["PROBE_DETACHED"])
    assert others == [0, 0, 0]


@each_runtime
def test_taps_that_change_the_answer_refuse_to_attach(runtime, recorder, monkeypatch):
    """A tapped model with other weights answers otherwise; the untapped one serves."""
    other = tflite_models.residual_cnn(seed=1)
    build = TappedInterpreter.__init__
    monkeypatch.setattr(TappedInterpreter, "__init__", lambda self, data, *rest: build(self, other, *rest))
    probe = ready(recorder, runtime)
    assert (probe.attached, recorder.codes) == (False, ["ANSWER_CHANGED"])
    assert not probe.certificate.passed
    assert probe.detach_reason.startswith("answers to 4 frames differ by")
    (feed,) = feeds_of(model_of("float"), 1)
    assert_array_equal(run(probe, feed)[0], run(plain_of(runtime), feed)[0])
    assert recorder.rows == []


@each_runtime
def test_probes_come_and_go_in_any_order(runtime, recorder):
    data, rng = model_of("float"), np.random.default_rng(0)
    feeds = feeds_of(data, 3)
    expected = [run(plain_of(runtime, data), feed)[0] for feed in feeds]
    alive = []
    for _ in range(40):
        if len(alive) < 2 or rng.random() < 0.5:
            alive.append(ready(recorder, runtime, data))
        else:
            alive.pop(rng.integers(len(alive)))
        place = rng.integers(3)
        for probe in alive:
            assert_array_equal(run(probe, feeds[place])[0], expected[place])
            assert recorder.rows[-1].signals[0] == pytest.approx(np.abs(feeds[place][0]).mean(), rel=1e-6)
    answer = run(alive[0], feeds[0])[0]
    alive.clear()
    gc.collect()
    assert_array_equal(answer, expected[0])  # what was handed out outlives its interpreter


@each_runtime
def test_later_runs_leave_earlier_answers_alone(runtime, recorder):
    probe = ready(recorder, runtime)
    first, second = feeds_of(model_of("float"), 2)
    (answer,) = run(probe, first)
    kept, row = answer.copy(), recorder.rows[0]
    signals, voxels = row.signals.copy(), row.spatial.voxels.copy()
    assert not np.array_equal(run(probe, second)[0], kept)
    assert_array_equal(answer, kept)
    assert_array_equal(row.signals, signals)
    assert_array_equal(row.spatial.voxels, voxels)


@each_runtime
def test_a_run_beside_another_passes_through(runtime, recorder):
    """While one run's row is being handed over, another thread's run neither waits nor is observed."""
    probe = ready(recorder, runtime)
    plain = plain_of(runtime)
    first, second = feeds_of(model_of("float"), 2)
    inside, go_on, rows = threading.Event(), threading.Event(), []

    def hold(row):
        inside.set()
        assert go_on.wait(10)
        rows.append(row)

    probe._on_row = hold
    holder = threading.Thread(target=run, args=(probe, first))
    holder.start()
    assert inside.wait(10)
    (answer,) = run(probe, second)  # would hang if it waited
    go_on.set()
    holder.join(10)
    assert_array_equal(answer, run(plain, second)[0])
    assert (len(rows), probe.unobserved, probe.attached) == (1, 1, True)
    assert rows[0].signals[0] == pytest.approx(np.abs(first[0]).mean(), rel=1e-6)


@each_runtime
@pytest.mark.parametrize("how", ["allocate", "resize", "signature"])
def test_memory_stays_while_another_thread_reads_it(how, runtime, recorder, monkeypatch):
    data = tflite_models.residual_cnn(signature="serve")
    probe = ready(recorder, runtime, data)
    (feed,) = feeds_of(data, 1)
    moves = {
        "allocate": probe.allocate_tensors,
        "resize": lambda: probe.resize_tensor_input(0, (1, 8, 6, 3)),
        "signature": lambda: probe.get_signature_runner("serve")(in0=feed[0]),
    }
    mover = threading.Thread(target=moves[how], daemon=True)
    reducer, moved = probe._tapped._reducer, []
    reduce = reducer.reduce

    def read():
        monkeypatch.undo()
        mover.start()
        mover.join(0.3)
        moved.append(not mover.is_alive())
        return reduce()

    monkeypatch.setattr(reducer, "reduce", read)
    run(probe, feed)
    mover.join(60)
    assert not mover.is_alive()
    assert moved == [False]
    assert (len(recorder.rows), probe.attached, recorder.events) == (1, True, [])
    assert recorder.rows[0].signals[0] == pytest.approx(np.abs(feed[0]).mean(), rel=1e-6)


@each_runtime
def test_callback_may_use_the_interpreter(runtime, recorder):
    probe = ready(recorder, runtime)

    def use(row):
        recorder.rows.append(row)
        probe.resize_tensor_input(0, (1, 8, 6, 3))
        probe.allocate_tensors()
        probe.invoke()

    probe._on_row = use
    for feed in feeds_of(model_of("float"), 3):
        run(probe, feed)
    assert (len(recorder.rows), probe.unobserved, probe.attached) == (3, 3, True)


@each_runtime
def test_probe_begins_with_a_model_that_has_never_run(runtime, recorder):
    """Golden frames are no past: the first picture has none before it, and no frame is in the input."""
    probe = probe_of(recorder, runtime)
    with pytest.raises(RuntimeError, match="not ready"):
        probe.invoke()
    probe.allocate_tensors()
    for feed in feeds_of(model_of("float"), 2):
        run(probe, feed)
    first, second = (np.isnan(row.picture) for row in recorder.rows)
    assert first.sum() > second.sum()  # statistics of the change from the picture before


def map_of(data, runtime):
    """Map whose golden answers and signals come from the runtime and NumPy alone."""
    graph, taps = read_model(data), taps_of(data)
    image = graph.tensors[graph.inputs[0]]
    names = ["relu1", "silu"]
    specs = [
        input_spec(image.name, (3, 8, 6)),
        *(tap_spec(name, taps[name].shape) for name in names),
    ]
    frames, outputs, signals = [], [], []
    tapped = Recorder()
    probe = ready(tapped, runtime, data, taps=names)
    for feed in feeds_of(data, 3):
        frames.append(values(image, feed[0]))
        outputs.append(run(plain_of(runtime, data), feed)[0].ravel().astype(float))
        run(probe, feed)
        read = [values(taps[name].tensor, probe.get_tensor(taps[name].tensor.index)) for name in names]
        signals.append([np.abs(value.astype(float)).mean() for value in (frames[-1], *read)])
    golden = Golden(np.stack(frames), np.array(outputs), np.array(signals), 1e-5)
    return neutral_map(data, specs, golden)


@each_runtime
@pytest.mark.parametrize("name", ["float", "int8"])
def test_what_integers_cannot_hold_of_a_frame_is_counted(name, runtime, recorder):
    probe = ready(recorder, runtime, model_of(name))
    frame = np.zeros((1, *probe.frame_shape), np.float32)
    probe.feed(frame)
    frame[0, 0, 1, :3] = np.nan, np.inf, -np.inf
    probe.feed(frame)
    probe.feed(np.zeros_like(frame))
    assert [row.nonfinite[0] for row in recorder.rows] == [0, 3, 0]


@each_runtime
def test_what_is_read_before_the_run_is_on_the_budget_too(runtime, recorder, monkeypatch):
    data = model_of("float")
    probe = ready(recorder, runtime, data, region_map=map_of(data, runtime))
    load, costs_ns = probe._tapped.load, []
    monkeypatch.setattr(probe._tapped, "load", lambda frame: (time.sleep(2e-3), load(frame))[1])
    monkeypatch.setattr(probe.governor, "spent", costs_ns.append)
    run(probe, feeds_of(data, 1)[0])
    assert costs_ns[0] >= 2_000_000


@each_runtime
@pytest.mark.parametrize("name", ["float", "int8"])
def test_map_of_the_model_attaches_and_passes_its_self_test(name, runtime, recorder):
    data = model_of(name)
    region_map = map_of(data, runtime)
    probe = probe_of(recorder, runtime, data, region_map=region_map)
    assert (probe.attached, recorder.events, probe.certificate.frames) == (True, [], 3)
    assert probe.taps == region_map.taps
    signals = region_map.golden.signals.copy()
    signals[:, 1] *= 1.01
    probe = probe_of(recorder, runtime, data, region_map=with_golden(region_map, signals=signals))
    assert (probe.attached, recorder.codes) == (True, ["SELF_TEST_FAILED"])
    assert "relu1" in recorder.events[0].detail


@each_runtime
def test_map_that_does_not_fit_is_refused(runtime, recorder):
    data = model_of("float")
    region_map = map_of(data, runtime)
    with pytest.raises(MapError, match="belongs to model"):
        probe_of(recorder, runtime, model_of("int8"), region_map=region_map)
    turned = tap_spec("relu1", (8, 6, 8))
    wrong = msgspec.structs.replace(region_map, taps=(region_map.taps[0], turned, region_map.taps[2]))
    with pytest.raises(MapError, match="tap relu1"):
        probe_of(recorder, runtime, data, region_map=wrong)
    with pytest.raises(InputError, match="give one of the two"):
        probe_of(recorder, runtime, data, region_map=region_map, taps=["relu1"])


@each_runtime
def test_golden_frames_that_do_not_fit_leave_the_model_serving(runtime, recorder):
    data = model_of("float")
    nhwc = with_golden(map_of(data, runtime), frames=np.zeros((3, 8, 6, 3), np.float32))
    probe = ready(recorder, runtime, data, region_map=nhwc)
    assert (probe.attached, probe.certificate, recorder.codes) == (False, None, ["SELF_TEST_FAILED"])
    assert probe.detach_reason.startswith("golden.frames: shape is (3, 8, 6, 3), the model's input is")
    (feed,) = feeds_of(data, 1)
    assert_array_equal(run(probe, feed)[0], run(plain_of(runtime), feed)[0])


@each_runtime
def test_a_delegate_that_can_be_built_but_once(runtime, recorder, monkeypatch):
    """Nothing is left that could serve: one clear error instead of the runtime's own."""

    def once(*args):
        make, made = opener(*args), []

        def open_interpreter(data):
            made.append(data)
            return make(data) if len(made) == 1 else fail()

        return open_interpreter

    monkeypatch.setattr("edge_monitor.interpreter_probe.opener", once)
    with pytest.raises(ModelError, match=r"model: cannot be run \(injected\)"):
        probe_of(recorder, runtime)
    assert recorder.codes == ["PROBE_DETACHED"]


@each_runtime
def test_what_cannot_be_observed_is_refused_at_the_start(runtime, recorder, tmp_path):
    with pytest.raises(ModelError, match="relu9: no such tap; nearest: relu"):
        probe_of(recorder, runtime, taps=["relu9"])
    with pytest.raises(ModelError, match=r"none.tflite: No such file"):
        probe_of(recorder, runtime, tmp_path / "none.tflite")
    for junk in (b"", b"nonsense", models.cnn()):
        with pytest.raises(ModelError, match="not a whole TensorFlow Lite model"):
            probe_of(recorder, runtime, junk)
    with pytest.raises(ModelError, match="not a whole TensorFlow Lite model"):
        probe_of(recorder, runtime, model_of("float")[:2000])
    net = tflite_models.Net()
    image = net.value("image", (1, 4, 4, 3))
    with pytest.raises(ModelError, match="no post-activation tensor"):
        probe_of(recorder, runtime, net.model([image], [net.mean(image, "mean")]))
    with pytest.raises(TypeError):
        probe_of(recorder, runtime, colour="red")
    with pytest.raises(ModelError, match=r"cannot be run \(num_threads should >= 1\)"):
        probe_of(recorder, runtime, num_threads=0)
    with pytest.raises(ModelError, match="is a TensorFlow Lite model"):
        Probe.onnx(model_of("float"), on_row=recorder.rows.append)


@each_runtime
def test_failure_without_a_message_is_told_by_its_type(runtime, recorder, monkeypatch):
    def refuse(*_args):
        raise MemoryError

    monkeypatch.setattr("edge_monitor.interpreter_probe.opener", lambda *_: refuse)
    with pytest.raises(ModelError, match=r"model: cannot be run \(MemoryError\)"):
        probe_of(recorder, runtime)


@each_runtime
def test_probe_and_runner_can_be_copied(runtime, recorder):
    probe = ready(recorder, runtime, model_of("signature"))
    assert copy.copy(probe)._interpreter is probe._interpreter
    runner = probe.get_signature_runner("serving_default")
    assert copy.copy(runner)._runner is runner._runner


@each_runtime
def test_only_a_model_of_one_input_can_be_fed(runtime, recorder):
    net = tflite_models.Net()
    image, vector = net.value("image", (1, 4, 4, 3)), net.value("vector", (1, 4))
    outputs = [
        net.mean(net.conv(image, "relu1", 4, fused="RELU"), "mean"),
        net.unary("RELU", vector, "relu2"),
    ]
    probe = ready(recorder, runtime, net.model([image, vector], outputs), taps=["relu1"])
    with pytest.raises(ModelError, match="model: needs image, vector; only one input can be fed"):
        probe.feed(np.zeros((1, 3, 4, 4), np.float32))
    assert recorder.rows == []


@pytest.mark.parametrize("name", ["net.tflite", "net.onnx"])
def test_model_of_our_own_is_read_once_and_named(name, recorder, tmp_path, monkeypatch):
    path, reads = tmp_path / name, []
    path.write_bytes(model_of("float") if name.endswith("tflite") else models.cnn())
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: (reads.append(self), read(self))[1])
    probe = Probe.open(path, on_row=recorder.rows.append)
    assert reads.count(path) == 1
    probe.feed(np.zeros((1, *probe.frame_shape), np.float32))
    assert len(recorder.rows) == 1
    path.write_bytes(b"nonsense")
    with pytest.raises(ModelError, match=re.escape(str(path))):
        Probe.open(path, on_row=recorder.rows.append)


@pytest.mark.parametrize(("runtime", "module"), [("litert", "ai_edge_litert"), ("tflite", "tflite_runtime")])
def test_missing_package_is_named(runtime, module, recorder, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"{module}.interpreter", raising=False)
    with pytest.raises(InputError, match=rf"runtime {runtime}: .*'\.\[{runtime}\]'"):
        probe_of(recorder, runtime)


def test_no_runtime_is_imported_that_is_not_asked_for():
    program = """
import sys
import edge_monitor, edge_monitor.probe
print([m for m in sys.modules if m in ("onnxruntime", "ai_edge_litert", "tflite_runtime")])
import edge_monitor.interpreter_probe
print("onnxruntime" in sys.modules)
import edge_monitor.session_probe
print("ai_edge_litert" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.stdout == "[]\nFalse\nFalse\n", result.stderr


@needs_data
@each_runtime
@pytest.mark.parametrize("name", RESNET8)
def test_resnet8_keeps_its_accuracy(name, runtime, recorder):
    data = model_of(name)
    labels = np.load(CIFAR10)["labels"]
    plain, probe = plain_of(runtime, data), ready(recorder, runtime, data)
    right = 0
    for feed, label in zip(feeds_of(data, 500), labels, strict=True):
        (answer,), (expected,) = run(probe, feed), run(plain, feed)
        assert_array_equal(answer, expected)
        right += int(answer.argmax() == label)
    assert right / 500 > 0.88
    assert len(recorder.rows) == 500
    assert [row.output.top1 for row in recorder.rows[:3]] == [3, 8, 8]
    assert all(row.output.confidence > 0.1 for row in recorder.rows)


@needs_data
@pytest.mark.parametrize("kind", ["float", "int8"])
def test_a_model_of_our_own_is_calibrated_and_watched(kind, tmp_path):
    """From clean frames to a map, and from the map to reports, as the commands do it."""
    path = RESNET8[f"resnet8_{kind}"]
    settings = FrameSettings(frames=str(CIFAR10), frame_rate_hz=30.0, limit=120)
    observed = observe(path, settings)
    assert len(observed.rows) == 120
    assert observed.taps[0].shape == (3, 32, 32)
    assert observed.device.runtime.startswith(("ai-edge-litert ", "tflite-runtime "))
    assert observed.device == Runtime.here("litert") or observed.device == Runtime.here("tflite")
    image = np.load(CIFAR10)["images"][0].astype(float)
    assert observed.rows[0].signals[0] == pytest.approx(image.mean(), rel=1e-6)
    region_map = calibrate(observed)
    assert region_map.impact is None
    assert region_map.faults is None
    if find_spec("ai_edge_litert"):
        assert (region_map.tracts.strength > 0).any()
        assert not any(region_map.tracts.problems)
    else:  # its schema module is what traces
        assert all("traced with ai-edge-litert" in problem for problem in region_map.tracts.problems)
    remarks = " ".join(region_map.provenance.warnings)
    assert "no fault head: it learns from scenes of a source with 1245 frames or more" in remarks
    watch = Watch(Monitor(region_map), [])
    probe = open_probe(path.read_bytes(), region_map, watch)
    assert (probe.attached, probe.errors) == (True, 0)
    for picture in np.load(CIFAR10)["images"][:5]:
        frame = picture.transpose(2, 0, 1)[None].astype(np.float32)
        (answer,) = probe.feed(frame)
        assert answer.shape == (1, 10)
    report = watch.monitor.report
    assert (report.frame, probe.unobserved) == (4, 0)
    assert np.isfinite(report.connectivity.residual[1:]).all() or report.connectivity.residual_score is None
