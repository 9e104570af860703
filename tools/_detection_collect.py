"""Clean driving as the probe sees it, kept on disk: one table of rows and some pictures per trip."""

from __future__ import annotations

import ast
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _detection_config import RATE_HZ, Configuration, TripPlan
from _venv import ROOT
from numpy.typing import NDArray

from edge_monitor.offline.scene import BEFORE, Scene, SceneCutter
from edge_monitor.probe import Probe
from edge_monitor.sources.frames import FrameSource
from edge_monitor.taps.onnx import quiet_options
from edge_monitor.types import OutputSummary, SpatialBlock, StatRow, TapSpec

PERIOD_NS = 1e9 / RATE_HZ
LATENCY_NS = 5_000_000
FORMAT = 1
"""Of the files in the cache."""
N_IMAGES = 12
"""Pictures kept of every trip, evenly spaced."""
MAKERS = (
    Path(__file__),
    *(
        ROOT / "edge_monitor" / name
        for name in (
            *("kernels/fingerprint.py", "kernels/output.py", "kernels/picture.py", "kernels/displacement.py"),
            *("kernels/lanes.py", "kernels/memory.py", "kernels/strips.py", "kernels/tap_moments.py"),
            *("kernels/vector.py", "observer.py", "session_probe.py", "taps/onnx.py", "taps/onnx_edit.py"),
            *("taps/onnx_graph.py", "taps/onnx_raw.py", "taps/onnx_session.py", "taps/onnx_tensor.py"),
            *("taps/output.py", "taps/reducer.py", "taps/strip_program.py", "taps/tap_table.py"),
            *("sources/renderer.py", "sources/scenes.py", "sources/trip.py", "sources/world.py"),
            *("sources/frames.py", "offline/scene.py"),
        )
    ),
)
"""What decides the numbers of a row and the pictures of a scene."""

Table = NDArray[Any]
"""Rows as a structured array, see `row_type`."""


