"""YOLOv5's checkpoints as detectors, which give the same detections as YOLOv5's ``detect``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from yolov5_ema.checkpoints.loading import check_file
from yolov5_ema.checkpoints.models import as_yolov5_builds
from yolov5_ema.data.detections import Detections
from yolov5_ema.detecting.protocol import DETECT, SEGMENT, LoadOptions, Pair, Thresholds, TooThinError
from yolov5_ema.errors import UserError
from yolov5_ema.scripts.mistakes import errors_as_user_errors
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.ultralytics import NAME as ULTRALYTICS


class Steps:
    """What a release of YOLOv5 does around its model: letterboxing, non-maximum suppression and scaling back.

    Args:
        engine: the YOLOv5.
        as_val: see `protocol.LoadOptions`.
    """

    def __init__(self, engine: Engine, as_val: bool) -> None:
        self._as_val = as_val
        general = engine.module("utils.general")
        self._suppress = general.non_max_suppression
        self._scale_back = getattr(general, "scale_boxes", None) or general.scale_coords  # renamed in v6.2
        self._letterbox = engine.module("utils.augmentations").letterbox

    def boxed(
        self, pixels: np.ndarray, imgsz: tuple[int, int], stride: int, *, auto: bool
    ) -> tuple[np.ndarray, Pair, Pair]:
        """An image, uint8 of shape (H, W, 3) in BGR, scaled and padded.

        Args:
            pixels: the image.
            imgsz: height and width that it is scaled to fit.
            stride: the sides are padded to multiples of it, if ``auto``.
            auto: pad as little as possible; otherwise to ``imgsz``.

        Returns:
            uint8 of shape (3, H', W') in RGB; see `protocol.TorchDetector.boxed` for the rest.

        Raises:
            TooThinError: a side of it would be 0 pixels.
        """
        try:
            boxed, gain, pad = self._letterbox(pixels, list(imgsz), stride=stride, auto=auto)
        except cv2.error as error:
            raise TooThinError.of(pixels, imgsz) from error
        return np.ascontiguousarray(boxed.transpose(2, 0, 1)[::-1]), gain, pad

    def detections(
        self, output: torch.Tensor, boxed: Sequence[int], shape: Sequence[int], thresholds: Thresholds
    ) -> Detections:
        """The detections of one image, in pixels of the image; in whole pixels, except with ``as_val``.

        Args:
            output: the model's decoded output, (1, n, 5 + nc …).
            boxed: height and width of the model's input.
            shape: height and width of the image.
            thresholds: which detections are kept.
        """
        found: torch.Tensor = self._suppress(
            output,
            thresholds.conf_thres,
            thresholds.iou_thres,
            list(thresholds.classes) if thresholds.classes else None,
            thresholds.agnostic_nms,
            multi_label=self._as_val,
            max_det=thresholds.max_det,
        )[0]
        if len(found):
            corners = self._scale_back(tuple(boxed), found[:, :4], tuple(shape))
            found[:, :4] = corners if self._as_val else corners.round()
        return Detections.of_rows(found.float().cpu().numpy())


class Yolov5Detector:
    """A ``.pt`` checkpoint of YOLOv5; a `protocol.TorchDetector`.

    Each image goes through letterboxing, the model, non-maximum suppression and scaling back, all with the functions of
    the YOLOv5 release.

    Raises:
        UserError: the checkpoint cannot be used, or is not a detector.
    """

    def __init__(self, file: Path, engine: Engine, options: LoadOptions) -> None:
        self.file = file
        self._device = torch.device(options.device)
        self._half = options.half and self._device.type != "cpu"
        with errors_as_user_errors(engine), as_yolov5_builds(file):
            model: Any = _loaded(engine, file)
            names = model.names
            self.names = [str(name) for name in (names.values() if isinstance(names, dict) else names)]
            self.task = SEGMENT if type(model.model[-1]).__name__ == "Segment" else DETECT
            self.stride = max(_stride(model, engine), options.least_stride)
            general = engine.module("utils.general")
            self.imgsz: tuple[int, int] = tuple(general.check_img_size(list(options.imgsz), s=self.stride))
        self.module: torch.nn.Module = (model.half() if self._half else model.float()).to(self._device)
        self._steps = Steps(engine, options.as_val)

    @staticmethod
    def reads(file: Path, engine: Engine) -> bool:
        """Whether a file is a checkpoint by its name; only loading it shows what it really is."""
        return engine.kind != ULTRALYTICS and file.suffix == ".pt" and "torchscript" not in file.name

    def boxed(self, pixels: np.ndarray) -> tuple[torch.Tensor, Pair, Pair]:
        """See `protocol.TorchDetector`."""
        boxed, gain, pad = self._steps.boxed(pixels, self.imgsz, self.stride, auto=True)
        batch = torch.from_numpy(boxed).to(self._device)
        return (batch.half() if self._half else batch.float())[None] / 255, gain, pad

    def detect(self, images: Sequence[np.ndarray], thresholds: Thresholds) -> list[Detections]:
        """See `protocol.Detector`."""
        return [self._detected(pixels, thresholds) for pixels in images]

    @torch.no_grad()
    def _detected(self, pixels: np.ndarray, thresholds: Thresholds) -> Detections:
        """As ``detect``, step by step."""
        batch, _, _ = self.boxed(pixels)
        output = self.module(batch, augment=thresholds.augment)
        while isinstance(output, (list, tuple)):
            output = output[0]
        return self._steps.detections(output, batch.shape[2:], pixels.shape, thresholds)


def _loaded(engine: Engine, file: Path) -> torch.nn.Module:
    check_file(file, engine=engine)
    experimental = engine.module("models.experimental")
    model: torch.nn.Module = experimental.attempt_load(str(file)).eval()
    if type(model).__name__ == "ClassificationModel":
        raise UserError(
            f"{file} is a classifier of YOLOv5's classify/train.py, not a detector; "
            "use 'yolov5-ema run classify/predict.py'"
        )
    rows = getattr(model, "model", None)
    if not isinstance(rows, torch.nn.Sequential) or not hasattr(rows[-1], "anchors") or not hasattr(model, "names"):
        raise UserError(f"{file} does not hold a detector")
    return model


def _stride(model: Any, engine: Engine) -> int:
    """The stride that ``detect`` pads images to: at least 32 from v6.1 on."""
    stride = int(model.stride.max())
    common = engine.module("models.common")
    return max(stride, 32) if hasattr(common, "DetectMultiBackend") else stride
