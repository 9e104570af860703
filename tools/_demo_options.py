"""Options of `tools/demo`, and the environment that its runtime needs; nothing but the standard library."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from _venv import ROOT, TFLITE_FOLDER, ensure, tflite_problem


def parse_options(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fast", action="store_true", help="as quickly as it goes instead of 30 frames/s")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON line at the end")
    parser.add_argument(
        "--runtime",
        choices=("onnx", "litert", "tflite"),
        default="onnx",
        help="what serves the model: ONNX Runtime (default), ai-edge-litert or tflite-runtime",
    )
    parser.add_argument("--int8", action="store_true", help="serve the int8 model (litert and tflite)")
    parser.add_argument(
        "--recordings", type=Path, default=ROOT / "recordings", help="folder for the recording"
    )
    options = parser.parse_args()
    if options.int8 and options.runtime == "onnx":
        parser.error("--int8 needs --runtime litert or --runtime tflite")
    return options


def enter_environment(runtime: str) -> None:
    """Go on where the runtime is installed."""
    if runtime == "tflite":
        if problem := tflite_problem():
            sys.exit(f"error: {problem}; --runtime litert serves the same models")
        ensure("tflite,offline", TFLITE_FOLDER)
    else:
        ensure("litert,offline" if runtime == "litert" else "offline")
