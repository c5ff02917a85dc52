"""Models of the package ultralytics as detectors, which give the same detections as its own ``predict``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from yolov5_ema.checkpoints.exported_models import form_of, metadata_of
from yolov5_ema.data.detections import Detections
from yolov5_ema.detecting.protocol import LoadOptions, Pair, Thresholds, TooThinError
from yolov5_ema.errors import UserError
from yolov5_ema.scripts.mistakes import errors_as_user_errors
from yolov5_ema.scripts.precision import in_float32
from yolov5_ema.texts import listed
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.ultralytics import NAME as ULTRALYTICS


class UltralyticsDetector:
    """A model of ultralytics in any format that it runs: ``.pt``, ONNX, OpenVINO, TorchScript; a `protocol.Detector`.

    Each image goes through ultralytics' own predictor. Boxes are not rounded to whole pixels, as in ultralytics.

    Raises:
        UserError: the file cannot be used, or is not a model with boxes.
    """

    def __init__(self, file: Path, engine: Engine, options: LoadOptions) -> None:
        self.file = file
        self._engine = engine
        self._device = torch.device(options.device)
        if not file.exists():
            raise UserError(f"{file}: there is no such file")
        with errors_as_user_errors(engine):
            facts = self._loaded()
            self.task = str(self._yolo.task)
            self.stride = max(int(facts["stride"]), options.least_stride)
            self.names = [str(facts["names"][key]) for key in sorted(facts["names"])]
            check_imgsz = engine.module("utils.checks").check_imgsz
            own = facts.get("imgsz", list(options.imgsz))
            self.imgsz: tuple[int, int] = tuple(check_imgsz(own, stride=self.stride, min_dim=2))
        self._options = {
            "imgsz": list(self.imgsz),
            "device": str(self._device),
            "verbose": False,
            "save": False,
            **({"half": True} if options.half and self._device.type != "cpu" else {}),
        }

    @staticmethod
    def reads(file: Path, engine: Engine) -> bool:
        """See `protocol.Format`."""
        return engine.kind == ULTRALYTICS and form_of(file) is not None

    def _loaded(self) -> Mapping[str, Any]:
        """Load the model; returns its stride, the names of its classes by number, and ``imgsz`` if it has only one."""
        metadata = metadata_of(self.file)
        missing = [key for key in ("names", "stride", "task") if key not in metadata]
        if missing:
            raise UserError(f"{self.file} does not say its {listed(missing)}: export the model again with ultralytics")
        self._yolo: Any = self._engine.module("models").YOLO(str(self.file), task=metadata["task"])
        own_size = {} if metadata.get("args", {}).get("dynamic") else {"imgsz": metadata.get("imgsz")}
        return {
            "stride": metadata["stride"],
            "names": dict(enumerate(metadata["names"])),
            **{key: size for key, size in own_size.items() if size is not None},
        }

    def detect(self, images: Sequence[np.ndarray], thresholds: Thresholds) -> list[Detections]:
        """See `protocol.Detector`."""
        return [self._detected(pixels, thresholds) for pixels in images]

    def _detected(self, pixels: np.ndarray, thresholds: Thresholds) -> Detections:
        with errors_as_user_errors(self._engine), in_float32(self.file):
            try:
                (result,) = self._yolo.predict(
                    pixels,
                    conf=thresholds.conf_thres,
                    iou=thresholds.iou_thres,
                    max_det=thresholds.max_det,
                    classes=list(thresholds.classes) if thresholds.classes else None,
                    agnostic_nms=thresholds.agnostic_nms,
                    augment=thresholds.augment,
                    **self._options,
                )
            except cv2.error as error:  # a side of it would be 0 pixels
                raise TooThinError.of(pixels, self.imgsz) from error
        return Detections.of_rows(result.boxes.data[:, :6].float().cpu().numpy())


class UltralyticsTorchDetector(UltralyticsDetector):
    """A ``.pt`` checkpoint of ultralytics; a `protocol.TorchDetector`."""

    @staticmethod
    def reads(file: Path, engine: Engine) -> bool:
        """See `protocol.Format`."""
        return engine.kind == ULTRALYTICS and form_of(file) is None

    def _loaded(self) -> Mapping[str, Any]:
        self._yolo = self._engine.module("models").YOLO(str(self.file))
        model = self._yolo.model
        if not hasattr(model, "stride") or not isinstance(getattr(model, "names", None), dict):
            raise UserError(f"{self.file} does not hold a model of ultralytics")
        return {"stride": model.stride.max(), "names": model.names}

    @property
    def module(self) -> torch.nn.Module:
        """The model, in evaluation mode."""
        model: torch.nn.Module = self._yolo.model.eval().to(self._device)
        return model

    def boxed(self, pixels: np.ndarray) -> tuple[torch.Tensor, Pair, Pair]:
        """See `protocol.TorchDetector`."""
        is_stretched = type(self._yolo).__name__ == "RTDETR"
        letterbox = self._engine.module("data.augment").LetterBox
        try:
            # by position: the third parameter, whether images are stretched, was renamed
            boxed = letterbox(self.imgsz, not is_stretched, is_stretched, True, True, self.stride)(image=pixels)
        except cv2.error as error:
            raise TooThinError.of(pixels, self.imgsz) from error
        (height, width), (tall, wide) = pixels.shape[:2], boxed.shape[:2]
        gain = (wide / width, tall / height) if is_stretched else (min(tall / height, wide / width),) * 2
        pad = ((wide - round(width * gain[0])) / 2, (tall - round(height * gain[1])) / 2)
        batch = torch.from_numpy(np.ascontiguousarray(boxed.transpose(2, 0, 1)[::-1])).to(self._device)
        return batch.float()[None] / 255, gain, pad
