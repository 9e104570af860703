"""Another execution provider serves, and its taps come as ordinary outputs: needs onnxruntime-openvino."""

from __future__ import annotations

import models
import numpy as np
import onnxruntime
import pytest
from tap_memory import held
from tap_models import quantised

from edge_monitor.probe import Probe
from edge_monitor.taps.onnx_edit import append_outputs

OPENVINO = "OpenVINOExecutionProvider"
pytestmark = pytest.mark.skipif(
    OPENVINO not in onnxruntime.get_available_providers(), reason="onnxruntime-openvino is not installed"
)
PROVIDERS = [OPENVINO, "CPUExecutionProvider"]


@pytest.mark.parametrize("build", [models.cnn, models.residual_cnn, models.dense, quantised])
@pytest.mark.parametrize("way", ["onnx", "wrap"])
def test_openvino_is_observed(build, way):
    data = build()
    plain = onnxruntime.InferenceSession(data, providers=PROVIDERS)
    rows = []
    if way == "onnx":
        probe = Probe.onnx(data, on_row=rows.append, providers=PROVIDERS)
    else:
        probe = Probe.wrap(plain, model=data, on_row=rows.append)
    assert (probe.attached, probe.detach_reason) == (True, None)
    assert probe._tapped.session.get_providers()[0] == OPENVINO
    names = [tap.name for tap in probe.taps[1:]]
    tapped = onnxruntime.InferenceSession(append_outputs(data, names), providers=PROVIDERS)
    (given,) = plain.get_inputs()
    for seed in range(3):
        frame = np.random.default_rng(seed).standard_normal((1, *given.shape[1:])).astype(np.float32)
        (found,) = probe.run(None, {given.name: frame})
        np.testing.assert_array_equal(found, plain.run(None, {given.name: frame})[0])
        for values, truth in zip(
            held(probe._tapped._reducer)[1:], tapped.run(names, {given.name: frame}), strict=True
        ):
            # OpenVINO may round a step of integers the other way where the floats behind are asked for.
            step = 0.06 if build is quantised else 1e-5
            np.testing.assert_allclose(values.ravel(), truth.ravel(), rtol=1e-5, atol=step)
    assert len(rows) == 3
