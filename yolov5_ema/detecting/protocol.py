"""What every detector can do, whatever its file is and whatever runs it.

A new format is one file beside this one, which holds a `Format`, and a word in the table of
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

DETECT, SEGMENT = "detect", "segment"
"""Tasks of detectors: boxes, and boxes with masks."""


Pair = tuple[float, float]
"""Of the horizontal and the vertical."""


@dataclass(frozen=True)
class Thresholds:
    """What decides, besides weights and pixels, which detections there are; defaults as in YOLOv5's ``detect``.

    Attributes:
        conf_thres: confidence below which a detection is dropped.
        iou_thres: overlap above which the less confident of two is dropped.
        max_det: most detections of an image.
        classes: those that are kept; None for all.
        agnostic_nms: let boxes of different classes suppress each other.
        augment: look at scaled and flipped images as well.
    """

    conf_thres: float = 0.25
    iou_thres: float = 0.45
    max_det: int = 1000
    classes: tuple[int, ...] | None = None
    agnostic_nms: bool = False
    augment: bool = False


class TooThinError(ValueError):
    """An image of which nothing is left when it is scaled to the model's size."""


@runtime_checkable
class Detector(Protocol):
    """A detector in memory.

    Attributes:
        file: that it was loaded from.
        names: of the classes.
        stride: sides of what the model sees are multiples of it, in pixels.
        task: `DETECT` or `SEGMENT`.
        imgsz: height and width in pixels that images are scaled into; multiples of ``stride``.
    """

    file: Path
    names: list[str]
    stride: int
    task: str
    imgsz: tuple[int, int]

    def detect(self, images: Sequence[np.ndarray], thresholds: Thresholds) -> list[Detections]:
        """Detect in images, each by itself: what is found in one depends on no other.

        Args:
            images: uint8 of shape (H, W, 3) each, BGR.
            thresholds: what is kept.

        Returns:
            For each image its detections, in whole pixels of the image, the most confident first.

        Raises:
            TooThinError: nothing is left of an image in the model's size.
        """


@runtime_checkable
class TorchDetector(Detector, Protocol):
    """A detector that can be looked into.

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
    """What opens files of one kind: a class of detectors."""

    def reads(self, file: Path) -> bool:
        """Whether it is made for a file."""

    def __call__(
        self,
        file: Path,
        engine: Engine,
        device: torch.device | str,
        imgsz: tuple[int, int],
        half: bool,
        least_stride: int,
    ) -> Detector:
        """The detector in it; arguments and errors as those of `load_detector`."""


def with_module(detector: Detector) -> TorchDetector:
    """The same detector, if it can be looked into.

    Raises:
        UserError: it is no model of torch.
    """
    if not isinstance(detector, TorchDetector):
        raise UserError(f"{detector.file} holds no model of torch; only a checkpoint can be looked into")
    return detector
