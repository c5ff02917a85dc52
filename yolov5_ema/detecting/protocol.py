"""The interface of all detectors, for any file format and runtime.

To add a format, add a file with a `Format` to this folder, and an entry to the table in
`yolov5_ema.detecting.loading`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from yolov5_ema.data.detections import Detections
from yolov5_ema.errors import UserError
from yolov5_ema.upstream.locate import Engine

DETECT, SEGMENT, POSE = "detect", "segment", "pose"
"""Tasks of detectors: boxes, and boxes with masks or keypoints."""


Pair = tuple[float, float]
"""A horizontal and a vertical value."""


@dataclass(frozen=True)
class Thresholds:
    """Options that decide which detections are kept; defaults as in YOLOv5's ``detect``.

    Attributes:
        conf_thres: detections below this confidence are dropped.
        iou_thres: if two detections overlap by more than this, the one with the lower confidence is dropped.
        max_det: the maximum number of detections in an image.
        classes: the classes that are kept; None for all.
        agnostic_nms: let boxes of different classes suppress each other.
        augment: also use scaled and flipped versions of the image.
    """

    conf_thres: float = 0.25
    iou_thres: float = 0.45
    max_det: int = 1000
    classes: tuple[int, ...] | None = None
    agnostic_nms: bool = False
    augment: bool = False


@dataclass(frozen=True)
class LoadOptions:
    """How a detector is loaded.

    Attributes:
        device: where the model runs.
        imgsz: the height and width in pixels that images are scaled to fit; rounded up to multiples of the stride.
        half: compute in half precision; on a GPU only.
        least_stride: the minimum of the stride, in pixels.
        names: the names of the classes, for an exported model that does not say them.
        as_val: with YOLOv5, detect as its ``val`` does: a box can have several classes, and is not rounded to whole
            pixels.
    """

    device: torch.device | str = "cpu"
    imgsz: tuple[int, int] = (640, 640)
    half: bool = False
    least_stride: int = 1
    names: Sequence[str] | None = None
    as_val: bool = False


DEFAULTS = LoadOptions()


class TooThinError(ValueError):
    """An image is so narrow that a side becomes 0 pixels when it is scaled to the model's size."""

    @classmethod
    def of(cls, pixels: np.ndarray, imgsz: tuple[int, int]) -> TooThinError:
        """The error for an image of shape (H, W, 3) and the size that it is scaled to fit."""
        height, width = pixels.shape[:2]
        return cls(f"is too narrow: {width} x {height} pixels leave nothing when scaled to {max(imgsz)}")


@runtime_checkable
class Detector(Protocol):
    """A detector in memory.

    Attributes:
        file: the file that it was loaded from.
        names: the names of the classes.
        stride: the sides of the model's input are multiples of it, in pixels.
        task: `DETECT`, `SEGMENT`, `POSE`, or another task of ultralytics: ``obb`` …
        imgsz: the height and width in pixels that images are scaled to fit; multiples of ``stride``.
    """

    file: Path
    names: list[str]
    stride: int
    task: str
    imgsz: tuple[int, int]

    def detect(self, images: Sequence[np.ndarray], thresholds: Thresholds) -> list[Detections]:
        """Detect objects in images; the detections in one image do not depend on the others.

        Args:
            images: uint8 of shape (H, W, 3) each, BGR.
            thresholds: which detections are kept.

        Returns:
            The detections of each image, the highest confidence first. Boxes are rounded as the YOLO's own command
            does: YOLOv5 to whole pixels, ultralytics not.

        Raises:
            TooThinError: a side of an image becomes 0 pixels in the model's size.
        """


@runtime_checkable
class TorchDetector(Detector, Protocol):
    """A detector whose layers can be inspected.

    Attributes:
        module: the model, in evaluation mode.
    """

    module: nn.Module

    def boxed(self, pixels: np.ndarray) -> tuple[torch.Tensor, Pair, Pair]:
        """An image, uint8 of shape (H, W, 3) in BGR, as the model sees it.

        Returns:
            The batch, float of shape (1, 3, H', W'), RGB, 0 to 1, on the model's device; width and height of the image
            in it as shares of its own; the borders at its left and its top in pixels.

        Raises:
            TooThinError: see `Detector.detect`.
        """


class Format(Protocol):
    """A file format: a class of detectors."""

    def reads(self, file: Path, engine: Engine) -> bool:
        """Whether the format supports a file that belongs to this YOLO."""

    def __call__(self, file: Path, engine: Engine, options: LoadOptions) -> Detector:
        """Load the detector in a file; errors as those of `load_detector`."""


def with_module(detector: Detector) -> TorchDetector:
    """The same detector, if its layers can be inspected.

    Raises:
        UserError: it is not a torch model.
    """
    if not isinstance(detector, TorchDetector):
        raise UserError(f"{detector.file} does not hold a torch model; only a checkpoint can be inspected")
    return detector
