"""OpenVINO computes in float32 where detections are compared with those of other runtimes."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

from yolov5_ema.scripts.precision import in_float32
from yolov5_ema.upstream.openvino_core import openvino_core


def test_openvino_is_compiled_for_float32():
    opset = pytest.importorskip("openvino.opset13")
    openvino = importlib.import_module("openvino")
    x = opset.parameter([1, 3], np.float32)
    model, core = openvino.Model([opset.relu(x)], [x]), openvino_core()
    before = openvino.Core.compile_model

    def precision(config=None):
        compiled = core.compile_model(model, device_name="CPU", config=config)
        return compiled.get_property("INFERENCE_PRECISION_HINT")

    with in_float32(Path("best_openvino_model")):
        assert precision() == precision({"INFERENCE_PRECISION_HINT": "bf16"}) == openvino.Type.f32
    assert openvino.Core.compile_model is before
    with in_float32(Path("best.onnx")):
        assert openvino.Core.compile_model is before
