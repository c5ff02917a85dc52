"""One model and one picture: the model's input, its detections, and the score that Grad-CAM explains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import nn

from yolov5_ema.data.detections import Detections
from yolov5_ema.errors import UserError
from yolov5_ema.explain.gates import watched_gates
from yolov5_ema.explain.gradcam import grad_cam
from yolov5_ema.explain.layers import Candidates, Layer


class Area(NamedTuple):
    """The rectangle of a model's input, in pixels, that holds the picture; the rest is padding."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class Look:
    """A picture as a model sees it.

    Attributes:
        picture: uint8 of shape (H, W, 3), RGB, in the size that it has in the model's input.
        batch: the model's input, of shape (1, 3, H', W').
        area: where the picture is in the input.
        score: the function that Grad-CAM explains. It takes a batch of N images and returns one number for each image,
            shape (N,), with gradients.
        found: the detections, in pixels of ``picture``; empty for a classifier.
        words: one line that says what was found and what is explained.
        details: further lines.
    """

    picture: np.ndarray
    batch: torch.Tensor
    area: Area
    score: Callable[[torch.Tensor], torch.Tensor]
    found: Detections
    words: str
    details: Sequence[str]


class Subject(Protocol):
    """A loaded model whose layers can be shown: `detectors.Detector` or `classifiers.Classifier`."""

    is_detector: bool
    file: Path
    model: nn.Module
    names: list[str]
    candidates: Candidates

    def look(self, pixels: np.ndarray) -> Look:
        """Run the model on a picture, uint8 of shape (H, W, 3) in BGR.

        Raises:
            TooThinError: scaled to the model's input size, the picture is less than one pixel wide or high.
        """


@dataclass(frozen=True)
class Maps:
    """The maps of one layer for one picture.

    Attributes:
        layer: the layer.
        cam: Grad-CAM in the picture's size, float32 of shape (H, W), not negative, without a unit.
        gate: the gate map in the picture's size, float32 of shape (H, W), where each cell is a rectangle of one value;
            None if the layer is not a block.
        gate_range: minimum, mean and maximum of the gate map's cells within the picture; None if ``gate`` is None.
        method: the method of ``cam``: Grad-CAM or HiResCAM.
    """

    layer: Layer
    cam: np.ndarray
    gate: np.ndarray | None
    gate_range: tuple[float, float, float] | None
    method: str = "Grad-CAM"


def maps_of(subject: Subject, look: Look, layers: Sequence[Layer], *, local: bool = False) -> list[Maps]:
    """Compute Grad-CAM for each layer, and the gate map for each layer that is a block.

    Args:
        subject: the model.
        look: the picture.
        layers: the layers of the model.
        local: whether to compute HiResCAM instead, see `grad_cam`.

    Raises:
        UserError: no gradient reaches a layer, or the model's values are not finite.
    """
    with (
        watched_gates({layer.name: layer.module for layer in layers if layer.block}) as gates,
        torch.no_grad(),
    ):
        look.score(look.batch)
    maps = []
    for layer in layers:
        name = f"{subject.file}: {layer.name} ({layer.kind})"
        cam = grad_cam(look.score, layer.module, look.batch, name, local=local)[0]  # (h, w)
        if not torch.isfinite(cam).all():
            raise UserError(f"{name}: Grad-CAM is not finite; the weights or the layers' outputs hold NaN or infinity")
        gate = gates.get(layer.name)
        maps.append(
            Maps(
                layer,
                _on_picture(cam, look, "bilinear"),
                None if gate is None else _on_picture(gate[0], look, "nearest-exact"),
                None if gate is None else _range(_cells(gate[0], look)),
                "HiResCAM" if local else "Grad-CAM",
            )
        )
    return maps


def _on_picture(cells: torch.Tensor, look: Look, mode: str) -> np.ndarray:
    """Scale a map of the whole input, shape (h, w), to pixels, and cut out the picture, shape (H, W)."""
    smooth = {"align_corners": False} if mode == "bilinear" else {}
    wide = nn.functional.interpolate(cells[None, None], look.batch.shape[2:], mode=mode, **smooth)[0, 0]
    left, top, width, height = look.area
    shown: np.ndarray = wide[top : top + height, left : left + width].cpu().numpy()
    return shown


def _cells(cells: torch.Tensor, look: Look) -> torch.Tensor:
    """The cells of a map whose centre lies in the picture, or all cells if there is none."""
    left, top, width, height = look.area
    rows = _centres(cells.shape[0], look.batch.shape[2], top, height)
    columns = _centres(cells.shape[1], look.batch.shape[3], left, width)
    return cells.cpu()[rows][:, columns] if rows.any() and columns.any() else cells.cpu()


def _centres(count: int, pixels: int, start: int, length: int) -> torch.Tensor:
    centres = (torch.arange(count) + 0.5) * pixels / count
    return (centres >= start) & (centres < start + length)


def _range(cells: torch.Tensor) -> tuple[float, float, float]:
    known = cells[~cells.isnan()].double()
    if not len(known):
        return (float("nan"),) * 3
    return float(known.min()), float(known.mean()), float(known.max())
