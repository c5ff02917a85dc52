"""YOLOv5's checkpoints as detectors, which give the same detections as YOLOv5's ``detect``."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch

from yolov5_ema.checkpoints.loading import check_file
from yolov5_ema.checkpoints.models import as_yolov5_builds
from yolov5_ema.data.detections import Detections
from yolov5_ema.detecting.protocol import (
    DETECT,
    SEGMENT,
    Detector,
    LoadOptions,
    Prepared,
    Thresholds,
    TooThinError,
    as_batch,
    first_tensor,
    usual_batch_of,
    with_shared_weights,
)
from yolov5_ema.errors import UserError
from yolov5_ema.scripts.mistakes import errors_as_user_errors
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.ultralytics import NAME as ULTRALYTICS

if TYPE_CHECKING:
    from yolov5_ema.detecting.views import Cut, Ranked, View


class Yolov5Steps(Detector):
    """What a release of YOLOv5 does around its model: letterboxing, non-maximum suppression and scaling back.

    Args:
        engine: the YOLOv5.
        options: how the detector is loaded.
        auto: whether images are padded as little as possible, not to ``imgsz``.
    """

    def __init__(self, engine: Engine, options: LoadOptions, *, auto: bool) -> None:
        self._as_val = options.as_val
        self._auto = auto
        self.device = torch.device(options.device)
        self.usual_batch = usual_batch_of(self.device)
        self._half = options.half and self.device.type != "cpu"
        self._layout = torch.contiguous_format
        general = engine.module("utils.general")
        self._suppress = general.non_max_suppression
        self._scale_back = getattr(general, "scale_boxes", None) or general.scale_coords  # renamed in v6.2
        self._letterbox = engine.module("utils.augmentations").letterbox

    def prepare(self, pixels: np.ndarray) -> Prepared:
        """See `protocol.Detector`."""
        try:
            boxed, gain, pad = self._letterbox(pixels, list(self.imgsz), stride=self.stride, auto=self._auto)
        except cv2.error as error:
            raise TooThinError.of(pixels, self.imgsz) from error
        height, width = pixels.shape[:2]
        return Prepared((height, width), cv2.cvtColor(boxed, cv2.COLOR_BGR2RGB), gain, pad)

    def batch(self, images: Sequence[Prepared]) -> torch.Tensor:
        """See `protocol.TorchDetector`."""
        return as_batch(images, self.device, half=self._half, layout=self._layout)

    @torch.no_grad()
    def infer(self, images: Sequence[Prepared], thresholds: Thresholds) -> torch.Tensor:
        """The model's decoded output, (N, n, 5 + nc …); see `protocol.Detector`."""
        batch = self.batch(images)
        return self._augmented(batch) if thresholds.augment else self.forward(batch)

    def _augmented(self, batch: torch.Tensor) -> torch.Tensor:
        raise UserError(f"--augment works only with a checkpoint, not with {self.file}")

    @torch.no_grad()
    def finish(self, output: torch.Tensor, images: Sequence[Prepared], thresholds: Thresholds) -> list[Detections]:
        """The detections in whole pixels, except with ``as_val``; see `protocol.Detector`."""
        return [self._found(own[None], image, thresholds) for own, image in zip(output, images)]

    @torch.no_grad()
    def finish_views(
        self, output: torch.Tensor, images: Sequence[Prepared], views: Sequence[View], thresholds: Thresholds
    ) -> list[Ranked]:
        """Boxes in pixels of the model's whole image, where ``detect --slice`` compares them."""
        suppress = functools.partial(self._suppressed, thresholds=thresholds)
        return [
            view.suppressed(_likely(own, thresholds), float(image.gain[0]), image.pad, suppress)
            for own, image, view in zip(output, images, views)
        ]

    @torch.no_grad()
    def merged(self, found: Sequence[Ranked], cut: Cut, thresholds: Thresholds) -> Detections:
        """See `protocol.Detector`."""
        rows = cut.merged(found, agnostic=thresholds.agnostic_nms, max_det=thresholds.max_det)
        return self._scaled_back(rows, cut.boxed_shape, cut.shape)

    def _found(self, output: torch.Tensor, image: Prepared, thresholds: Thresholds) -> Detections:
        (found,) = self._suppressed(output, thresholds)
        return self._scaled_back(found, image.boxed.shape[:2], image.shape)

    def _suppressed(self, output: torch.Tensor, thresholds: Thresholds, labels: Sequence = ()) -> list[torch.Tensor]:
        found: list[torch.Tensor] = self._suppress(
            output,
            thresholds.conf_thres,
            thresholds.iou_thres,
            list(thresholds.classes) if thresholds.classes else None,
            thresholds.agnostic_nms,
            multi_label=self._as_val,
            labels=labels,
            max_det=thresholds.max_det,
        )
        return found

    def _scaled_back(self, found: torch.Tensor, boxed_shape: Sequence[int], shape: Sequence[int]) -> Detections:
        if len(found):
            corners = self._scale_back(boxed_shape, found[:, :4], shape)
            found[:, :4] = corners if self._as_val else corners.round()
        return Detections.of_rows(found.float().cpu().numpy())


def _likely(output: torch.Tensor, thresholds: Thresholds) -> torch.Tensor:
    """The raw predictions of one image that can be above the threshold, in float32."""
    return output[output[:, 4] > thresholds.conf_thres].float()


class Yolov5Detector(Yolov5Steps):
    """A ``.pt`` checkpoint of YOLOv5; a `protocol.TorchDetector`.

    Each image goes through letterboxing, the model, non-maximum suppression and scaling back, all with the functions of
    the YOLOv5 release.

    Raises:
        UserError: the checkpoint cannot be used, or is not a detector.
    """

    most_at_once = None

    def __init__(self, file: Path, engine: Engine, options: LoadOptions) -> None:
        super().__init__(engine, options, auto=True)
        self.file = file
        with errors_as_user_errors(engine), as_yolov5_builds(file):
            model: Any = _loaded(engine, file)
            names = model.names
            self.names = [str(name) for name in (names.values() if isinstance(names, dict) else names)]
            self.task = SEGMENT if type(model.model[-1]).__name__ == "Segment" else DETECT
            self.stride = max(_stride(model, engine), options.least_stride)
            general = engine.module("utils.general")
            self.imgsz: tuple[int, int] = tuple(general.check_img_size(list(options.imgsz), s=self.stride))
        self.module: torch.nn.Module = (model.half() if self._half else model.float()).to(self.device)
        self.forward = self._forward

    @staticmethod
    def reads(file: Path, engine: Engine) -> bool:
        """Whether a file is a checkpoint by its name; only loading it shows what it really is."""
        return engine.kind != ULTRALYTICS and file.suffix == ".pt" and "torchscript" not in file.name

    def copies(self, count: int) -> Sequence[Detector]:
        """On CPUs, ``count`` models with one thread each, in the layout in which convolutions are fastest."""
        if self.device.type != "cpu":
            return [self]
        if self.forward != self._forward:
            # another runtime, which takes calls from several threads
            return [self] * count
        modules = with_shared_weights(self.module, self.module, count, torch.channels_last)
        return [self._copy(module) for module in modules]

    def _copy(self, module: torch.nn.Module) -> Yolov5Detector:
        other = copy.copy(self)
        other.module, other._layout, other.forward = module, torch.channels_last, other._forward
        return other

    def _forward(self, batch: torch.Tensor) -> torch.Tensor:
        return first_tensor(self.module(batch))

    def _augmented(self, batch: torch.Tensor) -> torch.Tensor:
        return first_tensor(self.module(batch, augment=True))


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
