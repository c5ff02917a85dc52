"""Inspect a detector: its boxes, and the score that explains them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision.ops import batched_nms

from yolov5_ema.checkpoints.models import as_yolov5_builds
from yolov5_ema.class_names import class_numbers
from yolov5_ema.data.detections import Detections
from yolov5_ema.detecting.loading import load_detector
from yolov5_ema.detecting.protocol import DETECT, POSE, SEGMENT, LoadOptions, with_module
from yolov5_ema.errors import UserError
from yolov5_ema.explain.layers import Candidates, block_of, candidates
from yolov5_ema.explain.looks import Area, Look
from yolov5_ema.explain.outputs import is_without_suppression, outputs_of_ultralytics, outputs_of_yolov5
from yolov5_ema.texts import counted
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.ultralytics import NAME as ULTRALYTICS

_ROW = re.compile(r"model\.(\d+)")


@dataclass(frozen=True)
class Options:
    """Options that decide which detections are kept; defaults as in ``detect``.

    Attributes:
        imgsz: the side in pixels that images are scaled to fit.
        conf_thres: detections below this score are dropped.
        iou_thres: if two detections of a class overlap by more than this, the one with the lower score is dropped.
        max_det: the maximum number of detections in an image.
        classes: names or numbers of the classes that are kept; empty for all.
    """

    imgsz: int = 640
    conf_thres: float = 0.25
    iou_thres: float = 0.45
    max_det: int = 1000
    classes: tuple[str, ...] = ()


class Detector:
    """A detector of boxes, masks or keypoints whose layers can be inspected; a `looks.Subject`.

    Args:
        engine: the YOLO that the file belongs to, see `detecting.loading.engine_for`.
        file: a ``.pt`` checkpoint.
        options: see `Options`.
        device: where the model runs.

    Raises:
        UserError: the checkpoint cannot be used, is not a detector, or does not have a requested class.
    """

    is_detector = True

    def __init__(self, engine: Engine, file: Path, options: Options, device: torch.device | str = "cpu") -> None:
        how = LoadOptions(device, (options.imgsz, options.imgsz), least_stride=32)
        self._detector = with_module(load_detector(file, how, engine=engine, tasks=(DETECT, SEGMENT, POSE)))
        self.file = file
        self.model = self._detector.module
        self.names = self._detector.names
        is_yolov5 = engine.kind != ULTRALYTICS
        self._outputs = outputs_of_yolov5 if is_yolov5 else outputs_of_ultralytics
        self._options = options
        if not is_yolov5 and is_without_suppression(self.model):
            self._options = replace(options, iou_thres=1.0)
        self._classes = class_numbers(options.classes, self.names, file)
        with as_yolov5_builds(file):
            self.candidates = candidates_of(self.model, self._detector.stride)

    def look(self, pixels: np.ndarray) -> Look:
        """Prepare an image; raises `TooThinError`, or a UserError if the model's values are not finite."""
        height, width = pixels.shape[:2]
        prepared = self._detector.prepare(pixels)
        batch, gain, (pad_x, pad_y) = self._detector.batch([prepared]), prepared.gain, prepared.pad
        area = Area(round(pad_x - 0.1), round(pad_y - 0.1), round(width * gain[0]), round(height * gain[1]))
        with torch.no_grad():
            boxes = self._outputs(self.model, batch)[0][0, :, : 5 + len(self.names)].cpu()  # (n, 5 + nc)
        if not torch.isfinite(boxes).all():
            raise UserError(f"{self.file} gives values that are not finite; its weights hold NaN or infinity")
        kept, found = self._detections(boxes, area)
        words = counted(len(found), "detection")
        if not len(found):
            kept = best_candidate(boxes, self._classes)
            name, score = self.names[int(kept[0, 1])], float(_scores(boxes)[tuple(kept[0])])
            words = f"no detection; Grad-CAM is of the best candidate: {name} {score:.2f}"
        elif self._classes:
            words += f" of {', '.join(self.names[number] for number in self._classes)}"
        shown = batch[0, :, area.top : area.top + area.height, area.left : area.left + area.width]
        picture = (shown * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        return Look(picture, batch, area, self._score(kept), found, words, _by_class(found, self.names))

    def _score(self, kept: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """The sum of objectness times class probability over the kept candidates."""
        rows, classes = kept.to(next(self.model.parameters()).device).unbind(1)  # (k,) each

        def score(batch: torch.Tensor) -> torch.Tensor:
            chosen = self._outputs(self.model, batch)[1][:, rows]  # (N, k, 5 + nc + …)
            of_class = chosen[..., 5:].gather(2, classes.expand(len(batch), -1)[..., None])[..., 0]  # (N, k)
            return (chosen[..., 4].sigmoid() * of_class.sigmoid()).sum(1)  # (N,)

        return score

    def _detections(self, boxes: torch.Tensor, area: Area) -> tuple[torch.Tensor, Detections]:
        options = self._options
        kept = kept_by_suppression(boxes, options.conf_thres, options.iou_thres, options.max_det, self._classes)
        corners = _corners(boxes[kept[:, 0], :4]) - torch.tensor([area.left, area.top] * 2)
        corners = corners.clamp(min=0).minimum(torch.tensor([area.width, area.height] * 2).float())
        scores = _scores(boxes)[kept[:, 0], kept[:, 1]]
        return kept, Detections(corners.numpy(), scores.numpy(), kept[:, 1].numpy())


def _by_class(found: Detections, names: Sequence[str]) -> list[str]:
    best: dict[str, float] = {}
    shown = [names[number] for number in found.class_id]
    for name, score in zip(shown, found.confidence):  # the highest score comes first
        best.setdefault(name, score)
    return [f"{name}: {count}, the best {best[name]:.2f}" for name, count in Counter(shown).most_common()]


def candidates_of(model: Any, stride: int) -> Candidates:
    """The layers of a detector that may be shown.

    The place of a block is the row before it, by that row's number in the same model without blocks.

    Args:
        model: a model as YOLOv5 builds it, in evaluation mode.
        stride: the sides of its input are multiples of this.
    """
    rows = model.model
    plain, number = [], 0  # the numbers of the rows without the blocks
    for row in rows:
        plain.append(number)
        number += not _is_block_row(row)

    def place_of(name: str) -> str:
        found = _ROW.match(name)
        if found is None:
            return name
        row = int(found[1])
        return f"row {plain[row]} {type(rows[row]).__name__}{name[found.end() :]}"

    inputs = rows[-1].f if isinstance(rows[-1].f, (list, tuple)) else [rows[-1].f]
    return candidates(
        model,
        torch.zeros(1, 3, 2 * stride, 2 * stride, device=next(model.parameters()).device),
        others=[f"model.{number}" for number, row in enumerate(rows) if not _is_block_row(row)],
        usual=[f"model.{_before_blocks(row if row >= 0 else len(rows) - 1 + row, rows)}" for row in inputs],
        place_of=place_of,
        shown=lambda name: name[len("model.") :] if _ROW.match(name) else name,
    )


def kept_by_suppression(
    boxes: torch.Tensor, conf_thres: float, iou_thres: float, max_det: int, classes: Sequence[int] = ()
) -> torch.Tensor:
    """The candidates that ``detect`` would show, by the rules of YOLOv5's ``non_max_suppression``.

    That function returns only boxes; the score that Grad-CAM explains also needs the rows that they come from.

    Args:
        boxes: the candidates of one image, of shape (n, 5 + nc): centre, size, objectness, class probabilities.
        conf_thres, iou_thres, max_det: see `Options`.
        classes: the classes that are kept; empty for all.

    Returns:
        int64 of shape (k, 2): the row and the class of each, in descending order of score.
    """
    best, number = _scores(boxes).max(dim=1)  # (n,) each
    passing = best > conf_thres
    if classes:
        passing &= torch.isin(number, torch.tensor(classes))
    rows = passing.nonzero()[:, 0]
    order = batched_nms(_corners(boxes[rows, :4]), best[rows], number[rows], iou_thres)[:max_det]
    return torch.stack([rows[order], number[rows[order]]], dim=1)


def best_candidate(boxes: torch.Tensor, classes: Sequence[int] = ()) -> torch.Tensor:
    """Row and class of the highest score, int64 of shape (1, 2); arguments as `kept_by_suppression`."""
    scores = _scores(boxes)
    if classes:
        others = torch.ones(scores.shape[1], dtype=torch.bool)
        others[list(classes)] = False
        scores[:, others] = -1
    place = int(scores.argmax())
    return torch.tensor([divmod(place, scores.shape[1])])


def _scores(boxes: torch.Tensor) -> torch.Tensor:
    return boxes[:, 4:5] * boxes[:, 5:]  # (n, nc)


def _corners(xywh: torch.Tensor) -> torch.Tensor:
    return torch.cat([xywh[:, :2] - xywh[:, 2:] / 2, xywh[:, :2] + xywh[:, 2:] / 2], dim=1)  # (n, 4)


def _is_block_row(module: nn.Module) -> bool:
    """Whether a row is a block, or a sequence of blocks (a row with repeats)."""
    if isinstance(module, nn.Sequential) and len(module):
        return all(block_of(one) for one in module)
    return bool(block_of(module))


def _before_blocks(row: int, rows: Any) -> int:
    """The row itself or, if it is a block, the last row before it that is not a block."""
    while row > 0 and _is_block_row(rows[row]):
        row -= 1
    return row
