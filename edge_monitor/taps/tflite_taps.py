"""Which tensors of a TensorFlow Lite model can be tapped (design section 4).

As in ONNX models (`edge_monitor.taps.onnx_graph`) these are *post-activation* tensors: what an
operator with a fused activation returns, or an activation of its own, or a residual ADD that no
activation follows. In quantised models the integers themselves are tapped.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from edge_monitor.errors import ModelError
from edge_monitor.taps.candidates import TapCandidate, check_taps, default_taps
from edge_monitor.taps.model_file import load_model
from edge_monitor.taps.tflite_file import Graph, Tensor, check_entry, read_model

ACTIVATIONS = frozenset(
    {
        *("ELU", "GELU", "HARD_SWISH", "LEAKY_RELU", "LOGISTIC", "PRELU", "RELU", "RELU6", "RELU_0_TO_1"),
        *("RELU_N1_TO_1", "TANH"),
    }
)
_SOFTMAX = frozenset({"SOFTMAX", "LOG_SOFTMAX"})
_REQUANTISE = frozenset({"QUANTIZE", "DEQUANTIZE"})

SIZES = {"float32": 4, "float16": 2, "int8": 1, "uint8": 1}
"""Bytes of the element types that can be read."""
DTYPES = tuple(SIZES)


class Candidate(NamedTuple):
    """A post-activation tensor, and the operator that made it, with ``+`` what is fused into that.

    ``name``: the tensor's own up to the first semicolon, for the converter joins the names of all that
    it fused; with ``#index`` where that is empty or not unique among the candidates.
    """

    name: str
    op: str
    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, height, width) or (units,) as in `TapSpec`; empty for tensors that cannot be read.

        In memory a tensor is NHWC: (1, height, width, channels) or (1, units).
        """
        batch, *axes = self.tensor.shape or (0,)
        if batch != 1 or len(axes) not in (1, 3) or min(axes) < 1:
            return ()
        return (axes[-1], *axes[:-1])

    @property
    def bytes(self) -> int:
        return math.prod(self.tensor.shape) * SIZES.get(self.tensor.dtype, 1)

    @property
    def readable(self) -> bool:
        """One frame of (1, H, W, C) or (1, N), of a type in `DTYPES`; integers with sound scales."""
        if not self.shape or self.tensor.dtype not in DTYPES:
            return False
        if self.tensor.dtype.startswith("float"):
            return True
        scales, axis = self.tensor.scales, self.tensor.axis
        by_channel = len(scales) == self.shape[0] and axis == len(self.tensor.shape) - 1
        return (len(scales) == 1 or by_channel) and all(math.isfinite(s) and s > 0 for s in scales)


def find_candidates(graph: Graph, name: str = "model") -> dict[str, Candidate]:
    """Post-activation tensors in order of execution, by name.

    Left out are the model's own outputs (before the operator that dequantises them, too), all that
    follows a softmax, and gates: a LOGISTIC that only scales another tensor. Of ``x * LOGISTIC(x)``
    (SiLU) the product is listed.

    Raises
    ------
    ModelError
        Signatures of the model run other subgraphs than the first: which one will run is not known.
    """
    check_entry(graph, name)
    readers: dict[int, set[str]] = {}
    for operator in graph.operators:
        for index in operator.inputs:
            readers.setdefault(index, set()).add(operator.op)
    constants = {tensor.index for tensor in graph.tensors if tensor.constant}
    answers, after_softmax = set(graph.outputs), set[int]()
    answers.update(
        index
        for operator in graph.operators
        if operator.op in _REQUANTISE and not answers.isdisjoint(operator.outputs)
        for index in operator.inputs
    )
    gates: dict[int, int] = {}
    found: dict[int, str] = {}
    for op, inputs, outputs, fused in graph.operators:
        if inputs and constants.issuperset(inputs):
            constants.update(outputs)
            continue
        if op in _SOFTMAX or not after_softmax.isdisjoint(inputs):
            after_softmax.update(outputs)
            continue
        if not inputs or not outputs:
            continue
        read_by = readers.get(outputs[0], set())
        if op == "LOGISTIC" and read_by == {"MUL"}:
            gates[outputs[0]] = inputs[0]
            continue
        silu = op == "MUL" and (gates.get(inputs[0]) == inputs[-1] or gates.get(inputs[-1]) == inputs[0])
        residual = op == "ADD" and constants.isdisjoint(inputs) and read_by.isdisjoint(ACTIVATIONS)
        if silu or residual or fused != "NONE" or op in ACTIVATIONS:
            found[outputs[0]] = op if fused == "NONE" else f"{op}+{fused}"
    tensors = [graph.tensors[index] for index in found if index not in answers]
    heads = [tensor.name.split(";")[0] for tensor in tensors]
    count = Counter(heads)
    names = [
        head if head and count[head] == 1 else f"{head}#{tensor.index}"
        for head, tensor in zip(heads, tensors, strict=True)
    ]
    return {
        name: Candidate(name, found[tensor.index], tensor)
        for name, tensor in zip(names, tensors, strict=True)
    }


def suggest(candidates: Sequence[Candidate]) -> list[str]:
    """Names of the default taps among candidates in order of execution."""
    return default_taps({candidate.name: candidate.bytes for candidate in candidates if candidate.readable})


def list_taps(model: str | Path | bytes) -> list[TapCandidate]:
    """Candidates in order of execution, as `edge_monitor.taps.onnx.list_taps` gives them.

    Raises
    ------
    ModelError
        The model cannot be read, or runs other subgraphs than the first.
    """
    data, label = load_model(model)
    candidates = find_candidates(read_model(data, label), label)
    defaults = suggest(list(candidates.values()))
    return [
        TapCandidate.of(
            name,
            candidate.op,
            candidate.shape or candidate.tensor.shape[1:],
            candidate.bytes,
            default=name in defaults,
        )
        for name, candidate in candidates.items()
    ]


def choose(graph: Graph, names: Sequence[str]) -> list[Candidate]:
    """Candidates of these names, in this order.

    Raises
    ------
    ModelError
        A name is no candidate (`find_candidates`), or given twice, or of a tensor that cannot be read.
    """
    candidates = find_candidates(graph)
    check_taps(names, candidates)
    for name in names:
        if not candidates[name].readable:
            tensor = candidates[name].tensor
            raise ModelError(
                name,
                f"is {tensor.dtype}{tensor.shape} with {len(tensor.scales)} scales, "
                f"only {', '.join(DTYPES)} of shape (1, H, W, C) or (1, N) can be tapped",
            )
    return [candidates[name] for name in names]
