"""Grad-CAM of detectors of ultralytics: the boxes are those of its own predict, and the score is theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import SMALL_YOLO
from offline_ultralytics import needs_yolo26
from small_ultralytics import save, small_model

import yolov5_ema
from yolov5_ema.detecting.loading import load_detector
from yolov5_ema.detecting.protocol import LoadOptions, Thresholds
from yolov5_ema.errors import UserError
from yolov5_ema.explain.detectors import Detector, Options
from yolov5_ema.explain.layers import choose
from yolov5_ema.explain.looks import maps_of
from yolov5_ema.explain.outputs import outputs_of_ultralytics


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


@pytest.fixture
def with_masks(engine, own_folder) -> Path:
    return save(_confident(small_model("segment")), own_folder / "masks.pt")


@pytest.fixture
def with_keypoints(engine, own_folder) -> Path:
    return save(_confident(small_model("pose")), own_folder / "keypoints.pt")


def _confident(model: Any) -> Any:
    torch.manual_seed(0)
    for level in model.model[-1].cv3:
        torch.nn.init.normal_(level[-1].weight, std=1.0)
        torch.nn.init.constant_(level[-1].bias, -2.0)
    return model


@pytest.fixture
def transformer(engine, ultralytics, own_folder) -> Path:
    """A small RT-DETR with random weights, whose images are stretched and not letterboxed."""
    head = "RTDETRDecoder, [nc, 64, 30, 2, 4, 2]"
    Path("rtdetr.yaml").write_text(SMALL_YOLO.replace("Detect, [nc]", head))
    torch.manual_seed(0)
    model = ultralytics.RTDETR("rtdetr.yaml")
    torch.nn.init.normal_(model.model.model[-1].dec_score_head[-1].weight, std=0.5)
    model.model.names = {0: "disc", 1: "box", 2: "cross"}
    model.save("rtdetr.pt")
    return Path("rtdetr.pt")


def test_the_boxes_of_a_transformer_are_those_of_predict(engine, transformer, tiny_set):
    """predict lists a box once for each of its classes; explained is the best one."""
    pixels = cv2.imread(str(tiny_set.parent / "images/val/val0.jpg"))[:48]
    look = Detector(engine, transformer, Options(imgsz=64, conf_thres=0.05)).look(pixels)
    detector = load_detector(transformer, LoadOptions(imgsz=(64, 64)), engine=engine)
    (every,) = detector.detect([pixels], Thresholds(conf_thres=0.05))
    _, first = np.unique(every.xyxy, axis=0, return_index=True)
    best = sorted(first)
    assert 5 < len(look.found) == len(best) and look.picture.shape == (64, 64, 3)
    # the picture has 64 x 64 pixels, the image 96 x 48
    np.testing.assert_allclose(look.found.xyxy * [1.5, 0.75, 1.5, 0.75], every.xyxy[best], atol=2e-3)
    np.testing.assert_allclose(look.found.confidence, every.confidence[best], atol=1e-5)
    np.testing.assert_array_equal(look.found.class_id, every.class_id[best])
    assert float(look.score(look.batch)[0].detach()) == pytest.approx(float(look.found.confidence.sum()), rel=1e-4)


@pytest.mark.parametrize(
    "kind", ["small_yolo", pytest.param("end_to_end", marks=needs_yolo26), "with_masks", "with_keypoints"]
)
def test_what_is_explained_is_what_predict_finds(engine, kind, tiny_set, request):
    file = request.getfixturevalue(kind)
    pixels = cv2.imread(str(tiny_set.parent / "images/val/val0.jpg"))
    options = Options(imgsz=64, conf_thres=0.02, iou_thres=0.45, max_det=30)
    look = Detector(engine, file, options).look(pixels)
    detector = load_detector(file, LoadOptions(imgsz=(64, 64)), engine=engine, tasks=("detect", "segment", "pose"))
    (found,) = detector.detect([pixels], Thresholds(conf_thres=0.02, iou_thres=0.45, max_det=30))
    # predict leaves out boxes whose mask is empty
    is_shown = np.isin(look.found.confidence.round(5), found.confidence.round(5))
    assert 0 < len(found) == is_shown.sum() <= len(look.found) <= 30
    assert is_shown.all() or kind == "with_masks"
    # the picture has 64 pixels, the image 96
    np.testing.assert_allclose(look.found.xyxy[is_shown] * 1.5, found.xyxy, atol=2e-3)
    np.testing.assert_allclose(look.found.confidence[is_shown], found.confidence, atol=1e-5)
    np.testing.assert_array_equal(look.found.class_id[is_shown], found.class_id)


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


def test_heads_without_boxes_are_refused():
    model = torch.nn.Module()
    model.model = torch.nn.Sequential(torch.nn.Identity())
    with pytest.raises(UserError, match="the head Identity gives no boxes"):
        outputs_of_ultralytics(model, torch.zeros(1, 3, 8, 8))
