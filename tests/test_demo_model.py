"""The shipped demo model and its record; also right for a freshly trained one."""

import hashlib
import json
import os
from collections import Counter
from importlib import resources
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # has to be there before the import

import onnx
import onnxruntime

from edge_monitor.sources.scenes import CLASSES, Road
from edge_monitor.taps.onnx import list_taps

DATA = resources.files("edge_monitor") / "data"
BENCH = Path(__file__).parent / "bench" / "models"


@pytest.fixture(scope="module")
def model():
    return (DATA / "demo_model.onnx").read_bytes()


@pytest.fixture(scope="module")
def record():
    return json.loads((DATA / "demo_model.json").read_text())


@pytest.fixture(scope="module")
def session(model):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def as_input(image):
    return image.transpose(2, 0, 1)[None].astype(np.float32)


def test_the_record_belongs_to_the_file(model, record):
    assert hashlib.sha256(model).hexdigest() == record["sha256"]
    assert len(model) == record["bytes"] <= 400_000
    assert tuple(record["classes"]) == CLASSES


def test_trips_are_disjoint_by_the_convention(record):
    spans = [
        range(record[part]["first_trip"], record[part]["first_trip"] + record[part]["trips"])
        for part in ("training", "validation", "test")
    ]
    assert spans[0].stop <= spans[1].start
    assert spans[1].stop <= 1000
    assert spans[2].start >= 2000


def test_the_graph_is_small_plain_and_tappable(model):
    graph = onnx.load_from_string(model)
    onnx.checker.check_model(graph, full_check=True)
    ops = Counter(node.op_type for node in graph.graph.node)
    assert set(ops) <= {
        "Conv", "Relu", "Add", "MaxPool", "AveragePool", "GlobalAveragePool", "Flatten", "Gemm", "Softmax"
    }  # fmt: skip
    assert ops["Conv"] >= 4
    assert ops["Gemm"] >= 1
    assert ops["Softmax"] == 1
    assert 5 <= ops["Relu"] <= 8
    kind_of = {output: node.op_type for node in graph.graph.node for output in node.output}
    assert any(node.op_type == "Relu" and kind_of.get(node.input[0]) == "Add" for node in graph.graph.node)
    assert graph.ir_version <= 9
    assert [opset.version for opset in graph.opset_import] <= [17]


def test_it_takes_raw_images_and_answers_probabilities(session):
    (image,), (answer,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.shape, image.type) == ("image", [1, 3, 48, 48], "tensor(float)")
    assert (answer.name, answer.shape) == ("probabilities", [1, len(CLASSES)])
    for scene in islice(Road(2100), 20):
        (probabilities,) = session.run(None, {"image": as_input(scene.image)})
        assert probabilities.dtype == np.float32
        assert (probabilities >= 0.0).all()
        assert probabilities.sum() == pytest.approx(1.0, abs=1e-5)


def test_accuracy_on_unseen_trips(session, record):
    right = []
    for seed in range(2200, 2206):
        for scene in islice(Road(seed), 0, 900, 9):
            (probabilities,) = session.run(None, {"image": as_input(scene.image)})
            right.append(int(probabilities.argmax()) == scene.label)
    assert np.mean(right) >= 0.90
    assert record["test"]["accuracy"] >= 0.90


def test_every_class_is_answered_well(session):
    hits = np.zeros((len(CLASSES), 2))
    for seed in range(2210, 2222):
        for scene in islice(Road(seed), 0, 600, 20):
            (probabilities,) = session.run(None, {"image": as_input(scene.image)})
            hits[scene.label] += (int(probabilities.argmax()) == scene.label, 1)
    assert (hits[:, 1] > 0).all()
    assert (hits[:, 0] / hits[:, 1]).min() > 0.7


# -- models of the benchmarks: another seed, and another network in the other world ---------------------


@pytest.fixture(params=["residual-1", "depthwise-2"])
def bench_model(request):
    path = BENCH / f"{request.param}.onnx"
    return path, json.loads(path.with_suffix(".json").read_text())


def test_a_bench_record_belongs_to_its_file(bench_model):
    path, record = bench_model
    model = path.read_bytes()
    assert hashlib.sha256(model).hexdigest() == record["sha256"]
    assert len(model) == record["bytes"] <= 400_000
    assert path.stem == f"{record['network']}-{record['seed']}"
    assert record["world"] == {"residual": 0, "depthwise": 1}[record["network"]]
    assert tuple(record["classes"]) == CLASSES
    assert record["training"]["trips"] <= 900
    assert (record["validation"]["first_trip"], record["test"]["first_trip"]) == (900, 2000)
    assert record["test"]["accuracy"] >= 0.95


def test_bench_models_are_tapped_early_in_the_middle_and_before_the_logits(bench_model):
    path, record = bench_model
    suggested = [tap for tap in list_taps(path) if tap.default]
    assert [(tap.name, tap.op) for tap in suggested] == {
        "residual": [("stem", "Relu"), ("block2_add_relu", "Relu"), ("head", "Relu")],
        "depthwise": [("stem", "Relu"), ("block3_relu", "Relu"), ("head", "Relu")],
    }[record["network"]]
    graph = onnx.load(path)
    onnx.checker.check_model(graph, full_check=True)
    assert [node.output[0] for node in graph.graph.node if "head" in node.input] == ["logits"]
    groups = [
        attribute.i
        for node in graph.graph.node
        for attribute in node.attribute
        if node.op_type == "Conv" and attribute.name == "group"
    ]
    assert groups == {"residual": [], "depthwise": [16, 32, 48, 48, 64]}[record["network"]]


def test_bench_models_are_right_in_their_world(bench_model):
    path, record = bench_model
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    right = []
    for seed in range(900, 906):
        for scene in islice(Road(seed, record["world"]), 0, 900, 9):
            (probabilities,) = session.run(None, {"image": as_input(scene.image)})
            right.append(int(probabilities.argmax()) == scene.label)
    assert np.mean(right) >= 0.9
