"""The protocol of ultralytics: matching and AP against closed forms; its own val is compared in test_yolo_val."""

from __future__ import annotations

import numpy as np
import pytest

from yolov5_ema.errors import UserError
from yolov5_ema.evaluation import Predictions, Truth, UltralyticsProtocol


def evaluated(truth, found, rules="8.4"):
    """Rows of left, top, width, height, and a score for each detection; all of one class."""
    boxes, rows = np.array(truth, float), np.array(found, float)
    protocol = UltralyticsProtocol(["car"], rules)
    classes = np.zeros(len(boxes), np.int64)
    protocol.update(
        Truth("a", 100, 100, boxes, classes, np.zeros(len(boxes), bool)),
        Predictions(rows[:, :4], rows[:, 4], np.zeros(len(rows), np.int64)),
    )
    return protocol.compute()


# both detections overlap the first object more: 20 x 20 shifted by 1 or 2 pixels
NEIGHBOURS = [[10, 10, 20, 20], [16, 10, 20, 20]]
TWO = [[11, 10, 20, 20, 0.9], [12, 10, 20, 20, 0.8]]


def test_a_detection_gets_its_second_choice_since_8_4():
    new, old = evaluated(NEIGHBOURS, TWO), evaluated(NEIGHBOURS, TWO, "8.3")
    # IoU of the second detection with the second object: 16 / 24 = 0.667, so it counts up to 0.65
    assert new.metrics["mAP50"] == pytest.approx(0.995, abs=1e-9)
    # with the older rules it finds nothing: recall 0.5 with precision 1, then a line from precision 0.5 to 0
    assert old.metrics["mAP50"] == pytest.approx(0.5 + 0.5 * 0.5 / 2, abs=0.005)
    assert new.metrics["mAP50-95"] > old.metrics["mAP50-95"]


def test_beyond_the_highest_recall_the_precision_is_0_since_8_4():
    """One of two objects is found: the area is 0.5, not that under a line from there to recall 1."""
    found = [[10, 10, 20, 20, 0.9]]
    objects = [[10, 10, 20, 20], [60, 60, 20, 20]]
    assert evaluated(objects, found).metrics["mAP50"] == pytest.approx(0.5, abs=0.006)
    assert evaluated(objects, found, "8.3").metrics["mAP50"] == pytest.approx(0.75, abs=0.006)


def test_an_object_is_found_once_by_the_most_confident():
    found = [[10, 10, 20, 20, 0.5], [12, 10, 20, 20, 0.9]]
    result = evaluated([[10, 10, 20, 20]], found)
    # the better box comes second and finds nothing: at IoU 0.85 and more only it would count, but the other is first
    assert result.metrics["mAP50"] == pytest.approx(0.995, abs=1e-9)
    iou = 18 / 22
    reached = sum(iou >= threshold for threshold in np.arange(0.5, 1, 0.05))
    later = (10 - reached) * 0.5 * 0.995
    assert result.metrics["mAP50-95"] == pytest.approx((reached * 0.995 + later) / 10, abs=0.01)


def test_its_settings_are_said():
    result = evaluated(NEIGHBOURS, TWO)
    assert result.protocol == "ultralytics" and result.settings == {"release": "8.4", "max_det": 300}
    with pytest.raises(UserError, match=r"rules must be 8\.3 or 8\.4, not '9'"):
        UltralyticsProtocol(["a"], "9")
