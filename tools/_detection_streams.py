"""Rows as the peers see them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import msgspec
import numpy as np
import onnx
from _detection_collect import Table, stream_tables
from _detection_config import BUDGETS
from _detection_peer import Stream
from _detection_system import Bench, alarms_path, load_map, pool_parts, tune_path
from onnx import numpy_helper

from edge_monitor.kernels.picture import CHANGE_1, N_STATISTICS
from edge_monitor.types import BoolArray, FloatArray, TapSpec


class Layout(msgspec.Struct, frozen=True, eq=False):
    """Where the peers find what they look at; ``weights`` (d + 1, k): last dense layer and its bias."""

    taps: tuple[TapSpec, ...]
    weights: FloatArray


@lru_cache(maxsize=4)
def layout(bench: Bench) -> Layout:
    taps = load_map(bench, next(iter(BUDGETS))).taps
    source, weights = last_dense(bench.configuration.path)
    assert taps[-1].name == source, "the last tap has to be what the last dense layer reads"
    return Layout(taps, weights)


def last_dense(model: Path) -> tuple[str, FloatArray]:
    """Input of a model's last dense layer, and its weights (d + 1, k), the last row the bias."""
    graph = onnx.load(model).graph
    last = next(node for node in reversed(graph.node) if node.op_type == "Gemm")
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weight, bias = (tensors[name].astype(np.float64) for name in last.input[1:])
    return last.input[0], np.vstack([weight.T, bias])


def stream_of(
    table: Table, place: Layout, start: BoolArray, guard: BoolArray, overexposed: BoolArray
) -> Stream:
    """Stream of a table's rows."""
    source, *taps = place.taps
    counts = np.concatenate([tap.voxel_counts() for tap in place.taps])
    mean = table["voxels"][:, :, 1] / counts
    sizes = np.repeat([tap.size // tap.n_channels for tap in taps], [tap.n_channels for tap in taps])
    channels = table["channels"][:, source.n_channels :] / sizes
    penultimate = channels[:, -taps[-1].n_channels :]
    picture = table["picture"][:, : source.n_statistics]
    return Stream(
        start=start,
        signals=np.ascontiguousarray(table["signals"]),
        channels=channels,
        voxel_mean=mean[:, source.n_voxels :],
        penultimate=penultimate,
        confidence=np.ascontiguousarray(table["confidence"]),
        logits=penultimate @ place.weights[:-1] + place.weights[-1],
        picture=np.ascontiguousarray(picture),
        colours=mean[:, : source.n_voxels],
        difference=picture.reshape(len(table), -1, N_STATISTICS)[:, :, CHANGE_1].mean(axis=1),
        guard=guard,
        overexposed=overexposed,
    )


@lru_cache(maxsize=3)
def clean_stream(bench: Bench, part: str) -> Stream:
    """Stream of the rows that fit, that tune, or of the fresh trips."""
    tables = stream_tables(bench.plans("fresh" if part == "fresh" else "pool"), bench.rows)
    start = np.concatenate([np.arange(len(table)) == 0 for table in tables])
    n_fit, n_known = pool_parts(start.size)
    first, last = {"fit": (0, n_fit), "tune": (n_fit, n_known), "fresh": (0, start.size)}[part]
    guard, overexposed = np.zeros((2, last - first), bool)  # what the rows that fit need not know
    if part != "fit":
        budget = next(iter(BUDGETS))
        path = tune_path(bench) if part == "tune" else alarms_path(bench, budget, part).with_suffix(".npz")
        said = np.load(path)
        guard, overexposed = said["guard"], said["overexposed"]
    return stream_of(_between(tables, first, last), layout(bench), start[first:last], guard, overexposed)


def _between(tables: Sequence[Table], first: int, last: int) -> Table:
    """Rows of a stream from ``first`` to before ``last``; what lies outside is not read."""
    parts, offset = [], 0
    for table in tables:
        parts.append(table[max(0, first - offset) : max(0, last - offset)])
        offset += len(table)
    return np.concatenate(parts)


def joined(streams: Sequence[Stream]) -> Stream:
    """Streams one after the other."""
    names = Stream.__struct_fields__
    return Stream(**{name: np.concatenate([getattr(s, name) for s in streams]) for name in names})
