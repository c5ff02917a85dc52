"""Detections of one image, in the form that all parts of the package use."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Detections:
    """What a detector found in one image.

    In mappings, the key of an image is its path relative to its split, see
    `yolov5_ema.data.image_names.keys_of_images`.

    Attributes:
        xyxy: float32 of shape (N, 4): left, top, right, bottom in pixels of the image.
        confidence: float32 of shape (N,), in descending order.
        class_id: int64 of shape (N,), counted from 0.
    """

    xyxy: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    confidence: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    class_id: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self.confidence)

    @classmethod
    def of_rows(cls, rows: np.ndarray) -> Detections:
        """Convert from YOLOv5's form, float32 of shape (N, 6): left, top, right, bottom, confidence, class."""
        return cls(rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64))

    def as_rows(self) -> np.ndarray:
        """The inverse of `of_rows`."""
        return np.column_stack([self.xyxy, self.confidence, self.class_id]).astype(np.float32)
