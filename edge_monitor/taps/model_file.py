"""Model files of either kind: their bytes, and which runtime serves them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from edge_monitor.errors import ModelError
from edge_monitor.taps.tflite_schema import IDENTIFIER

TfliteRuntime = Literal["litert", "tflite"]


def load_model(model: str | Path | bytes) -> tuple[bytes, str]:
    """Bytes of a model, and the name by which messages call it.

    Raises
    ------
    ModelError
        The file cannot be read.
    """
    if isinstance(model, bytes):
        return model, "model"
    try:
        return Path(model).read_bytes(), str(model)
    except OSError as error:
        raise ModelError(model, error.strerror or str(error)) from error


def is_tflite(data: bytes, name: str = "model") -> bool:
    """Whether a model is a TensorFlow Lite one, by its content, or by its name when it is cut short."""
    return data[4:8] == IDENTIFIER or name.lower().endswith(".tflite")


def installed_runtime() -> TfliteRuntime:
    """Which of the two TensorFlow Lite runtimes to use: tflite-runtime where it is the only one."""
    only_tflite = find_spec("tflite_runtime") is not None and find_spec("ai_edge_litert") is None
    return "tflite" if only_tflite else "litert"


def serving_runtime(data: bytes, name: str = "model") -> Literal["onnx", "litert", "tflite"]:
    """Which runtime serves a model on this machine."""
    return installed_runtime() if is_tflite(data, name) else "onnx"
