"""Halves of TensorFlow Lite models answer as the whole, and coalitions as a mask inside the model says."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import tflite_models as models
from test_shapley import exact
from tflite_runs import CIFAR10, HANDMADE, RESNET8, needs_data

from edge_monitor.errors import InputError, ModelError
from edge_monitor.offline.ablation import Game, whole_answers
from edge_monitor.offline.impact import impact_scores
from edge_monitor.offline.payoff import DECISION_PROBABILITY
from edge_monitor.offline.shapley import ShapleySettings
from edge_monitor.offline.tflite_model import PartRunner, read_values, store_values
from edge_monitor.offline.tflite_surgery import CutTfliteModel
from edge_monitor.taps.reducer import input_spec, tap_spec
from edge_monitor.taps.tflite_edit import suffix, with_outputs
from edge_monitor.taps.tflite_file import read_model
from edge_monitor.taps.tflite_taps import find_candidates

SHAPE = (3, 8, 6)
WHOLE = {name: HANDMADE[name] for name in ("float", "int8", "signature", "two_heads")}
"""Nets of one input that a cut can split."""


@cache
def data_of(name: str) -> bytes:
    return RESNET8[name].read_bytes() if name in RESNET8 else WHOLE[name]()


def frames_of(name: str, n: int = 6) -> np.ndarray:
    if name in RESNET8:
        with np.load(CIFAR10) as archive:
            return archive["images"][:n].transpose(0, 3, 1, 2).astype(np.float32)
    _, *stored = read_model(data_of(name)).tensors[0].shape
    return np.random.default_rng(3).normal(size=(n, stored[2], *stored[:2])).astype(np.float32)


@pytest.mark.parametrize("name", [*WHOLE, *(pytest.param(name, marks=needs_data) for name in RESNET8)])
def test_halves_answer_as_the_whole(name):
    data, frames = data_of(name), frames_of(name)
    expected = whole_answers(data, "model", frames)
    candidates = find_candidates(read_model(data))
    for tap, candidate in candidates.items():
        cut = CutTfliteModel(data, tap)
        activations, carried = cut.before(frames)
        assert activations.shape[1:] == candidate.shape
        assert tuple(carried) == cut.carried
        for found, whole in zip(cut.after(activations, carried), expected, strict=True):
            np.testing.assert_array_equal(found, whole)
        picked = [4, 4, 0]
        some = cut.after(activations[picked], {key: values[picked] for key, values in carried.items()})
        np.testing.assert_array_equal(some[0], expected[0][picked])
    assert len(candidates) >= 2


def test_what_passes_the_tap_by_is_carried():
    """The skip branch, and an output that does not depend on the tap."""
    assert [name.split()[1] for name in CutTfliteModel(data_of("float"), "relu2").carried] == ["join1"]
    assert CutTfliteModel(data_of("float"), "join1").carried == ()
    carried = CutTfliteModel(data_of("two_heads"), "relu2").carried
    assert {name.split()[1] for name in carried} >= {"early"}


def test_changed_activations_are_stored_with_the_scale_and_zero_point_of_the_tap():
    """By the definition: q = round(value / scale) + zero point, clipped to int8."""
    data, frames = data_of("int8"), frames_of("int8", 3)
    tensor = find_candidates(read_model(data))["join1"].tensor
    cut = CutTfliteModel(data, "join1")
    activations, carried = cut.before(frames)
    changed = activations + np.float32(0.73)
    changed[:, 0] = 1e4
    behind = suffix(data, [tensor.index])
    runner, (output,) = PartRunner(behind), read_model(behind).outputs
    (scale,), (zero,) = tensor.scales, tensor.zero_points
    expected = []
    for frame in changed.transpose(0, 2, 3, 1):
        stored = np.array([[min(127, max(-128, round(float(v) / scale) + zero)) for v in frame.ravel()]])
        stored = stored.reshape(tensor.shape).astype(np.int8)
        expected.append(runner.run({tensor.index: stored}, [output])[0])
    expected = (np.concatenate(expected) + 128.0) / 256
    found = cut.after(changed, carried)[0]
    np.testing.assert_allclose(found, expected / expected.sum(axis=1, keepdims=True), atol=1e-6)
    assert np.abs(found - cut.after(activations, carried)[0]).max() > 0.01


@pytest.mark.parametrize("name", ["float", "int8"])
def test_stored_numbers_come_back_as_they_were(name):
    tensor = find_candidates(read_model(data_of(name)))["relu1"].tensor
    rng = np.random.default_rng(0)
    stored = rng.integers(-128, 128, (5, *tensor.shape[1:])).astype(tensor.dtype)
    values = read_values(tensor, stored)
    assert values.shape == (5, 8, 8, 6)
    back = store_values(tensor, values)
    assert back.dtype == stored.dtype
    np.testing.assert_array_equal(back, stored)


def chain(mask: np.ndarray | None = None, mean: np.ndarray | None = None) -> bytes:
    """A skip branch around the tap "relu2", and a mask behind the tap, so that nothing need be cut."""
    net = models.Net(seed=5)
    image = net.value("image", (1, 8, 6, 3))
    x = net.conv(image, "relu1", 6, fused="RELU")
    y = net.conv(x, "relu2", 6, fused="RELU")
    if mask is not None and mean is not None:
        for op, constant in (("MUL", mask), ("ADD", mean * (1 - mask))):
            values = np.broadcast_to(constant, net.shapes[y]).astype(np.float32)
            y = net.join(op, y, net.tensor(f"{op} by", net.shapes[y], values=values), op)
    rng, net.rng = net.rng, np.random.default_rng(9)
    x = net.join("ADD", x, net.conv(y, "conv3", 6), "join", fused="RELU")
    z = net.unary("SOFTMAX", net.dense(net.mean(x, "mean"), "dense", 4), "probabilities")
    net.rng = rng
    return net.model([image], [z])


def test_coalitions_are_worth_what_a_net_with_the_mask_inside_says():
    data, frames = chain(), np.random.default_rng(1).normal(size=(5, *SHAPE)).astype(np.float32)
    tap = tap_spec("relu2", (6, 8, 6), (2, 3, 2))
    whole = whole_answers(data, "model", frames)
    game = Game(data, tap, frames, DECISION_PROBABILITY, whole)
    index = find_candidates(read_model(data))["relu2"].tensor.index
    runner = PartRunner(with_outputs(data, [index]))
    natural = [runner.run({0: frame.transpose(1, 2, 0)[None]}, [index])[0][0] for frame in frames]
    mean = np.mean(natural, axis=(0, 1, 2), dtype=np.float64)
    edges = [[k * n // g for k in range(g + 1)] for n, g in zip(tap.shape, tap.grid, strict=True)]
    rng = np.random.default_rng(2)
    for share in (0.0, 0.3, 0.7, 1.0):
        coalition = rng.random(tap.n_voxels) < share
        mask = np.zeros((8, 6, 6))
        active = iter(coalition)
        for c in pairwise(edges[0]):
            for h in pairwise(edges[1]):
                for w in pairwise(edges[2]):
                    mask[slice(*h), slice(*w), slice(*c)] = next(active)
        truth = whole_answers(chain(mask, mean), "model", frames)[0]
        decision = whole[0].argmax(axis=1)
        np.testing.assert_allclose(game.value(coalition), truth[np.arange(5), decision], atol=1e-5)


@pytest.mark.parametrize("name", ["float", "int8"])
def test_theta_agrees_with_enumeration_and_threads_change_no_number(name):
    data, frames = data_of(name), frames_of(name, 5)
    taps = (input_spec("image", SHAPE), tap_spec("join1", (8, 8, 6), (4, 2, 1)))
    one, two = (
        impact_scores(data, taps, frames, settings=ShapleySettings(pairs=24), threads=n) for n in (1, 2)
    )
    for field in one.__struct_fields__:
        np.testing.assert_array_equal(getattr(one, field), getattr(two, field), err_msg=field)
    game = Game(data, taps[1], frames, DECISION_PROBABILITY, whole_answers(data, "model", frames))
    truth = exact(game.value, 8)
    theta, stderr = one.theta[taps[0].n_voxels :], one.stderr[taps[0].n_voxels :]
    assert (np.abs(theta - truth) <= np.maximum(3 * stderr, 1e-6)).all()
    assert theta.sum() == pytest.approx(one.f_all[0] - one.f_none[0], abs=1e-12)
    assert one.f_all[0] != one.f_none[0]


@needs_data
@pytest.mark.parametrize("kind", ["float", "int8"])
def test_resnet8_with_labels(kind):
    with np.load(CIFAR10) as archive:
        frames, labels = (
            archive["images"][:48].transpose(0, 3, 1, 2).astype(np.float32),
            archive["labels"][:48],
        )
    taps = (input_spec("image", (3, 32, 32)), tap_spec("model/activation_6/Relu", (64, 8, 8)))
    found = impact_scores(
        RESNET8[f"resnet8_{kind}"], taps, frames, labels=labels, settings=ShapleySettings(pairs=4)
    )
    assert found.f_all[0] > 0.8
    assert found.f_none[0] < 0.4


def test_models_and_frames_that_cannot_be_scored_are_refused():
    data, image = data_of("float"), input_spec("image", SHAPE)
    with pytest.raises(ModelError, match="relu9: no such tap; nearest: relu"):
        CutTfliteModel(data, "relu9")
    with pytest.raises(ModelError, match="only models with one can be cut"):
        CutTfliteModel(models.branches(), "relu1")
    with pytest.raises(
        InputError, match=r"frames: have shape \(2, 3, 8, 8\), the model takes \(n, \*\(3, 8, 6\)"
    ):
        CutTfliteModel(data, "relu1").before(np.zeros((2, 3, 8, 8), np.float32))
    with pytest.raises(InputError, match=r"have shape \(0, 3, 8, 6\)"):
        CutTfliteModel(data, "relu1").before(np.zeros((0, *SHAPE), np.float32))
    with pytest.raises(ModelError, match=r"relu1: is \(8, 8, 6\) in the model, \(6, 8, 8\) as a tap"):
        impact_scores(data, (image, tap_spec("relu1", (6, 8, 8))), frames_of("float"))
    with pytest.raises(ModelError, match="not a whole TensorFlow Lite model"):
        impact_scores(data[:200], (image, tap_spec("relu1", (8, 8, 6))), frames_of("float"))
