"""Models of the package ultralytics as detectors, which give the same detections as its own ``predict``."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from yolov5_ema.checkpoints.exported_models import form_of, metadata_of
from yolov5_ema.checkpoints.ultralytics_models import opened
from yolov5_ema.data.detections import Detections
from yolov5_ema.detecting.protocol import (
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
from yolov5_ema.scripts.precision import in_float32
from yolov5_ema.texts import counted, listed
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.ultralytics import NAME as ULTRALYTICS


class UltralyticsDetector(Detector):
    """A model of ultralytics in any format that it runs: ``.pt``, ONNX, OpenVINO, TorchScript; a `protocol.Detector`.

    Each image goes through ultralytics' own predictor. Boxes are not rounded to whole pixels, as in ultralytics.

    Raises:
        UserError: the file cannot be used, or is not a model with boxes.
    """

    def __init__(self, file: Path, engine: Engine, options: LoadOptions) -> None:
        self.file = file
        self._engine = engine
        self.device = torch.device(options.device)
        self.usual_batch = usual_batch_of(self.device)
        self._first_call = threading.Lock()
        self._is_ready = False
        self._images: Sequence[Prepared] = ()
        self._layout = torch.contiguous_format
        self.forward = self._own_forward
        if not file.exists():
            raise UserError(f"{file}: there is no such file")
        with errors_as_user_errors(engine):
            facts = self._loaded()
            self.most_at_once = facts.get("most_at_once")
            self.task = str(self._yolo.task)
            self.stride = max(int(facts["stride"]), options.least_stride)
            self.names = [str(facts["names"][key]) for key in sorted(facts["names"])]
            check_imgsz = engine.module("utils.checks").check_imgsz
            own = facts.get("imgsz", list(options.imgsz))
            self.imgsz: tuple[int, int] = tuple(check_imgsz(own, stride=self.stride, min_dim=2))
        self._options = {
            "imgsz": list(self.imgsz),
            "device": str(self.device),
            "verbose": False,
            "save": False,
            **({"half": True} if options.half and self.device.type != "cpu" else {}),
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
        self._yolo: Any = opened(self.file, self._engine)
        own_size = {} if metadata.get("args", {}).get("dynamic") else {"imgsz": metadata.get("imgsz")}
        return {
            "stride": metadata["stride"],
            "names": dict(enumerate(metadata["names"])),
            **{key: size for key, size in own_size.items() if size is not None},
            "most_at_once": None if own_size == {} else 1,
        }

    def ready(self) -> None:
        """See `protocol.Detector`."""
        with self._first_call:
            if not self._is_ready:
                self._start()

    def prepare(self, pixels: np.ndarray) -> Prepared:
        """See `protocol.Detector`."""
        self.ready()
        try:
            (boxed,) = self._yolo.predictor.pre_transform([pixels])
        except cv2.error as error:  # a side of it would be 0 pixels
            raise TooThinError.of(pixels, self.imgsz) from error
        (height, width), (tall, wide) = pixels.shape[:2], boxed.shape[:2]
        gain = (wide / width, tall / height)
        if type(self._yolo).__name__ != "RTDETR":  # which stretches images
            gain = (min(gain),) * 2
        pad = ((wide - round(width * gain[0])) / 2, (tall - round(height * gain[1])) / 2)
        return Prepared((height, width), cv2.cvtColor(boxed, cv2.COLOR_BGR2RGB), gain, pad)

    def _start(self) -> None:
        """Let ultralytics make its predictor, and put this detector's steps into it."""
        thin = np.zeros((self.imgsz[0], 1, 3), np.uint8)
        with errors_as_user_errors(self._engine), in_float32(self.file):
            self._yolo.predict(thin, **self._options)
        self._take(self._yolo.predictor)
        self._is_ready = True

    def _take(self, predictor: Any) -> None:
        predictor.preprocess = lambda _: self.batch(self._images)
        own_inference = type(predictor).inference.__get__(predictor)
        predictor.inference = functools.partial(self._inferred, own_inference)

    def batch(self, images: Sequence[Prepared]) -> torch.Tensor:
        """See `protocol.TorchDetector`."""
        return as_batch(images, self.device, half="half" in self._options, layout=self._layout)

    def infer(self, images: Sequence[Prepared], thresholds: Thresholds) -> list[Any]:
        """The results of ultralytics' own predictor; see `protocol.Detector`."""
        self._images = images
        shapes = [np.broadcast_to(np.uint8(0), (*image.shape, 3)) for image in images]  # pixels are not used again
        with errors_as_user_errors(self._engine):
            results: list[Any] = self._yolo.predict(
                shapes,
                conf=thresholds.conf_thres,
                iou=thresholds.iou_thres,
                max_det=thresholds.max_det,
                classes=list(thresholds.classes) if thresholds.classes else None,
                agnostic_nms=thresholds.agnostic_nms,
                augment=thresholds.augment,
                **self._options,
            )
        return results

    def _inferred(self, inference: Callable[..., Any], batch: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.forward == self._own_forward or self._yolo.predictor.args.augment:
            return inference(batch, *args, **kwargs)
        return self.forward(batch), None

    def _own_forward(self, batch: torch.Tensor) -> torch.Tensor:
        self.ready()
        return first_tensor(self._yolo.predictor.model(batch))

    def finish(self, output: list[Any], images: Sequence[Prepared], thresholds: Thresholds) -> list[Detections]:
        """See `protocol.Detector`."""
        found = [Detections.of_rows(result.boxes.data[:, :6].float().cpu().numpy()) for result in output]
        most = max((int(one.class_id.max()) for one in found if len(one)), default=0)
        if most >= len(self.names):
            raise UserError(
                f"{self.file} finds class {most}, and has names for {counted(len(self.names), 'class')}. If it is an "
                "RT-DETR that ultralytics 8.3 or older has exported, put rtdetr into the file's name: only this says so"
            )
        return found


class UltralyticsTorchDetector(UltralyticsDetector):
    """A ``.pt`` checkpoint of ultralytics; a `protocol.TorchDetector`."""

    @staticmethod
    def reads(file: Path, engine: Engine) -> bool:
        """See `protocol.Format`."""
        return engine.kind == ULTRALYTICS and form_of(file) is None

    def _loaded(self) -> Mapping[str, Any]:
        self._yolo = opened(self.file, self._engine)
        model = self._yolo.model
        if not hasattr(model, "stride") or not isinstance(getattr(model, "names", None), dict):
            raise UserError(f"{self.file} does not hold a model of ultralytics")
        return {"stride": model.stride.max(), "names": model.names}

    def copies(self, count: int) -> Sequence[Detector]:
        """On CPUs, ``count`` models with one thread each, in the layout in which convolutions are fastest."""
        if self.device.type != "cpu" or self.forward != self._own_forward:
            return [self]
        self.ready()
        backend = self._yolo.predictor.model
        return [self._copy(model) for model in with_shared_weights(backend, backend.model, count, torch.channels_last)]

    def _copy(self, model: Any) -> UltralyticsTorchDetector:
        other = copy.copy(self)
        other._yolo, other._layout = copy.copy(self._yolo), torch.channels_last
        other._yolo.predictor = copy.copy(self._yolo.predictor)
        other._yolo.predictor.model, other._yolo.predictor._lock = model, threading.Lock()
        other._take(other._yolo.predictor)
        other.forward = other._own_forward
        return other

    @property
    def module(self) -> torch.nn.Module:
        """The model, in evaluation mode."""
        model: torch.nn.Module = self._yolo.model.eval().to(self.device)
        return model
