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

    Raises:
        UserError: its head gives no box for each place of its feature maps, such as that of RT-DETR.
    """
    head = model.model[-1]
    if not hasattr(head, "cv3"):
        raise UserError(f"the head {type(head).__name__} has no score for each place of an image to explain")
    with Patches() as patches:
        if is_without_suppression(model):
            # an end-to-end head returns only the best; all are needed, in the order of their places
            patches.set(head, "postprocess", lambda found, *_, **__: found.permute(0, 2, 1))
        decoded, raw = model(batch)
    boxes, scores = decoded[:, :4].mT, decoded[:, 4 : 4 + head.nc].mT  # (N, n, 4), (N, n, nc)
    if is_without_suppression(model):
        corners = boxes
        boxes = torch.cat([(corners[..., :2] + corners[..., 2:]) / 2, corners[..., 2:] - corners[..., :2]], dim=-1)
    certain = torch.ones_like(boxes[..., :1])
    logits = _logits(raw, head, is_without_suppression(model))
    return (
        torch.cat([boxes, certain, scores], dim=-1),
        torch.cat([boxes, certain * _CERTAIN, logits], dim=-1),
    )


def is_without_suppression(model: Any) -> bool:
    """Whether a detector of ultralytics is trained to give each object once, without non-maximum suppression."""
    return bool(getattr(model.model[-1], "end2end", False))


def _logits(raw: Any, head: Any, is_one_to_one: bool) -> torch.Tensor:
    """The class scores before the sigmoid, (N, n, nc); releases differ in what they return beside the boxes."""
    if isinstance(raw, dict) and "one2one" in raw:
        raw = raw["one2one" if is_one_to_one else "one2many"]
    if isinstance(raw, dict):
        return raw["scores"].mT
    maps = torch.cat([level.flatten(2) for level in raw], dim=2)  # (N, 4 * reg_max + nc, n)
    return maps[:, -head.nc :].mT
