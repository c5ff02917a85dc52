"""From the output of a detector to the input of protocols."""

from __future__ import annotations

import numpy as np

from yolov5_ema.data.detections import Detections
from yolov5_ema.evaluation.records import Predictions


def test_detections_become_predictions():
    rows = np.array([[0.1, 2, 3.3, 5, 0.9, 2], [4, 5, 6, 7, 0.3, 0]], np.float32)
    found = Detections.of_rows(rows)
    assert (found.xyxy.dtype, found.confidence.dtype, found.class_id.dtype) == ("f4", "f4", "i8")
    assert len(found) == 2 and found.class_id.tolist() == [2, 0]
    taken = Predictions.of(found)
    left, right = float(np.float32(0.1)), float(np.float32(3.3))
    assert taken.boxes.tolist() == [[left, 2, right - left, 3], [4, 5, 2, 2]]  # in double precision
    assert taken.scores.tolist() == rows[:, 4].tolist() and taken.classes.tolist() == [2, 0]
    nothing = Predictions.of(Detections())
    assert len(Detections()) == 0 and nothing.boxes.shape == (0, 4) and nothing.scores.shape == (0,)
