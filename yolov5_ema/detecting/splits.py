"""Detections for the images of a split, for models that the ``val`` of their YOLO cannot run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from yolov5_ema.data.image_files import read_image
from yolov5_ema.detecting.protocol import Detector, Thresholds, TooThinError
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
    for file in files:
        pixels, problem = read_image(file)
        if pixels is None:
            raise UserError(f"{file}: {problem}")
        try:
            (detections,) = detector.detect([pixels], thresholds)
        except TooThinError as error:
            raise UserError(f"{file} {error}") from error
        if single_class:
            detections = replace(detections, class_id=np.zeros_like(detections.class_id))
        found.images.append(file)
        found.detections[file] = detections
    return found
