"""The model file that a map was calibrated on."""

from __future__ import annotations

from pathlib import Path

from edge_monitor.errors import MapError
from edge_monitor.region_map import RegionMap
from edge_monitor.taps import onnx_graph, tflite_file
from edge_monitor.taps.model_file import is_tflite, load_model


def load_known_model(model: str | Path, region_map: RegionMap) -> tuple[bytes, str]:
    """Bytes and name of a map's model.

    Raises
    ------
    ModelError
        The file cannot be read, or is no whole model.
    MapError
        It is a whole model, but its SHA-256 is not that of the map's.
    """
    data, name = load_model(model)
    try:
        region_map.require_model(data, name)
    except MapError:
        # A file that is cut short is said to be that, not to be another model.
        if is_tflite(data, name):
            tflite_file.read_model(data, name)
        else:
            onnx_graph.read_graph(data, name)
        raise
    return data, name
