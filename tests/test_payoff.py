"""What an answer is worth: the default, accuracy, a user's own, and the worked examples on real graphs."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_monitor.errors import InputError, ModelError
from edge_monitor.offline.ablation import whole_answers
from edge_monitor.offline.impact import impact_scores
from edge_monitor.offline.payoff import accuracy, decision_probability, load_payoff
from edge_monitor.offline.shapley import ShapleySettings
from edge_monitor.taps.reducer import input_spec, tap_spec

EXAMPLES = Path(__file__).parent.parent / "tools" / "payoff_examples.py"


# frames with non-negative values pass the identity convolution and its Relu unchanged
BOXES, SCORES = slice(0, 4), slice(4, 6)


def detector_model():
    """Input (6, 2, 4) is the tap: channels 0 to 3 a box, 4 and 5 two class scores, for each of 8 anchors."""
    nodes = [
        helper.make_node("Split", ["relu", "sizes"], ["low", "high"], axis=1),
        helper.make_node("Reshape", ["low", "box_shape"], ["boxes_first"]),
        helper.make_node("Transpose", ["boxes_first"], ["boxes"], perm=[0, 2, 1]),
        helper.make_node("Reshape", ["high", "score_shape"], ["scores_first"]),
        helper.make_node("Transpose", ["scores_first"], ["scores"], perm=[0, 2, 1]),
    ]
    constants = {"sizes": [4, 2], "box_shape": [0, 4, 8], "score_shape": [0, 2, 8]}
    return model(nodes, constants, (6, 2, 4), {"boxes": ["N", 8, 4], "scores": ["N", 8, 2]})


def segmenter_model():
    """Input (3, 4, 4) is the tap; two more scores per pixel come from fixed mixtures of its channels."""
    mixture = np.array([[1, 0, 0], [0, 1, 0], [0.25, 0.25, 0.5]], np.float32).reshape(3, 3, 1, 1)
    nodes = [helper.make_node("Conv", ["relu", "mixture"], ["classes"], kernel_shape=[1, 1])]
    return model(nodes, {"mixture": mixture}, (3, 4, 4), {"classes": ["N", 3, 4, 4]})


def model(nodes, constants, shape, outputs):
    eye = np.eye(shape[0], dtype=np.float32)[:, :, None, None]
    head = [
        helper.make_node("Conv", ["input", "eye"], ["conv"], kernel_shape=[1, 1]),
        helper.make_node("Relu", ["conv"], ["relu"]),
    ]
    graph = helper.make_graph(
        head + nodes,
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", *shape])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in outputs.items()],
        [numpy_helper.from_array(np.array(value), name) for name, value in {"eye": eye, **constants}.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def detector_frames(n):
    """Boxes of various sizes; class 0 is detected at anchors 0 to 3 (rows 0), class 1 at anchor 4."""
    rng = np.random.default_rng(0)
    frames = np.zeros((n, 6, 8), np.float32)
    frames[:, :2] = rng.random((n, 2, 8))
    frames[:, 2:4] = frames[:, :2] + 0.5 + rng.random((n, 2, 8))
    frames[:, 4:] = 0.3 * rng.random((n, 2, 8))
    frames[:, 4, :4] = 0.5 + 0.4 * rng.random((n, 1))
    frames[:, 5, 4] = frames[:, 4, 0]
    return frames.reshape(n, 6, 2, 4)


def test_probability_of_the_decision():
    whole = [np.array([[0.2, 0.7, 0.1], [0.6, 0.3, 0.1]], np.float32), np.zeros((2, 9))]
    ablated = [np.array([[0.5, 0.25, 0.25], [0.9, 0.1, 0.0]], np.float32), np.zeros((2, 9))]
    values = decision_probability(ablated, whole)
    assert values.dtype == np.float64
    np.testing.assert_allclose(values, [0.25, 0.9], rtol=1e-6)
    np.testing.assert_allclose(decision_probability(whole, whole), [0.7, 0.6], rtol=1e-6)


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ([[0.5, 0.5], [2.0, -1.0]], "frame 1 adds up to 1"),
        ([[0.5, 0.5], [0.5, 0.498]], "frame 1 adds up to 0.998"),
        ([[np.nan, 0.5], [0.5, 0.5]], "frame 0 adds up to nan"),
        ([[1.0], [1.0]], "frame 0 adds up to 1"),
        ([[[0.5, 0.5], [0.5, 0.5]]], r"float32 \(2, 2\), frame 0 adds up to 2"),
    ],
)
def test_an_output_that_is_no_probability_vector_asks_for_a_payoff(output, said):
    whole = [np.array(output, np.float32)]
    with pytest.raises(ModelError, match=f"no probability vector .*{said}.*give labels, or a payoff"):
        decision_probability(whole, whole)
    with pytest.raises(ModelError, match="no probability vector"):
        decision_probability([np.ones((2, 2), np.int64)], [np.array([[0, 1], [1, 0]])])


def test_accuracy():
    outputs = [np.array([[0.1, 3.0], [2.0, -1.0], [0.0, 1.0]])]
    payoff = accuracy(np.array([1, 1, 1], np.uint8))
    np.testing.assert_array_equal(payoff.score(outputs, []), [1.0, 0.0, 1.0])
    assert payoff.name == "accuracy"
    assert payoff.digest != accuracy(np.array([1, 1, 0])).digest


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (np.array([0, 1]), "labels: 2 for 3 frames"),
        (np.array([0, 1, 2]), "labels: 2 is none of the model's 2 classes"),
        (np.array([0, -1, 0]), "labels: -1 is none"),
        (np.array([0.0, 1.0, 0.0]), r"labels: are float64\(3,\), one integer per frame"),
        (np.zeros((3, 1), int), r"labels: are int64\(3, 1\)"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, problem):
    with pytest.raises(InputError, match=problem):
        accuracy(labels).score([np.eye(3, 2)], [])


def test_a_function_of_a_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def half(ablated, unablated):\n    return 0.5 * ablated[0][:, 0]\n")
    payoff = load_payoff(f"{file}:half")
    assert payoff.name == "mine.py:half"
    np.testing.assert_array_equal(payoff.score([np.ones((3, 2))], []), [0.5] * 3)
    file.write_text("def half(ablated, unablated):\n    return 0.25 * ablated[0][:, 0]\n")
    assert load_payoff(f"{file}:half").digest != payoff.digest


def test_a_function_that_fails_is_named(tmp_path):
    (tmp_path / "mine.py").write_text("def broken(ablated, unablated):\n    return 1 / 0\n")
    payoff = load_payoff(f"{tmp_path}/mine.py:broken")
    with pytest.raises(InputError, match=r"mine\.py:broken: fails \(ZeroDivisionError: division by zero\)"):
        payoff.score([np.ones((3, 2))], [])


def test_what_cannot_be_loaded_is_named(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("number = 3\n")
    for place, problem in [
        (str(file), "given as file.py:function"),
        (f"{tmp_path}/other.py:half", "no file .*other.py"),
        (f"{file}:half", "has no function 'half'"),
        (f"{file}:number", "has no function 'number'"),
    ]:
        with pytest.raises(InputError, match=problem):
            load_payoff(place)
    file.write_text("import nothing_of_this_name\n")
    with pytest.raises(InputError, match="ModuleNotFoundError: No module named 'nothing_of_this_name'"):
        load_payoff(f"{file}:half")
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(InputError, match=r"mine\.txt is no Python file"):
        load_payoff(f"{tmp_path}/mine.txt:half")


def test_detector_example_by_hand():
    score = load_payoff(f"{EXAMPLES}:detector").score
    boxes = np.array([[[0, 0, 2, 2], [0, 0, 1, 1], [5, 5, 6, 6]]], np.float32)
    scores = np.array([[[0.9, 0.1], [0.2, 0.8], [0.4, 0.1]]], np.float32)
    # The first box slides by half its width: overlap 1/3. The second one's class loses half its score.
    moved = np.array([[[1, 0, 3, 2], [0, 0, 1, 1], [5, 5, 6, 6]]], np.float32)
    weaker = np.array([[[0.9, 0.1], [0.7, 0.4], [0.0, 1.0]]], np.float32)
    np.testing.assert_allclose(score([boxes, scores], [boxes, scores]), [0.85], rtol=1e-6)
    np.testing.assert_allclose(score([moved, weaker], [boxes, scores]), [(0.9 / 3 + 0.4) / 2], rtol=1e-6)
    # Nothing detected: nothing to lose. A box turned inside out overlaps nothing.
    np.testing.assert_array_equal(score([moved, weaker], [boxes, 0.5 * scores]), [0.0])
    np.testing.assert_allclose(score([boxes[..., ::-1], scores], [boxes, scores]), [0.0])


def test_segmenter_example_by_hand():
    score = load_payoff(f"{EXAMPLES}:segmenter").score
    whole = np.zeros((2, 3, 2, 2), np.float32)
    whole[:, 1] = 1.0
    ablated = whole.copy()
    ablated[1, 2, 0, 0] = 2.0
    np.testing.assert_array_equal(score([ablated], [whole]), [1.0, 0.75])


def test_detector_example_finds_the_voxels_with_detections():
    """Scores matter where there are detections: class 0 on the upper row, class 1 on the lower one."""
    data, frames = detector_model(), detector_frames(12)
    taps = (input_spec("input", (6, 2, 4)), tap_spec("relu", (6, 2, 4), (6, 2, 1)))
    payoff = load_payoff(f"{EXAMPLES}:detector")
    found = impact_scores(data, taps, frames, payoff, settings=ShapleySettings(pairs=16))
    theta = found.theta[taps[0].n_voxels :].reshape(6, 2)
    assert found.payoff == "payoff_examples.py:detector"
    whole = whole_answers(data, "net", frames)
    assert found.f_all[0] == pytest.approx(payoff.score(whole, whole).mean(), abs=1e-6)
    assert theta.sum() == pytest.approx(found.f_all[0] - found.f_none[0], abs=1e-9)
    assert theta[4, 0] > 5 * np.abs(theta[4, 1])
    assert theta[5, 1] > 5 * np.abs(theta[5, 0])


def test_segmenter_example_finds_the_voxels_that_hold_a_class():
    """Class 0 fills the left half, class 1 the right one; channel 2 is the same everywhere.

    Without both channels of the right half, its two classes are equal and class 0 wins; with either it is
    right. So these two voxels share what that half is worth, and the left half needs none.
    """
    frames = np.full((6, 3, 4, 4), 0.1, np.float32)
    frames[:, 0, :, :2] = frames[:, 1, :, 2:] = np.linspace(1, 2, 6)[:, None, None]
    taps = (input_spec("input", (3, 4, 4)), tap_spec("relu", (3, 4, 4), (3, 1, 2)))
    found = impact_scores(
        segmenter_model(),
        taps,
        frames,
        load_payoff(f"{EXAMPLES}:segmenter"),
        settings=ShapleySettings(pairs=8),
    )
    theta = found.theta[taps[0].n_voxels :].reshape(3, 2)
    assert found.f_all[0] == 1.0
    np.testing.assert_allclose(theta, [[0, 0.25], [0, 0.25], [0, 0]], atol=1e-12)