def digest(model: Path, code: Iterable[Path]) -> str:
    """Digest of a model and of what some Python files do, whatever their comments and docstrings say."""
    whole = hashlib.sha256(model.read_bytes())
    for file in code:
        tree = ast.parse(file.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                node.value.value = None
        whole.update(ast.dump(tree).encode())
    return whole.hexdigest()[:12]


def rows_folder(configuration: Configuration, cache: Path) -> Path:
    """Folder of a configuration's trips; another one when the model or the making of rows has changed."""
    return cache / f"rows-{FORMAT}-{configuration.name}-{digest(configuration.path, MAKERS)}"


def row_type(taps: Sequence[TapSpec]) -> np.dtype[np.void]:
    """One row: the fields of `StatRow`; an unknown number of the output is NaN, no output is top1 = -1."""
    n_voxels = sum(tap.n_voxels for tap in taps)
    return np.dtype(
        [
            ("signals", "f8", (len(taps),)),
            ("nonfinite", "i8", (len(taps),)),
            ("voxels", "f8", (n_voxels, 3)),
            ("channels", "f8", (sum(tap.n_channels for tap in taps),)),
            ("picture", "f8", (taps[0].n_picture,)),
            ("fingerprint", "u8"),
            ("top1", "i8"),
            ("confidence", "f8"),
            ("entropy", "f8"),
            ("output_nonfinite", "i8"),
            ("speed", "f8"),
            ("exposure", "f8"),
        ]
    )


def table_of(rows: Sequence[StatRow], taps: Sequence[TapSpec]) -> Table:
    """Rows, all of which have a spatial block and a picture, as a table."""
    table = np.zeros(len(rows), row_type(taps))
    for i, row in enumerate(rows):
        table[i] = _record(row)
    return table


def _record(row: StatRow) -> tuple[Any, ...]:
    block, output = row.spatial, row.output
    assert block is not None
    assert block.frames == 1
    answer = (-1, np.nan, np.nan, 0)
    if output is not None:
        known = (np.nan if x is None else x for x in (output.confidence, output.entropy))
        answer = (output.top1, *known, output.nonfinite)
    context = (row.context["speed_mps"], row.context["exposure"])
    numbers = (row.signals, row.nonfinite, block.voxels, block.channels, row.picture, row.fingerprint)
    return (*numbers, *answer, *context)


def rows_of(table: Table, first: int = 0) -> list[StatRow]:
    """Rows of a table, the first of which is frame ``first`` of its stream; their arrays are views of it."""
    plain = np.asarray(table)  # a memory map's own class would make every view slow
    arrays = [plain[name] for name in ("signals", "nonfinite", "voxels", "channels", "picture")]
    names = ("fingerprint", "top1", "confidence", "entropy", "output_nonfinite", "speed", "exposure")
    numbers = zip(*(plain[name].tolist() for name in names), strict=True)
    taps = np.ones(arrays[0].shape[1], np.bool_)
    rows = []
    for i, (mark, top1, confidence, entropy, bad, speed, exposure) in enumerate(numbers):
        signals, nonfinite, voxels, channels, picture = (array[i] for array in arrays)
        at_ns = int((first + i) * PERIOD_NS)
        output = OutputSummary(top1, _known(confidence), _known(entropy), bad) if top1 >= 0 else None
        rows.append(
            StatRow(
                frame=first + i,
                t_ns=at_ns + LATENCY_NS,
                latency_ns=LATENCY_NS,
                signals=signals,
                nonfinite=nonfinite,
                fingerprint=mark,
                t_capture_ns=at_ns,
                spatial=SpatialBlock(1, taps, voxels, channels),
                output=output,
                context={"speed_mps": speed, "exposure": exposure},
                picture=picture,
            )
        )
    return rows


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


def collect(configuration: Configuration, plan: TripPlan, folder: Path) -> int:
    """Drive one trip with the probe and keep what the plan asks for, unless it is there; its frames."""
    target = table_path(plan, folder)
    if target.exists():
        return plan.frames
    rows: list[StatRow] = []
    probe = Probe.onnx(configuration.path, on_row=rows.append, sess_options=quiet_options())
    name = probe.get_inputs()[0].name
    source = FrameSource(configuration.frames(plan.seed, plan.frames), tuple(probe.get_inputs()[0].shape[1:]))
    cutter = SceneCutter(plan.onsets, plan.length)
    places = {int((k + 0.5) * plan.frames / N_IMAGES) for k in range(N_IMAGES)}
    images = []
    table = np.zeros(plan.frames, row_type(probe.taps))
    for i, frame in enumerate(source):
        cutter.add(i, frame, source.again)
        probe.note(t_capture_ns=frame.t_capture_ns, **frame.context)
        probe.run(None, {name: frame.array})
        table[i] = _record(rows.pop())
        if i in places:
            images.append(frame.array[0])
    scenes = cutter.scenes([], 0)
    pictures = {"images": np.stack(images).astype(np.uint8)}
    for k, scene in enumerate(scenes):
        assert scene.again is not None
        pictures |= {f"frames_{k}": scene.frames.astype(np.uint8), f"again_{k}": scene.again.astype(np.uint8)}
    folder.mkdir(parents=True, exist_ok=True)
    with atomic(pictures_path(plan, folder)) as part:
        np.savez(part, **pictures)
    with atomic(target) as part:
        np.save(part, table)
    return plan.frames


class atomic:  # noqa: N801  # used as a function
    """File object whose contents appear at a path all at once."""

    def __init__(self, path: Path) -> None:
        self._path, self._part = path, path.with_name(f"{path.name}.{os.getpid()}")

    def __enter__(self) -> Any:  # noqa: ANN401
        self._file = self._part.open("wb")
        return self._file

    def __exit__(self, kind: object, *_: object) -> None:
        self._file.close()
        if kind is None:
            self._part.replace(self._path)
        else:
            self._part.unlink()


def table_path(plan: TripPlan, folder: Path) -> Path:
    return folder / f"{_stem(plan)}.npy"


def pictures_path(plan: TripPlan, folder: Path) -> Path:
    return folder / f"{_stem(plan)}.npz"


def _stem(plan: TripPlan) -> str:
    """Name of a trip's files; plans with other onsets have other names."""
    onsets = hashlib.sha256(repr((plan.onsets, plan.length)).encode()).hexdigest()[:8]
    return f"{plan.seed}-{plan.frames}-{onsets}"


def open_table(plan: TripPlan, folder: Path) -> Table:
    """Table of a trip, in memory as far as it is looked at; changes stay there."""
    return np.load(table_path(plan, folder), mmap_mode="c")


def stream_tables(plans: Sequence[TripPlan], folder: Path) -> list[Table]:
    """Tables of some trips without the frames that have no past."""
    return [open_table(plan, folder)[BEFORE:] for plan in plans]


def stream_rows(tables: Sequence[Table]) -> list[StatRow]:
    """Rows of some trips as one stream: where one ends and the next begins is a hard cut."""
    rows: list[StatRow] = []
    for table in tables:
        rows += rows_of(table, len(rows))
    return rows


def load_images(plans: Sequence[TripPlan], folder: Path) -> NDArray[np.float32]:
    """Pictures kept of some trips, (n, C, H, W)."""
    return np.concatenate(
        [np.load(pictures_path(plan, folder))["images"] for plan in plans], dtype=np.float32
    )


def load_scenes(plans: Sequence[TripPlan], folder: Path, lead: int) -> list[Scene]:
    """Scenes of some trips, with ``lead`` clean rows before each."""
    scenes = []
    for plan in plans:
        table, pictures = open_table(plan, folder), np.load(pictures_path(plan, folder))
        for k, onset in enumerate(plan.onsets):
            driven = table[onset - BEFORE : onset + plan.length]
            context = zip(driven["speed"].tolist(), driven["exposure"].tolist(), strict=True)
            scenes.append(
                Scene(
                    frames=pictures[f"frames_{k}"].astype(np.float32),
                    again=pictures[f"again_{k}"].astype(np.float32),
                    rows=rows_of(table[max(BEFORE, onset - lead) : onset]),
                    contexts=[{"speed_mps": speed, "exposure": gain} for speed, gain in context],
                )
            )
    return scenes
