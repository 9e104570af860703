"""Activations without changing the answer."""

import os

# Read once, when onnxruntime is imported: without it the runtime writes an identifier to the disk.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
