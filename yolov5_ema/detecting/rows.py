"""The result of one image file as a row of the output, for one process or many."""

from __future__ import annotations

from typing import Any

from yolov5_ema.data.detections import Detections
from yolov5_ema.data.image_files import read_image
from yolov5_ema.detecting.protocol import Detector, Thresholds, TooThinError


def row_of(detector: Detector, thresholds: Thresholds, index: int, image: str, file: str) -> dict[str, Any]:
    """Detect objects in one image; a problem with the file is recorded in the row and not raised.

    Args:
        detector: the detector.
        thresholds: which detections are kept.
        index: the image's index in the list of images.
        image: its path as the user gave it.
        file: its absolute path.

    Returns:
        ``index`` and ``image``; ``height`` and ``width`` in pixels, None if it could not be read; ``xyxy``,
        ``confidence`` and ``class_id`` as in `Detections`, as lists; ``error``: what is wrong with it, or None.
    """
    pixels, problem = read_image(file)
    found, size = Detections(), (None, None)
    if pixels is not None:
        size = pixels.shape[:2]
        try:
            (found,) = detector.detect([pixels], thresholds)
        except TooThinError as error:
            problem = str(error)
    return {
        "index": index,
        "image": image,
        "height": size[0],
        "width": size[1],
        "xyxy": found.xyxy.tolist(),
        "confidence": found.confidence.tolist(),
        "class_id": found.class_id.tolist(),
        "error": problem,
    }
