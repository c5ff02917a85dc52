"""Detections for the images of a split, for models that the ``val`` of their YOLO cannot run."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from yolov5_ema.detecting.pipeline import Pipeline
from yolov5_ema.detecting.protocol import Detector, Thresholds
from yolov5_ema.errors import UserError
from yolov5_ema.scripts.collecting import Collected


def collected(detector: Detector, files: Iterable[Path], thresholds: Thresholds, *, single_class: bool) -> Collected:
    """What `collecting.collected_detections` collects from ``val``, without its figures.

    Args:
        detector: the detector.
        files: the images.
        thresholds: which detections are kept.
        single_class: give all detections the class 0.

    Raises:
        UserError: an image cannot be read, or is too narrow for the model.
    """
    found = Collected()
    files = list(files)
    with closing(Pipeline(detector, batch=1).found_in(files, thresholds)) as results:
        for file, result in zip(files, results):
            detections = result.detections
            if detections is None:
                raise UserError(f"{file}: {result.problem}")
            if single_class:
                detections = replace(detections, class_id=np.zeros_like(detections.class_id))
            found.images.append(file)
            found.detections[file] = detections
    return found
