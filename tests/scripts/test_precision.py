"""OpenVINO computes in float32 where detections are compared with those of other runtimes."""

from __future__ import annotations

import importlib
import threading
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


def test_it_gives_the_one_core():
    """As ultralytics makes one for each model; see `openvino_core`."""
    openvino = pytest.importorskip("openvino")
    before, file = openvino.Core, Path("best_openvino_model")
    with in_float32(file), in_float32(file):
        assert openvino.Core() is openvino_core()
    assert openvino.Core is before


def test_of_two_threads_each_has_its_block():
    openvino = pytest.importorskip("openvino")
    before = openvino.Core.compile_model
    inside, may_end, second_inside = threading.Event(), threading.Event(), threading.Event()

    def first():
        with in_float32(Path("a_openvino_model")):
            inside.set()
            may_end.wait(60)

    def second():
        with in_float32(Path("b_openvino_model")):
            second_inside.set()

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert inside.wait(60)
    threads[1].start()
    assert not second_inside.wait(0.5)
    may_end.set()
    for thread in threads:
        thread.join(60)
    assert second_inside.is_set() and openvino.Core.compile_model is before
