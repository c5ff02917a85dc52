"""The results of image files as rows of the output, for one process or many."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any

from yolov5_ema.data.detections import Detections
from yolov5_ema.detecting.pipeline import Found, Pipeline
from yolov5_ema.detecting.protocol import Thresholds


def rows_of(
    pipeline: Pipeline, thresholds: Thresholds, images: Sequence[tuple[int, str, str]]
) -> Generator[dict[str, Any], None, None]:
    """Detect objects in images; a problem with a file is recorded in its row and not raised.

    Args:
        pipeline: the detector.
        thresholds: which detections are kept.
        images: for each, its index in the list of images, its path as the user gave it, and its absolute path.

    Yields:
        ``index`` and ``image``; ``height`` and ``width`` in pixels, None if it could not be read; ``xyxy``,
        ``confidence`` and ``class_id`` as in `Detections`, as lists; ``error``: what is wrong with it, or None.
    """
    with closing(pipeline.found_in([file for _, _, file in images], thresholds)) as results:
        for (index, image, _), found in zip(images, results):
            yield _row(index, image, found)


def _row(index: int, image: str, found: Found) -> dict[str, Any]:
    height, width = found.size or (None, None)
    detections = found.detections or Detections()
    return {
        "index": index,
        "image": image,
        "height": height,
        "width": width,
        "xyxy": detections.xyxy.tolist(),
        "confidence": detections.confidence.tolist(),
        "class_id": detections.class_id.tolist(),
        "error": found.problem,
    }
