"""YOLOv5's exported models as detectors: ONNX, OpenVINO and TorchScript."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yolov5_ema.checkpoints.exported_models import form_of, metadata_of
from yolov5_ema.detecting.protocol import DETECT, SEGMENT, LoadOptions
from yolov5_ema.detecting.runtimes import How, loaded
from yolov5_ema.detecting.yolov5_pt import Yolov5Steps
from yolov5_ema.errors import UserError
from yolov5_ema.texts import agreeing, counted
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.ultralytics import NAME as ULTRALYTICS

_OF_A_BOX = 5


class Yolov5Exported(Yolov5Steps):
    """A model that YOLOv5's ``export`` wrote; a `protocol.Detector`.

    Images are letterboxed to the size that the model was exported for.

    Raises:
        UserError: the file cannot be used, or does not say its classes.
    """

    def __init__(self, file: Path, engine: Engine, options: LoadOptions) -> None:
        super().__init__(engine, replace(options, device="cpu", half=False), auto=False)
        if not file.exists():
            raise UserError(f"{file}: there is no such file")
        metadata = metadata_of(file)
        self.file = file
        self.names = _names_in(metadata, options.names, file)
        self.stride = max(int(metadata.get("stride", 32)), options.least_stride)
        self._runtime = loaded(file, How(torch.device(options.device)), metadata)
        self.most_at_once = self._runtime.shape[0]
        self.imgsz = self._size(options.imgsz)
        columns = self._runtime.run(np.zeros((1, 3, *self.imgsz), np.float32)).shape[-1]
        self.task = DETECT if columns == _OF_A_BOX + len(self.names) else SEGMENT
        if columns < _OF_A_BOX + len(self.names):
            known, named = counted(columns - _OF_A_BOX, "class"), counted(len(self.names), "name")
            raise UserError(f"{file} has {known}, but {named} {agreeing(len(self.names), 'was', 'were')} given")
        self.forward = self._run

    @staticmethod
    def reads(file: Path, engine: Engine) -> bool:
        """See `protocol.Format`."""
        return engine.kind != ULTRALYTICS and form_of(file) is not None

    def _size(self, imgsz: tuple[int, int]) -> tuple[int, int]:
        count, _, *sides = self._runtime.shape
        if count not in (1, None):
            raise UserError(f"{self.file} takes {count} images at once: export it with --batch-size 1")
        asked = (-(-side // self.stride) * self.stride for side in imgsz)
        height, width = (own or wanted for own, wanted in zip(sides, asked))
        return height, width

    def _run(self, batch: torch.Tensor) -> torch.Tensor:
        output = self._runtime.run(batch.numpy())
        return output[..., : _OF_A_BOX + len(self.names)] if self.task == SEGMENT else output


def _names_in(metadata: dict[str, Any], given: Sequence[str] | None, file: Path) -> list[str]:
    names = metadata.get("names", given)
    if names is None:
        raise UserError(
            f"{file} does not say the names of its classes: name its data YAML with --data, or export it with YOLOv5 "
            "v6.1 or later"
        )
    return list(names)
