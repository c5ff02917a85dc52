"""Grad-CAM of detectors of ultralytics: the boxes are those of its own predict, and the score is theirs."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import SMALL_YOLO
from offline_ultralytics import offline

import yolov5_ema
from yolov5_ema.detecting.loading import load_detector
from yolov5_ema.detecting.protocol import LoadOptions, Thresholds
from yolov5_ema.errors import UserError
from yolov5_ema.explain.detectors import Detector, Options
from yolov5_ema.explain.layers import choose
from yolov5_ema.explain.looks import maps_of
from yolov5_ema.explain.outputs import outputs_of_ultralytics


@pytest.fixture(scope="module")
def ultralytics(tmp_path_factory):
    with offline(tmp_path_factory.mktemp("config")) as package:
        yield package


@pytest.fixture
def engine(ultralytics):
    yield yolov5_ema.install("ultralytics")
    yolov5_ema.uninstall("ultralytics")


@pytest.fixture
def end_to_end(engine, ultralytics, own_folder) -> Path:
    """The small detector with a head that needs no suppression, as YOLO26's."""
    Path("end.yaml").write_text("end2end: True\nreg_max: 1\n" + SMALL_YOLO)
    torch.manual_seed(0)
    yolo = ultralytics.YOLO("end.yaml")
    for head in (yolo.model.model[-1].one2one_cv3, yolo.model.model[-1].cv3):
        for level in head:
            torch.nn.init.normal_(level[-1].weight, std=1.0)
            torch.nn.init.constant_(level[-1].bias, -2.0)
    yolo.model.names = {0: "disc", 1: "box", 2: "cross"}
    yolo.model.args = {"imgsz": 64, "task": "detect"}
    yolo.save("end.pt")
    return Path("end.pt")


@pytest.mark.parametrize("kind", ["small_yolo", "end_to_end"])
def test_what_is_explained_is_what_predict_finds(engine, kind, tiny_set, request):
    file = request.getfixturevalue(kind)
    pixels = cv2.imread(str(tiny_set.parent / "images/val/val0.jpg"))
    options = Options(imgsz=64, conf_thres=0.02, iou_thres=0.45, max_det=30)
    look = Detector(engine, file, options).look(pixels)
    detector = load_detector(file, LoadOptions(imgsz=(64, 64)), engine=engine)
    (found,) = detector.detect([pixels], Thresholds(conf_thres=0.02, iou_thres=0.45, max_det=30))
    assert 0 < len(found) == len(look.found) <= 30
    # the picture has 64 pixels, the image 96
    np.testing.assert_allclose(look.found.xyxy * 1.5, found.xyxy, atol=2e-3)
    np.testing.assert_allclose(look.found.confidence, found.confidence, atol=1e-5)
    np.testing.assert_array_equal(look.found.class_id, found.class_id)


def test_the_score_is_the_sum_of_the_confidences_of_the_boxes(engine, small_yolo, tiny_set):
    pixels = cv2.imread(str(tiny_set.parent / "images/val/val1.jpg"))
    detector = Detector(engine, small_yolo, Options(imgsz=64, conf_thres=0.05, max_det=7))
    look = detector.look(pixels)
    assert float(look.score(look.batch)[0].detach()) == pytest.approx(float(look.found.confidence.sum()), rel=1e-5)
    [layer] = choose([detector.candidates])[0]
    assert (layer.name, layer.block, layer.stride) == ("3", "EMA", 4)
    (maps,) = maps_of(detector, look, [layer], local=False)
    assert maps.layer is layer


def test_the_gradient_is_that_of_the_models_own_output(engine, small_yolo, tiny_set):
    detector = Detector(engine, small_yolo, Options(imgsz=64))
    batch = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    grads = []
    for score in (
        lambda x: outputs_of_ultralytics(detector.model, x)[1][:, 5:9, 5:].sigmoid().sum(),
        lambda x: detector.model(x)[0][:, 4:, 5:9].sum(),
    ):
        x = batch.clone().requires_grad_()
        score(x).backward()
        grads.append(x.grad)
    assert grads[0].abs().max() > 0
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-9)


def test_heads_without_places_are_refused():
    model = torch.nn.Module()
    model.model = torch.nn.Sequential(torch.nn.Identity())
    with pytest.raises(UserError, match="the head Identity has no score for each place"):
        outputs_of_ultralytics(model, torch.zeros(1, 3, 8, 8))
