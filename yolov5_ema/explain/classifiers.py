"""Inspect a classifier of ``yolov5-ema classify``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from yolov5_ema.class_names import class_numbers
from yolov5_ema.classification.checkpoints import load_classifier
from yolov5_ema.data.detections import Detections
from yolov5_ema.errors import UserError
from yolov5_ema.explain.layers import candidates
from yolov5_ema.explain.looks import Area, Look

_MOST_NAMED = 5


class Classifier:
    """A classifier whose layers can be inspected; a `looks.Subject`.

    Args:
        file: ``weights/best.pt`` of a run of ``classify train``.
        classes: names or numbers of the classes whose score is explained; empty for the predicted class.
        device: where the model runs.

    Raises:
        UserError: the checkpoint cannot be used, or does not have a requested class.
    """

    is_detector = False

    def __init__(self, file: Path, classes: Sequence[str] = (), device: torch.device | str = "cpu") -> None:
        self.file = file
        loaded = load_classifier(file, device)
        self.model = loaded.model
        self.names = loaded.names
        self._prepare = loaded.prepare
        self._std = torch.tensor(loaded.std)
        self._mean = torch.tensor(loaded.mean)
        self._classes = class_numbers(classes, self.names, file)
        names = [name for name, _ in self.model.named_modules() if name]
        self.candidates = candidates(
            self.model,
            torch.zeros(1, 3, loaded.imgsz, loaded.imgsz, device=loaded.device),
            others=names,
            usual=_last_stage(self.model),
            place_of=lambda name: name,
            shown=lambda name: name,
        )

    def look(self, pixels: np.ndarray) -> Look:
        """Prepare an image, resized and cropped as in validation."""
        batch = self._prepare(Image.fromarray(np.ascontiguousarray(pixels[..., ::-1])))
        colours = batch[0].cpu().permute(1, 2, 0) * self._std + self._mean  # (H, W, 3), 0 to 1
        picture = (colours * 255).round().clamp(0, 255).byte().numpy()
        with torch.no_grad():
            logits = self.model(batch)[0].float()
        if not torch.isfinite(logits).all():
            raise UserError(f"{self.file} gives values that are not finite; its weights hold NaN or infinity")
        probabilities = logits.softmax(0).cpu()
        wanted = self._classes or [int(logits.argmax())]
        best = probabilities.topk(min(_MOST_NAMED, len(self.names))).indices.tolist()
        details = [f"{self.names[number]}: {probabilities[number]:.3f}" for number in best]
        words = f"{self.names[best[0]]} {probabilities[best[0]]:.2f}"
        if self._classes:
            words += f"; Grad-CAM is of {', '.join(self.names[number] for number in wanted)}"

        def score(inputs: torch.Tensor) -> torch.Tensor:
            return self.model(inputs)[:, wanted].sum(1)  # (N,)

        height, width = picture.shape[:2]
        return Look(picture, batch, Area(0, 0, width, height), score, Detections(), words, details)


def _last_stage(model: Any) -> list[str]:
    """The module that timm says gives the features of the last stage."""
    return [info["module"] for info in model.feature_info][-1:]
