"""What the heads of detectors give: boxes with scores, and the values before the last sigmoid, in one form for all."""

from __future__ import annotations

from typing import Any

import torch

from yolov5_ema.errors import UserError
from yolov5_ema.upstream.patching import Patches

# sigmoid(50) is 1 in float32
_CERTAIN = 50.0

Outputs = tuple[torch.Tensor, torch.Tensor]
"""(N, n, 5 + nc) each: centre, size, objectness and class probabilities of the candidates; the same before the sigmoid,
where the first four columns have no meaning."""


def outputs_of_yolov5(model: Any, batch: torch.Tensor) -> Outputs:
    """The outputs of a YOLOv5 detector in evaluation mode; a Segment head has more columns.

    v6.0 overwrites the result of its sigmoid with boxes, which then has no gradient; the second value has one.
    """
    output = model(batch)
    decoded, raw = output[0], output[-1]  # a Segment head has its masks in between
    return decoded, torch.cat([one.flatten(1, 3) for one in raw], dim=1)


def outputs_of_ultralytics(model: Any, batch: torch.Tensor) -> Outputs:
    """The outputs of a detector of ultralytics in evaluation mode; it has no objectness, which is 1 here.

    The candidates are the places of the feature maps, whose boxes have no gradient; those of RT-DETR are its queries.
    Heads for masks or keypoints give boxes too.

    Raises:
        UserError: its head gives no boxes.
    """
    head = model.model[-1]
    if _is_transformer(head):
        boxes, logits = _of_transformer(model, batch)
    elif hasattr(head, "cv3"):
        boxes, logits = _of_places(model, batch)
    else:
        raise UserError(f"the head {type(head).__name__} gives no boxes whose scores could be explained")
    certain = torch.ones_like(boxes[..., :1])
    return (
        torch.cat([boxes, certain, logits.sigmoid()], dim=-1),
        torch.cat([boxes, certain * _CERTAIN, logits], dim=-1),
    )


def is_without_suppression(model: Any) -> bool:
    """Whether a detector of ultralytics is trained to give each object once, without non-maximum suppression."""
    head = model.model[-1]
    return bool(getattr(head, "end2end", False)) or _is_transformer(head)


def _is_transformer(head: Any) -> bool:
    return type(head).__name__ == "RTDETRDecoder"


def _of_transformer(model: Any, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes (N, n, 4) as centre and size in pixels, and class scores before the sigmoid (N, n, nc)."""
    boxes, logits, *_ = model(batch)[1]  # of each decoder layer; boxes as shares of the image
    height, width = batch.shape[2:]
    return boxes[-1] * torch.tensor([width, height, width, height], device=boxes.device), logits[-1]


def _of_places(model: Any, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `_of_transformer`, for a head with convolutions."""
    head = model.model[-1]
    is_one_to_one = is_without_suppression(model)
    with Patches() as patches:
        if is_one_to_one:
            # an end-to-end head returns only the best; all are needed, in the order of their places
            patches.set(head, "postprocess", lambda found, *_, **__: found.permute(0, 2, 1))
        decoded, raw = model(batch)[:2]
    decoded = decoded[0] if isinstance(decoded, tuple) else decoded  # beside the masks
    boxes = decoded[:, :4].detach().mT  # (N, n, 4); with 8.3, the steps that decode keypoints have no gradient
    if is_one_to_one:
        boxes = torch.cat([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], dim=-1)
    return boxes, _logits(raw, head, is_one_to_one)


def _logits(raw: Any, head: Any, is_one_to_one: bool) -> torch.Tensor:
    """The class scores before the sigmoid, (N, n, nc); releases differ in what they return beside the boxes."""
    if isinstance(raw, tuple):
        raw = raw[0]  # beside what masks or keypoints need
    if isinstance(raw, dict) and "one2one" in raw:
        raw = raw["one2one" if is_one_to_one else "one2many"]
    if isinstance(raw, dict):
        return raw["scores"].mT
    maps = torch.cat([level.flatten(2) for level in raw], dim=2)  # (N, 4 * reg_max + nc, n)
    return maps[:, -head.nc :].mT
