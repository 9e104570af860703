"""How each operator carries drive (design D8): the rules by which a path is rewritten."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper

from edge_monitor.offline.tract_rewriter import Rewriter
from edge_monitor.taps.onnx_graph import ACTIVATIONS


def _weighted(r: Rewriter, node: onnx.NodeProto) -> str:
    """Conv, ConvTranspose: the same with |W| and without bias."""
    return r.keep(node, [r.only(node), r.weight(np.abs(r.constant(node, 1)))])


def _gemm(r: Rewriter, node: onnx.NodeProto) -> str:
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if attributes.get("transA", 0):
        raise r.unsupported(node, "transposes its input")
    weight = np.abs(r.constant(node, 1) * attributes.get("alpha", 1.0))
    return r.make("MatMul", [r.only(node), r.weight(weight.T if attributes.get("transB", 0) else weight)])


def _matmul(r: Rewriter, node: onnx.NodeProto) -> str:
    if node.input[0] in r.drive:
        return r.make("MatMul", [r.only(node), r.weight(np.abs(r.constant(node, 1)))])
    if len(r.shape(node.input[1])) < 3:
        raise r.unsupported(node, "sums over the batch axis")
    return r.make("MatMul", [r.weight(np.abs(r.constant(node, 0))), r.only(node, 1)])


def _batch_normalization(r: Rewriter, node: onnx.NodeProto) -> str:
    epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
    factor = np.abs(r.constant(node, 1)) / np.sqrt(r.constant(node, 4) + epsilon)
    axes = (1,) * (len(r.shape(node.input[0])) - 2)
    return r.make("Mul", [r.only(node), r.weight(factor.reshape(1, -1, *axes))])


def _add(r: Rewriter, node: onnx.NodeProto) -> str:
    """Add, Sub: drives add; where one side is off the path the drive passes through."""
    drives = r.drives(node)
    for name in node.input:
        if name in r.drive and len(r.shape(name)) != len(r.shape(node.output[0])):
            raise r.unsupported(node, "moves the batch axis")
    if len(drives) == 1:
        # Adding zeros of the output's shape spreads the drive as broadcasting spreads the activation.
        drives.append(r.weight(np.zeros(r.shape(node.output[0]))))
    return r.make("Add", drives)


def _scale(r: Rewriter, node: onnx.NodeProto) -> str:
    """Mul, Div by a constant, or the product of SiLU."""
    if node.op_type == "Mul" and (x := r.silu_input(node)) is not None:
        return _activate(r, r.drive[x], x)
    index = 0 if node.input[0] in r.drive else 1
    if node.op_type == "Div" and index == 1:
        raise r.unsupported(node, "divides by an activation")
    drive, factor = r.only(node, index), np.abs(r.constant(node, 1 - index))
    if factor.ndim > len(r.shape(node.input[index])):
        raise r.unsupported(node, "moves the batch axis")
    return r.make(node.op_type, [drive, r.weight(factor)])


def _activation(r: Rewriter, node: onnx.NodeProto) -> str:
    return _activate(r, r.only(node), node.input[0])


def _activate(r: Rewriter, drive: str, preactivation: str) -> str:
    return r.make("Mul", [drive, r.make("Sigmoid", [r.read_forward(preactivation)])])


def _same(r: Rewriter, node: onnx.NodeProto) -> str:
    """Pooling by means: linear, without weights of its own."""
    return r.keep(node, [r.only(node)])


def _reduce(r: Rewriter, node: onnx.NodeProto) -> str:
    r.refuse_batch_axis(node, 1)
    return r.keep(node, [r.only(node), *r.parameters(node)])


def _max_pool(r: Rewriter, node: onnx.NodeProto) -> str:
    """Each output takes the drive of the element that won: the one whose index the forward pass gives."""
    drive = r.only(node)
    r.keep(node, [r.read_forward(node.input[0])], without="storage_order")  # it numbers columns first
    pool = r.nodes[-1]
    pool.output.append(f"{pool.output[0]}:indices")
    winners = r.make("Reshape", [pool.output[1], r.weight([-1])])
    taken = r.make("Gather", [r.reshape(drive, [-1]), winners], [helper.make_attribute("axis", 1)])
    return r.reshape(taken, r.shape(node.output[0])[1:])


def _concat(r: Rewriter, node: onnx.NodeProto) -> str:
    parts = [
        r.drive.get(name) or r.weight(np.zeros((r.n_sources, *r.shape(name)[1:]))) for name in node.input
    ]
    return r.keep(node, parts)


def _rearrange(r: Rewriter, node: onnx.NodeProto) -> str:
    """Flatten, Reshape, Squeeze, Unsqueeze: the elements of a frame keep their order."""
    return r.reshape(r.only(node), r.shape(node.output[0])[1:])


def _transpose(r: Rewriter, node: onnx.NodeProto) -> str:
    if not node.attribute or node.attribute[0].ints[0] != 0:
        raise r.unsupported(node, "moves the batch axis")
    return r.keep(node, [r.only(node)])


def _slice(r: Rewriter, node: onnx.NodeProto) -> str:
    r.refuse_batch_axis(node, 3)
    return r.keep(node, [r.only(node), *r.parameters(node)])


def _pad(r: Rewriter, node: onnx.NodeProto) -> str:
    """Zeros in place of the padded value bring no drive; reflected or repeated elements bring theirs.

    The value is an attribute in old operator sets, an input in newer ones.
    """
    parameters = r.parameters(node)
    if len(parameters) > 1:
        parameters[1] = ""
    return r.keep(node, [r.only(node), *parameters], without="value")


RULES: dict[str, Callable[[Rewriter, onnx.NodeProto], str]] = {
    **dict.fromkeys(ACTIVATIONS, _activation),
    **dict.fromkeys(["Conv", "ConvTranspose"], _weighted),
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _batch_normalization,
    **dict.fromkeys(["Add", "Sub"], _add),
    **dict.fromkeys(["Mul", "Div"], _scale),
    **dict.fromkeys(["AveragePool", "GlobalAveragePool"], _same),
    **dict.fromkeys(["ReduceMean", "ReduceSum"], _reduce),
    "MaxPool": _max_pool,
    "Concat": _concat,
    **dict.fromkeys(["Flatten", "Reshape", "Squeeze", "Unsqueeze"], _rearrange),
    "Transpose": _transpose,
    "Slice": _slice,
    "Pad": _pad,
    # Quantisation rounds and a cast changes the type: the drive passes as it is.
    **dict.fromkeys(["Identity", "Dropout", "Cast", "QuantizeLinear", "DequantizeLinear"], Rewriter.only),
}
"""Operator -> what adds the drive of a node's output and returns its name."""
