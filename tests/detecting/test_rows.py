"""A row of the output for one image: with detections, unreadable, or too narrow."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch

from yolov5_ema.data.detections import Detections
from yolov5_ema.detecting.pipeline import Pipeline
from yolov5_ema.detecting.protocol import Detector, Prepared, Thresholds, TooThinError
from yolov5_ema.detecting.rows import rows_of


class _Finder(Detector):
    """A detector that finds one object of the image's size in every image that is not too narrow."""

    device, most_at_once = torch.device("cpu"), None

    def prepare(self, pixels):
        if pixels.shape[0] < 5:
            raise TooThinError("is too narrow")
        return Prepared(pixels.shape[:2], pixels, (1, 1), (0, 0))

    def infer(self, images, thresholds):
        return thresholds.conf_thres

    def finish(self, output, images, thresholds):
        sizes = [image.shape for image in images]
        return [Detections.of_rows(np.array([[0, 0, wide, high, output, 3]], np.float32)) for high, wide in sizes]


def test_rows(own_folder):
    cv2.imwrite("good.png", np.zeros((20, 30, 3), np.uint8))
    cv2.imwrite("thin.png", np.zeros((2, 30, 3), np.uint8))
    Path("bad.png").write_bytes(b"")
    size = {"height": 20, "width": 30}
    found = {"xyxy": [[0, 0, 30, 20]], "confidence": [0.5], "class_id": [3]}
    nothing = {"xyxy": [], "confidence": [], "class_id": []}
    expected = {
        "good": {**size, **found, "error": None},
        "thin": {**size, "height": 2, **nothing, "error": "is too narrow"},
        "bad": {"height": None, "width": None, **nothing, "error": "is empty"},
    }
    images = [(index, f"{name}.png", str(Path(f"{name}.png").absolute())) for index, name in enumerate(expected)]
    rows = list(rows_of(Pipeline(_Finder()), Thresholds(conf_thres=0.5), images))
    for (index, image, _), row, own in zip(images, rows, expected.values(), strict=True):
        assert row == {"index": index, "image": image, **own}
        assert list(row) == ["index", "image", *size, *nothing, "error"]
