"""What YOLOv5's ``detect`` finds in an image file, as numbers: the same for one process and for many."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from yolov5_ema.checkpoints.loading import check_file
from yolov5_ema.data.image_files import read_image
from yolov5_ema.errors import UserError
from yolov5_ema.scripts.running import speaking_plainly
from yolov5_ema.upstream.locate import Engine


@dataclass(frozen=True)
class Options:
    """What decides, besides weights and pixels, which detections there are; defaults as in ``detect``.

    Attributes:
        imgsz: height and width in pixels that images are scaled into.
        conf_thres: confidence below which a detection is dropped.
        iou_thres: overlap above which the less confident of two is dropped.
        max_det: most detections of an image.
        classes: those that are kept; None for all.
        agnostic_nms: let boxes of different classes suppress each other.
        augment: look at scaled and flipped images as well.
        half: compute in half precision; on a GPU only, as in ``detect``.
    """

    imgsz: tuple[int, int] = (640, 640)
    conf_thres: float = 0.25
    iou_thres: float = 0.45
    max_det: int = 1000
    classes: tuple[int, ...] | None = None
    agnostic_nms: bool = False
    augment: bool = False
    half: bool = False


@dataclass(frozen=True)
class ImageResult:
    """What came of one image.

    Attributes:
        index: its place in the list of images.
        image: its path as the user named it.
        height: in pixels, None if it could not be read; so is ``width``.
        xyxy: a box each detection: left, top, right, bottom in whole pixels; the most confident first.
        confidence: of each, in float32.
        class_id: of each, counted from 0.
        error: what is wrong with the image, or None.
    """

    index: int
    image: str
    height: int | None = None
    width: int | None = None
    xyxy: list[list[float]] = dataclasses.field(default_factory=list)
    confidence: list[float] = dataclasses.field(default_factory=list)
    class_id: list[int] = dataclasses.field(default_factory=list)
    error: str | None = None


class Detector:
    """A detector in memory that takes paths of images.

    One image at a time goes through letterboxing, model and suppression, all of them YOLOv5's own. So a result
    depends on no other image.

    Args:
        engine: the YOLOv5, with the shim installed.
        weights: a ``.pt`` checkpoint.
        options: see `Options`.
        device: where the model runs.

    Attributes:
        names: of the classes.
        imgsz: height and width in pixels, raised to multiples of the model's stride.

    Raises:
        UserError: the checkpoint cannot be used, is no detector, or lacks a class that is asked for.
    """

    def __init__(
        self, engine: Engine, weights: Path, options: Options, device: torch.device | str = "cpu"
    ) -> None:
        self._device = torch.device(device)
        self._options = options
        self._half = options.half and self._device.type != "cpu"
        with speaking_plainly(engine):
            self._model: Any = _loaded(engine, weights).to(self._device)
        self._model = self._model.half() if self._half else self._model.float()
        names = self._model.names
        self.names = [str(name) for name in (names.values() if isinstance(names, dict) else names)]
        self._stride = _stride(self._model, engine)
        general = engine.module("utils.general")
        self._suppress = general.non_max_suppression
        self._scale_back = getattr(general, "scale_boxes", None) or general.scale_coords  # renamed in v6.2
        self.imgsz: tuple[int, int] = tuple(general.check_img_size(list(options.imgsz), s=self._stride))
        self._letterbox = engine.module("utils.augmentations").letterbox
        self._check_classes(weights)

    def _check_classes(self, weights: Path) -> None:
        unknown = [number for number in self._options.classes or () if not 0 <= number < len(self.names)]
        if unknown:
            raise UserError(
                f"--classes {unknown[0]}: {weights} knows the classes 0 to {len(self.names) - 1} "
                f"({', '.join(self.names[:10])}{', …' if len(self.names) > 10 else ''})"
            )

    @torch.no_grad()
    def predict(self, index: int, image: str, file: str) -> ImageResult:
        """Detect in one image; what is wrong with the file stands in the result, nothing is raised for it.

        Args:
            index: its place in the list of images.
            image: its path as the user named it.
            file: its path from the root.
        """
        pixels, problem = read_image(file)
        if pixels is None:
            return ImageResult(index, image, error=problem)
        height, width = pixels.shape[:2]
        try:
            boxed = self._letterbox(pixels, list(self.imgsz), stride=self._stride, auto=True)[0]
        except cv2.error:  # a side of it would be 0 pixels
            shape = f"{width} x {height} pixels"
            problem = f"is too narrow: {shape} leave nothing when scaled to {max(self.imgsz)}"
            return ImageResult(index, image, height, width, error=problem)
        found = self._detected(boxed, (height, width, 3))
        return ImageResult(
            index,
            image,
            height,
            width,
            found[:, :4].tolist(),
            found[:, 4].tolist(),
            found[:, 5].int().tolist(),
            problem,
        )

    def _detected(self, boxed: np.ndarray, shape: tuple[int, int, int]) -> torch.Tensor:
        """(n, 6) in pixels of the image: x1, y1, x2, y2, confidence, class. As ``detect``, step by step."""
        options = self._options
        batch = torch.from_numpy(np.ascontiguousarray(boxed.transpose(2, 0, 1)[::-1])).to(self._device)
        batch = (batch.half() if self._half else batch.float())[None]
        batch /= 255
        output = self._model(batch, augment=options.augment)
        while isinstance(output, (list, tuple)):
            output = output[0]
        classes = list(options.classes) if options.classes else None
        found: torch.Tensor = self._suppress(
            output,
            options.conf_thres,
            options.iou_thres,
            classes,
            options.agnostic_nms,
            max_det=options.max_det,
        )[0]
        if len(found):
            found[:, :4] = self._scale_back(batch.shape[2:], found[:, :4], shape).round()
        return found.float().cpu()


def _loaded(engine: Engine, weights: Path) -> torch.nn.Module:
    check_file(weights, engine=engine)
    experimental = engine.module("models.experimental")
    try:
        model = experimental.attempt_load(str(weights)).eval()
    except (KeyError, AttributeError, TypeError) as error:  # some other program's checkpoint
        raise UserError(f"{weights} holds no YOLOv5 model: {error!r}") from error
    head: Any = model.model[-1] if isinstance(getattr(model, "model", None), torch.nn.Sequential) else None
    if not hasattr(head, "anchors") or not hasattr(model, "names"):
        raise UserError(f"{weights} holds no detector")
    if type(head).__name__ == "Segment":
        raise UserError(f"{weights} is a segmentation model: 'yolov5-ema run segment/predict.py' runs those")
    return model


def _stride(model: Any, engine: Engine) -> int:
    """The stride that ``detect`` lets images be padded to: from v6.1 on at least 32."""
    stride = int(model.stride.max())
    common = engine.module("models.common")
    return max(stride, 32) if hasattr(common, "DetectMultiBackend") else stride


def device_of(engine: Engine, flag: str) -> torch.device:
    """The device that YOLOv5's ``--device`` names.

    Raises:
        UserError: there is no such device.
    """
    torch_utils = engine.module("utils.torch_utils")
    with speaking_plainly(engine):
        device: torch.device = torch_utils.select_device(flag)
    return device
