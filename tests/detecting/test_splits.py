"""Detections for the images of a split, collected without the ``val`` of the model's YOLO."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from yolov5_ema.detecting.loading import load_detector
from yolov5_ema.detecting.protocol import LoadOptions, Thresholds
from yolov5_ema.detecting.splits import collected
from yolov5_ema.errors import UserError

OF_VAL = Thresholds(conf_thres=0.001, iou_thres=0.6, max_det=300)


@pytest.fixture(scope="module")
def detector(engine, trained):
    return load_detector(trained, LoadOptions(imgsz=(96, 96), as_val=True), engine=engine)


def test_what_is_collected_is_that_of_val(engine, detector, tiny_set):
    """The boxes before they are rounded, and every class of a box, as YOLOv5's own functions give them."""
    files = sorted((tiny_set.parent / "images/val").glob("*.jpg"))[:2]
    found = collected(detector, files, OF_VAL, single_class=False)
    assert found.images == files == list(found.detections) and found.figures == ()
    suppress = engine.module("utils.general").non_max_suppression
    for file in files:
        batch = detector.batch([detector.prepare(cv2.imread(str(file)))])
        (rows,) = suppress(detector.module(batch)[0], 0.001, 0.6, multi_label=True, max_det=300)
        # the image fills the model's input, so a pixel of one is a pixel of the other
        np.testing.assert_allclose(found.of(file).xyxy, rows[:, :4].detach().numpy().clip(0, 96), atol=1e-3)
        np.testing.assert_array_equal(found.of(file).class_id, rows[:, 5].detach().numpy())
        boxes = found.of(file).xyxy
        assert (boxes != boxes.round()).any() and len(np.unique(boxes, axis=0)) < len(boxes)


def test_one_class_and_unreadable_images(detector, tiny_set, tmp_path):
    file = tiny_set.parent / "images/val/val0.jpg"
    assert set(collected(detector, [file], OF_VAL, single_class=True).of(file).class_id) == {0}
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"a\.jpg: "):
        collected(detector, [tmp_path / "a.jpg"], OF_VAL, single_class=False)
