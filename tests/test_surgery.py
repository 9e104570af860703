"""Prefix and suffix give the whole model's answer at every tap, in batches where the model allows it."""

import os
from importlib import resources
from pathlib import Path

import models
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from edge_monitor.errors import InputError, ModelError
from edge_monitor.offline.model_graph import free_batch, reads
from edge_monitor.offline.surgery import CutModel
from edge_monitor.taps.onnx import quiet_options
from edge_monitor.taps.onnx_graph import find_candidates, read_graph

DATA = Path(os.environ.get("EDGE_MONITOR_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
RESNET8 = DATA / "mlperf_tiny"
needs_data = pytest.mark.skipif(
    not (RESNET8 / "resnet8_float.onnx").is_file(), reason=f"no ResNet8 in EDGE_MONITOR_DATA ({DATA})"
)


def demo_model() -> bytes:
    return (resources.files("edge_monitor") / "data" / "demo_model.onnx").read_bytes()


def frames_for(data: bytes, n: int, scale: float = 1.0) -> np.ndarray:
    shape = session(data).get_inputs()[0].shape[1:]
    return (np.random.default_rng(7).random((n, *shape)) * scale).astype(np.float32)


def session(data: bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(data, quiet_options())


def run_whole(data: bytes, frames: np.ndarray) -> list[np.ndarray]:
    whole = session(data)
    name = whole.get_inputs()[0].name
    answers = [whole.run(None, {name: frame[None]}) for frame in frames]
    return [np.concatenate(column) for column in zip(*answers, strict=True)]


def assert_same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


def assert_splits_everywhere(data: bytes, scale: float = 1.0, *, batched: bool = True) -> list[str]:
    """Check every tap; more frames than one chunk, so that chunks are joined too. Returns the taps."""
    taps = list(find_candidates(read_graph(data)))
    frames = frames_for(data, 35, scale)
    expected = run_whole(data, frames)
    for tap in taps:
        cut = CutModel(data, tap)
        assert cut.batched == batched, tap
        activations, carried = cut.before(frames)
        assert tuple(carried) == cut.carried
        assert_same(cut.after(activations, carried), expected)
        # Suffix alone at another batch size, as coalitions of some images need it.
        picked = np.array([4, 4, 0, 9, 4])
        some = cut.after(activations[picked], {name: values[picked] for name, values in carried.items()})
        assert_same(some, [values[picked] for values in expected])
    return taps


@pytest.mark.parametrize("batch", ["N", 1])
@pytest.mark.parametrize(
    ("make", "taps"),
    [
        (models.cnn, ["relu1", "clip2", "relu3"]),
        (models.mobilenet, ["stem", "dw1", "pw1", "dw2", "add2", "dw3", "pw3"]),
        (models.vit, ["patches", "gelu", "add1"]),
    ],
)
def test_generated_graphs_split_at_every_tap(make, taps, batch):
    assert assert_splits_everywhere(make(batch=batch)) == taps


def test_the_demo_model_splits_at_every_tap():
    assert len(assert_splits_everywhere(demo_model(), 255.0)) == 8


@needs_data
@pytest.mark.parametrize(("file", "n_taps"), [("resnet8_float.onnx", 7), ("resnet8_qdq.onnx", 7)])
def test_resnet8_splits_at_every_tap(file, n_taps):
    assert len(assert_splits_everywhere((RESNET8 / file).read_bytes(), 255.0)) == n_taps


def test_skip_branches_are_carried():
    assert CutModel(demo_model(), "block1_relu").carried == ("stem",)
    assert CutModel(demo_model(), "block1_add_relu").carried == ()


def test_changed_activations_change_the_answer_as_in_the_model():
    """Zeroing the tap is the same as zeroing it within the whole graph; the skip branch keeps its values."""
    data = demo_model()
    model = onnx.load_from_string(data)
    maker = next(node for node in model.graph.node if "block1_relu" in node.output)
    maker.output[0] = "kept"
    at = list(model.graph.node).index(maker)
    model.graph.node.insert(at + 1, helper.make_node("Sub", ["kept", "kept"], ["block1_relu"]))
    frames = frames_for(data, 3, 255.0)
    cut = CutModel(data, "block1_relu")
    activations, carried = cut.before(frames)
    found = cut.after(np.zeros_like(activations), carried)
    assert_same(found, run_whole(model.SerializeToString(), frames))
    assert np.abs(found[0] - cut.after(activations, carried)[0]).max() > 1e-3


def test_outputs_past_the_tap_are_carried_and_sizes_are_computed_again():
    data = models.two_heads()
    assert_splits_everywhere(data)
    assert CutModel(data, "relu1").carried == ("input",)  # for its size alone
    assert CutModel(data, "relu2").carried == ("input", "early")


@pytest.mark.parametrize("refuses", [True, False])
def test_a_model_that_cannot_be_batched_runs_frame_by_frame(refuses):
    assert_splits_everywhere(models.one_by_one(refuses=refuses), batched=False)


def test_free_batch_changes_no_answer():
    data = models.vit(batch=1)
    frames = frames_for(data, 4)
    freed = session(free_batch(data))
    assert_same(freed.run(None, {"input": frames}), run_whole(data, frames))
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument):
        session(data).run(None, {"input": frames})


def test_unknown_taps_are_refused_by_name():
    with pytest.raises(ModelError, match="relu9: no such tap; nearest: relu3"):
        CutModel(models.cnn(), "relu9")


def test_models_with_several_inputs_are_refused():
    with pytest.raises(ModelError, match=r"has 2 inputs \(state, image\)"):
        CutModel(models.two_inputs(), "relu1")


def test_damaged_files_and_dead_ends_are_refused():
    with pytest.raises(ModelError, match="not a whole ONNX model"):
        CutModel(models.cnn()[:-7], "relu1")
    model = onnx.load_from_string(models.cnn())
    model.graph.node.append(helper.make_node("Relu", ["fc1"], ["unread"]))
    with pytest.raises(ModelError, match="unread: no output of the model depends on it"):
        CutModel(model.SerializeToString(), "unread")


def test_frames_of_another_shape_are_refused():
    cut = CutModel(models.cnn(), "relu1")
    with pytest.raises(InputError, match=r"\(2, 3, 8, 8\)"):
        cut.before(np.zeros((2, 3, 8, 8), np.float32))
    with pytest.raises(InputError, match=r"\(0, 3, 16, 16\)"):
        cut.before(np.zeros((0, 3, 16, 16), np.float32))


def test_a_body_reads_outer_tensors_and_may_give_one_as_it_is():
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("made", "outer")]
    then = helper.make_graph([helper.make_node("Neg", ["read"], ["made"])], "then", [], info[:1])
    otherwise = helper.make_graph([], "else", [], info[1:])
    node = helper.make_node("If", ["which", ""], ["chosen"], then_branch=then, else_branch=otherwise)
    assert reads(node) >= {"which", "read", "outer"}
    assert not reads(node) & {"", "chosen"}
