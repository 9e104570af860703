"""TensorFlow Lite models transcribed to ONNX models of floats, in which tracts are traced.

What lies before an activation is no tensor of a TensorFlow Lite model: the activation is fused into its
operator. In the transcript it is one. Weights are dequantised; activations of a quantised model are rounded
to their own scale and zero point, so that the forward pass is the model's to a step. Tensors are NCHW there,
and the taps have the names they have in the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edge_monitor.offline.model_graph import open_model, submodel
from edge_monitor.offline.tflite_model import PartRunner, encode_frames, only_input, read_values
from edge_monitor.offline.tflite_operators import write_operator
from edge_monitor.offline.tflite_transcript import Transcript, Unknown
from edge_monitor.offline.tracts import Traceable
from edge_monitor.taps.tflite_edit import prefix
from edge_monitor.taps.tflite_file import Operator, Tensor, read_model
from edge_monitor.taps.tflite_taps import choose
from edge_monitor.types import TapSpec

OPSET, IR_VERSION = 20, 9
ROUNDING, STEPS = 1e-3, 0.1
"""Share of a tap, root mean square, by which the transcript of floats, or of integers, may differ."""


def transcribe(data: bytes, taps: tuple[TapSpec, ...], frame: NDArray[np.float32]) -> Traceable:
    """Transcribe a model up to its taps.

    Parameters
    ----------
    data : bytes
        TensorFlow Lite model.
    taps : tuple of TapSpec
        The input, then the tapped tensors in order of execution.
    frame : (C, H, W) or (N,) float32
        An input on which the taps of both are compared.

    Raises
    ------
    ModelError
        The model cannot be read as objects, has several inputs, or lacks a tap.
    """
    graph = read_model(data)
    candidates = choose(graph, [tap.name for tap in taps[1:]])
    entry = only_input(graph)
    names = {tensor.index: f"tensor:{tensor.index}" for tensor in graph.tensors}
    names |= {candidate.tensor.index: candidate.name for candidate in candidates}
    script = Transcript(data, graph.tensors, names)
    observed = graph.tensors[entry.index]
    names[entry.index] = taps[0].name
    if observed.scales:
        names[entry.index] = script.rounded(taps[0].name, observed)
    unknown: dict[int, str] = {}
    for place, operator in enumerate(graph.operators):
        known = len(script.nodes)
        lost = next((unknown[index] for index in operator.inputs if index in unknown), None)
        try:
            if lost is None:
                write_operator(script, operator, script.options(place))
        except Unknown as error:
            del script.nodes[known:]
            lost = f"{_title(operator, graph.tensors)} cannot be traced: {error}"
        if lost is not None:
            unknown |= dict.fromkeys(operator.outputs, lost)
    places = [candidate.tensor.index for candidate in candidates]
    reached = next((n for n, index in enumerate(places) if index in unknown), len(places))
    problem = unknown[places[reached]] if reached < len(places) else ""
    model = _model(script, taps[0].name, entry.shape, [tap.name for tap in taps[1 : 1 + reached]])
    runner = PartRunner(prefix(data, places))
    stored = runner.run({entry.index: encode_frames(entry, frame[np.newaxis])[0]}, places[:reached])
    truth = [
        read_values(candidate.tensor, values) for candidate, values in zip(candidates, stored, strict=False)
    ]
    differs = _first_difference(model, taps, frame, truth, STEPS if observed.scales else ROUNDING)
    if differs is not None:
        reached, problem = differs, f"{taps[1 + differs].name} is not what its transcript gives"
    return Traceable(model, 1 + reached, problem, as_written=True)


def _first_difference(
    model: bytes,
    taps: tuple[TapSpec, ...],
    frame: NDArray[np.float32],
    truth: Sequence[NDArray[np.float32]],
    tolerance: float,
) -> int | None:
    """Place of the first tap, behind the input, that the transcript does not give as the model does."""
    names = [tap.name for tap in taps[1 : 1 + len(truth)]]
    if not names:
        return None
    part = onnx.load_from_string(model)
    session = open_model(submodel(part, part.graph.node, part.graph.input, names), as_written=True)
    found = session.run(names, {taps[0].name: frame[np.newaxis]})
    for place, (values, expected) in enumerate(zip(found, truth, strict=True)):
        apart, size = (float(np.sqrt(np.mean(np.square(x)))) for x in (values - expected, expected))
        if not apart <= tolerance * size:
            return place
    return None


def _model(script: Transcript, entry: str, shape: tuple[int, ...], taps: Sequence[str]) -> bytes:
    """ONNX model of the transcript; the taps are none of its outputs, or they would be no taps."""
    outputs = [script.make("Identity", [tap]) for tap in taps or [entry]]
    graph = helper.make_graph(
        script.nodes,
        "transcript",
        [helper.make_tensor_value_info(entry, TensorProto.FLOAT, (1, *shape))],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        script.weights,
    )
    opsets = [helper.make_opsetid("", OPSET)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString())


def _title(operator: Operator, tensors: Sequence[Tensor]) -> str:
    name = tensors[operator.outputs[0]].name.split(";")[0] if operator.outputs else ""
    return f"{operator.op} ({name})" if name else operator.op
