"""The interface of all detectors, for any file format and runtime.

To add a format, add a file with a `Format` to this folder, and an entry to the table in
`yolov5_ema.detecting.loading`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import cv2
import numpy as np
import torch
from torch import nn

from yolov5_ema.data.detections import Detections
from yolov5_ema.errors import UserError
from yolov5_ema.upstream.locate import Engine

if TYPE_CHECKING:
    from yolov5_ema.detecting.views import Cut, Ranked, View

T = TypeVar("T")

DETECT, SEGMENT, POSE = "detect", "segment", "pose"
"""Tasks of detectors: boxes, and boxes with masks or keypoints."""


Pair = tuple[float, float]
"""A horizontal and a vertical value."""

Forward = Callable[[torch.Tensor], torch.Tensor]
"""A model: from a batch of images, float of shape (N, 3, H', W'), RGB, 0 to 1, to its first output, (N, n, …)."""


@dataclass(frozen=True)
class Prepared:
    """An image and how the model sees it.

    Attributes:
        shape: height and width of the image in pixels.
        boxed: the image scaled and padded, uint8 of shape (H', W', 3) in RGB.
        gain: its width and height in ``boxed`` as shares of its own.
        pad: the borders at its left and its top in ``boxed``, in pixels.
    """

    shape: tuple[int, int]
    boxed: np.ndarray
    gain: Pair
    pad: Pair


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

_ON_GPU = 16  # images that go through a model together


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

    It works in three steps: `prepare`, `infer` and `finish`. Different steps, and `prepare` for different images, can
    run at the same time in different threads; `infer` runs in one thread at a time.

    Attributes:
        file: the file that it was loaded from.
        names: the names of the classes.
        stride: the sides of the model's input are multiples of it, in pixels.
        task: `DETECT`, `SEGMENT`, `POSE`, or another task of ultralytics: ``obb`` …
        imgsz: the height and width in pixels that images are scaled to fit; multiples of ``stride``.
        device: where the model takes its images.
        forward: the model; another runtime of the same model can take its place.
        most_at_once: the number of images that the model takes at once; None for any number.
        usual_batch: the number of images that the model takes in the least time for each.
    """

    file: Path
    names: list[str]
    stride: int
    task: str
    imgsz: tuple[int, int]
    device: torch.device
    forward: Forward
    most_at_once: int | None
    usual_batch: int = 1

    def ready(self) -> None:
        """Load what would otherwise be loaded with the first image."""

    def prepare(self, pixels: np.ndarray) -> Prepared:
        """An image, uint8 of shape (H, W, 3) in BGR, scaled and padded for the model.

        Raises:
            TooThinError: a side of it becomes 0 pixels in the model's size.
        """

    def infer(self, images: Sequence[Prepared], thresholds: Thresholds) -> Any:
        """Run the model.

        Args:
            images: images that have one shape for the model; at most ``most_at_once``.
            thresholds: which detections are kept.

        Returns:
            What `finish` needs of it.
        """

    def finish(self, output: Any, images: Sequence[Prepared], thresholds: Thresholds) -> list[Detections]:
        """The detections of each image; ``output`` is what `infer` returned for the same images and thresholds."""

    def finish_views(
        self, output: Any, images: Sequence[Prepared], views: Sequence[View], thresholds: Thresholds
    ) -> list[Ranked]:
        """As `finish`, for images that are views of larger ones; `merged` takes those of one image."""
        found = self.finish(output, images, thresholds)
        return [view.native(torch.from_numpy(one.as_rows())) for view, one in zip(views, found)]

    def merged(self, found: Sequence[Ranked], cut: Cut, thresholds: Thresholds) -> Detections:
        """The detections of an image that is cut; ``found`` is of the whole image and then of each window."""
        rows = cut.merged(found, agnostic=thresholds.agnostic_nms, max_det=thresholds.max_det)
        return Detections.of_rows(rows.numpy())

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
        prepared = ([self.prepare(pixels)] for pixels in images)
        return [found for one in prepared for found in self.finish(self.infer(one, thresholds), one, thresholds)]

    def copies(self, count: int) -> Sequence[Detector]:
        """Detectors with these weights, each for another thread; their results equal this one's within float noise.

        Args:
            count: the number of CPU threads that there are for them together, and the most copies that are useful.

        Returns:
            Only the detector itself, if it is fastest with all threads.
        """
        return [self]


@runtime_checkable
class TorchDetector(Detector, Protocol):
    """A detector whose layers can be inspected.

    Attributes:
        module: the model, in evaluation mode.
    """

    module: nn.Module

    def batch(self, images: Sequence[Prepared]) -> torch.Tensor:
        """Images of one shape for ``module``: float of shape (N, 3, H', W'), RGB, 0 to 1, on the model's device."""


def as_batch(
    images: Sequence[Prepared],
    device: torch.device,
    *,
    half: bool = False,
    layout: torch.memory_format = torch.contiguous_format,
) -> torch.Tensor:
    """See `TorchDetector.batch`; float16 if ``half``."""
    if device.type == "cpu" and layout == torch.contiguous_format:
        batch = torch.from_numpy(_in_planes([image.boxed for image in images]))
    else:
        batch = torch.from_numpy(np.stack([image.boxed for image in images])).to(device)
        batch = batch.permute(0, 3, 1, 2).contiguous(memory_format=layout)
    return (batch.half() if half else batch.float()).div_(255)


def _in_planes(images: Sequence[np.ndarray]) -> np.ndarray:
    """(N, 3, H, W) of images (H, W, 3); OpenCV does this in half the time of torch and NumPy."""
    planes = np.empty((len(images), 3, *images[0].shape[:2]), dtype=np.uint8)
    for image, own in zip(images, planes):
        cv2.split(image, list(own))
    return planes


def with_shared_weights(holder: T, module: nn.Module, count: int, layout: torch.memory_format) -> list[T]:
    """Copies of a model that share their weights with each other, for inference in different threads at once.

    Models keep what they compute for the size of an image, so a thread needs a model of its own.

    Args:
        holder: what is copied: the model, or an object that holds it.
        module: the model; it is not changed.
        count: the number of copies.
        layout: the memory format of the weights that have four dimensions.
    """
    shared: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        own = tensor.detach()
        own = own.contiguous(memory_format=layout) if own.dim() == 4 else own
        shared[id(tensor)] = nn.Parameter(own, requires_grad=False) if isinstance(tensor, nn.Parameter) else own
    return [copy.deepcopy(holder, dict(shared)) for _ in range(count)]


def usual_batch_of(device: torch.device) -> int:
    """`Detector.usual_batch` of a model that torch runs."""
    return _ON_GPU if device.type == "cuda" else 1


def first_tensor(output: Any) -> torch.Tensor:
    """The first tensor of what a model returns; most return more in lists and tuples."""
    while isinstance(output, (list, tuple)):
        output = output[0]
    tensor: torch.Tensor = output
    return tensor


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
