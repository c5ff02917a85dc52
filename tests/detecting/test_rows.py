"""A row of the output for one image: with detections, unreadable, or too thin."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from yolov5_ema.data.detections import Detections
from yolov5_ema.detecting.protocol import Thresholds, TooThinError
from yolov5_ema.detecting.rows import row_of


class _Finder:
    """A detector that finds one object of the image's size in every image that is not too thin."""

    def detect(self, images, thresholds):
        if images[0].shape[0] < 5:
            raise TooThinError("is too narrow")
        height, width = images[0].shape[:2]
        return [Detections.of_rows(np.array([[0, 0, width, height, thresholds.conf_thres, 3]], np.float32))]


def test_rows(own_folder):
    cv2.imwrite("good.png", np.zeros((20, 30, 3), np.uint8))
    cv2.imwrite("thin.png", np.zeros((2, 30, 3), np.uint8))
    Path("bad.png").write_bytes(b"")
    size = {"height": 20, "width": 30}
    found = {"xyxy": [[0, 0, 30, 20]], "confidence": [0.5], "class_id": [3]}
    nothing = {"xyxy": [], "confidence": [], "class_id": []}
    for index, (name, row) in enumerate(
        {
            "good": {**size, **found, "error": None},
            "thin": {**size, "height": 2, **nothing, "error": "is too narrow"},
            "bad": {"height": None, "width": None, **nothing, "error": "is empty"},
        }.items()
    ):
        file = str(Path(f"{name}.png").absolute())
        made = row_of(_Finder(), Thresholds(conf_thres=0.5), index, f"{name}.png", file)
        assert made == {"index": index, "image": f"{name}.png", **row}
        assert list(made) == ["index", "image", *size, *nothing, "error"]
