"""The forms in which the demo model is shipped, and a region map for each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
from _venv import ROOT
from numpy.typing import NDArray

from edge_monitor.errors import ModelError
from edge_monitor.map_file import load_region_map
from edge_monitor.neutrality import certify_neutrality
from edge_monitor.probe import Probe
from edge_monitor.region_map import RegionMap, Runtime
from edge_monitor.taps.litert import opener
from edge_monitor.taps.model_file import installed_runtime
from edge_monitor.taps.onnx import open_session, quiet_options
from edge_monitor.types import StatRow

Serve = Callable[[NDArray[np.float32]], object]

DATA = ROOT / "edge_monitor" / "data"
ONNX = DATA / "demo_model.onnx"
FLOAT, INT8 = DATA / "demo_model.tflite", DATA / "demo_model_int8.tflite"


def map_here(model: Path) -> RegionMap:
    """Map of a form of the model, on the runtime that serves it here.

    There is one map, of the ONNX form. The taps of the others read alike, float32 within rounding, int8
    within a few steps, so that for a drive of a minute they can share it. Only the golden frames' answers and
    signals are recorded anew, for those are compared more strictly. A device that drives for hours is
    calibrated on the form and the runtime that it serves.
    """
    region_map = load_region_map(DATA / "demo_map.npz")
    if model == ONNX:
        return region_map
    rows: list[StatRow] = []
    probe = Probe.open(model, taps=[tap.name for tap in region_map.taps[1:]], on_row=rows.append)
    if not probe.attached:
        raise ModelError(model, f"the probe does not attach: {probe.detach_reason}")
    frames = region_map.golden.frames.astype(np.float32)
    answers = np.stack([probe.feed(frame[None])[0].ravel().astype(np.float64) for frame in frames])
    golden = msgspec.structs.replace(
        region_map.golden, outputs=answers, signals=np.stack([row.signals for row in rows])
    )
    provenance = msgspec.structs.replace(
        region_map.provenance,
        model=model.name,
        model_sha256=hashlib.sha256(model.read_bytes()).hexdigest(),
        device=Runtime.here(probe.runtime),
    )
    neutrality = certify_neutrality(model, taps=[tap.name for tap in region_map.taps[1:]])
    return msgspec.structs.replace(region_map, golden=golden, provenance=provenance, neutrality=neutrality)


def serve_untapped(model: Path) -> Serve:
    """Answer frames (1, 3, 48, 48) without the monitor, on the runtime that `Probe.open` takes."""
    data = model.read_bytes()
    if model == ONNX:
        session = open_session(data, [], {"sess_options": quiet_options()})
        return lambda frame: session.run(None, {"image": frame})
    interpreter = opener(installed_runtime(), {"num_threads": 1})(data)
    interpreter.allocate_tensors()
    (image,), (answer,) = interpreter.get_input_details(), interpreter.get_output_details()

    def serve(frame: NDArray[np.float32]) -> object:
        interpreter.set_tensor(image["index"], np.ascontiguousarray(frame.transpose(0, 2, 3, 1)))
        interpreter.invoke()
        return interpreter.get_tensor(answer["index"])

    return serve
