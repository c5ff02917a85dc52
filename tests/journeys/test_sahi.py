"""sahi with checkpoints that contain our blocks: its detections are those of the model itself."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from offline_ultralytics import offline

import yolov5_ema

pytest.importorskip("sahi", reason="sahi is not installed")

from sahi import AutoDetectionModel
from sahi.predict import get_prediction, get_sliced_prediction

SIZE, CONFIDENCE = 64, 0.001


@pytest.fixture
def image(tiny_set):
    """A picture of 160 x 120, RGB."""
    picture = cv2.imread(str(tiny_set.parent / "images/test/test0.jpg"))
    return np.ascontiguousarray(np.tile(picture, (2, 2, 1))[:120, :160, ::-1])


def rows(prediction):
    """x1, y1, x2, y2, confidence and class of sahi's predictions, by descending confidence."""
    found = [[*one.bbox.to_xyxy(), one.score.value, one.category.id] for one in prediction.object_prediction_list]
    return np.array(sorted(found, key=lambda row: -row[4]), dtype=np.float64).reshape(-1, 6)


def visible(boxes):
    """What sahi keeps: boxes inside the image that are not empty."""
    boxes = boxes.cpu().numpy().astype(np.float64)
    boxes[:, :4] = boxes[:, :4].clip(0, [160, 120, 160, 120])
    return boxes[(boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])]


def check(detector, image, expected):
    whole = rows(get_prediction(image, detector, full_shape=[120, 160]))
    assert len(expected) > 10
    np.testing.assert_allclose(whole, expected, rtol=1e-5, atol=1e-4)
    sliced = get_sliced_prediction(
        image,
        detector,
        slice_height=80,
        slice_width=80,
        overlap_height_ratio=0.0,
        overlap_width_ratio=0.0,
        perform_standard_pred=False,
        postprocess_type="NMS",
        postprocess_match_metric="IOU",
        verbose=0,
    )
    assert len(sliced.object_prediction_list) > 10
    assert sliced.object_prediction_list[0].category.name in ("disc", "box", "cross")
    corners = rows(sliced)[:, :4]
    assert (corners >= 0).all() and (corners <= [160, 120, 160, 120]).all() and corners[:, 0].max() >= 80


def make_it_find_something(model, image):
    """Set the BatchNorms' statistics to those of the image, and make the head prefer the first three classes."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    x = torch.from_numpy(np.ascontiguousarray(image[None, :64, :64])).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        model.train()(torch.cat([x, x.flip(2), x.flip(3)]))
        for box, score in zip(model.model[-1].cv2, model.model[-1].cv3):
            torch.nn.init.normal_(box[-1].weight, std=0.2)
            torch.nn.init.normal_(score[-1].weight, std=0.1)
            torch.nn.init.constant_(score[-1].bias, -9.0)
            score[-1].bias[:3] = -4.0
    model.eval()


def test_yolov5(trained, image):
    try:
        model = yolov5_ema.load(trained, device="cpu")
        detector = AutoDetectionModel.from_pretrained(
            model_type="yolov5",
            model_path=str(trained),
            confidence_threshold=CONFIDENCE,
            image_size=SIZE,
            device="cpu",
        )
        assert any(type(module) is yolov5_ema.EMA for module in detector.model.modules())
        # ours has BatchNorm folded: rounding decides which of two equally good boxes suppresses the other
        x = torch.from_numpy(image.transpose(2, 0, 1) / np.float32(255))[None, :, :96]
        with torch.no_grad():
            torch.testing.assert_close(model.model(x)[0], detector.model.model(x)[0], rtol=1e-4, atol=1e-4)
        detector.model.conf = CONFIDENCE
        check(detector, image, visible(detector.model(image, size=SIZE).xyxy[0]))
    finally:
        yolov5_ema.uninstall()


def test_ultralytics(image, tmp_path):
    with offline(tmp_path) as ultralytics:
        torch.manual_seed(0)
        with yolov5_ema.installed("ultralytics"):
            yolo = ultralytics.YOLO("yolo11n-ema.yaml")
        yolo.model.names = {**yolo.model.names, 0: "disc", 1: "box", 2: "cross"}
        make_it_find_something(yolo.model, image)
        yolo.save(str(tmp_path / "untrained.pt"))
        detector = AutoDetectionModel.from_pretrained(
            model_type="ultralytics",
            model_path=str(tmp_path / "untrained.pt"),
            confidence_threshold=CONFIDENCE,
            image_size=SIZE,
            device="cpu",
        )
        assert type(detector.model.model.model[7]) is yolov5_ema.EMA
        found = ultralytics.YOLO(tmp_path / "untrained.pt").predict(
            image[:, :, ::-1], imgsz=SIZE, conf=CONFIDENCE, device="cpu", verbose=False
        )
        check(detector, image, visible(found[0].boxes.data))
