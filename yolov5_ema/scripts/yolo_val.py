"""The detections from which the ``val`` of the package `ultralytics` computes its metrics."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import yaml

from yolov5_ema.checkpoints.ultralytics_models import opened
from yolov5_ema.data.dataset import SPLITS, Dataset
from yolov5_ema.data.detections import Detections
from yolov5_ema.errors import UserError
from yolov5_ema.scripts.collecting import Collected
from yolov5_ema.scripts.mistakes import errors_as_user_errors
from yolov5_ema.scripts.other_runtime import Forward, replace_forward
from yolov5_ema.scripts.precision import in_float32
from yolov5_ema.upstream.locate import Engine


def collected(
    engine: Engine,
    weights: Path,
    dataset: Dataset,
    split: str,
    options: dict[str, Any],
    max_det: int,
    folder: Path,
    forward: Forward | None = None,
) -> Collected:
    """Run ultralytics' ``val`` on a split and return what it detects.

    Args:
        engine: the package, with the adapter installed.
        weights: the model.
        dataset: the data set.
        split: ``train``, ``val`` or ``test``.
        options: options of ``val``.
        max_det: the most detections for one image.
        folder: ``val`` writes into its subfolder ``val``.
        forward: computes what the model returns; None: the model itself does.

    Raises:
        UserError: what ultralytics reports as a mistake, a model for another task than detection, or a split without
            images.
    """
    found = Collected()
    dataset.images(split)  # a missing split is refused here by the name of the file; ``val`` sees a copy
    with errors_as_user_errors(engine), in_float32(weights), _resolved_file(dataset) as data:
        yolo: Any = opened(weights, engine)
        if yolo.task != "detect":
            raise UserError(f"{weights} is a model for the task {yolo.task}: use 'yolov5-ema yolo {yolo.task} val'")
        metrics = yolo.val(
            validator=_collecting(yolo._smart_load("validator"), found, forward),
            data=str(data),
            split=split,
            max_det=max_det,
            plots=False,
            project=os.path.abspath(folder),  # ultralytics puts others into a folder of its own
            name="val",
            exist_ok=True,
            **options,
        )
    box = metrics.box
    found.figures = tuple(map(float, (box.mp, box.mr, box.map50, box.map)))
    return found


def rules_of(engine: Engine) -> str:
    """The rules by which the installed release matches detections: "8.3" or "8.4", see `UltralyticsProtocol`.

    They are found by an example: of two objects, both detections overlap the first one more. By the older rules the
    second detection does not get its second choice.
    """
    validator = engine.module("engine.validator").BaseValidator
    probe = SimpleNamespace(iouv=torch.tensor([0.5]))
    overlaps = torch.tensor([[0.9, 0.8], [0.0, 0.6]])  # (objects, detections)
    found = validator.match_predictions(probe, torch.zeros(2), torch.zeros(2), overlaps)
    return "8.4" if bool(found.all()) else "8.3"


def resolved(dataset: Dataset) -> str:
    """The data YAML with absolute paths, so that ultralytics reads the images that `Dataset` lists."""
    content = {key: value for key, value in dataset.content.items() if key not in ("download", "path", *SPLITS)}
    places = {split: [str(dataset.place(entry)) for entry in dataset.entries(split)] for split in SPLITS}
    named = {split: found for split, found in places.items() if found}
    first = next(iter(named.values()), [])
    content.update({split: named.get(split, first) for split in ("train", "val")}, **named)
    content.update(path=str(dataset.root.absolute()), names=dict(enumerate(dataset.names)), nc=len(dataset.names))
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


@contextmanager
def _resolved_file(dataset: Dataset) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, dataset.file.name)
        file.write_text(resolved(dataset), encoding="utf-8")
        yield file


def _collecting(base: Any, found: Collected, forward: Forward | None) -> Any:
    """The validator of a task that also keeps the detections of each image."""

    class Validator(base):
        def init_metrics(self, model: Any) -> None:
            replace_forward(model, forward)
            super().init_metrics(model)

        def update_metrics(self, preds: Any, batch: Any) -> None:
            found.images = [Path(file) for file in self.dataloader.dataset.im_files]
            for index, pred in enumerate(preds):
                image = Path(batch["im_file"][index])
                if image in found.raw:
                    raise UserError(f"{image} is evaluated twice")
                rows = rows_of(pred).detach().cpu().float().numpy().copy()
                gain, pad = placement(batch, index, stretched=is_stretched(self))
                rows[:, :4] = (rows[:, :4] - np.array(pad)) / np.array(gain)
                height, width = batch["ori_shape"][index]
                found.raw[image] = Detections.of_rows(rows)
                found.detections[image] = Detections.of_rows(_clipped(rows, width, height))
            super().update_metrics(preds, batch)

    return Validator


def rows_of(pred: Any) -> torch.Tensor:
    """The detections of one image, (N, 6). Early releases of 8.3 give a tensor, later ones a dict."""
    if not isinstance(pred, dict):
        return pred[:, :6]
    return torch.cat([pred["bboxes"][:, :4], pred["conf"][:, None], pred["cls"][:, None]], dim=1)


def is_stretched(validator: Any) -> bool:
    """Whether images are stretched to the model's size, not letterboxed."""
    return any("RTDETR" in base.__name__ for base in type(validator).__mro__)


def placement(batch: Any, index: int, *, stretched: bool) -> tuple[list[float], list[float]]:
    """Where an image lies in the model's input: the factors and the borders of x1, y1, x2, y2.

    Pixels of the image times the factors, plus the borders, are pixels of the input.
    """
    if stretched:
        (height, width), (tall, wide) = batch["ori_shape"][index], batch["img"].shape[2:]
        return [wide / width, tall / height] * 2, [0.0] * 4
    (gain_y, gain_x), (left, top) = batch["ratio_pad"][index]
    return [gain_x, gain_y] * 2, [left, top] * 2


def _clipped(rows: np.ndarray, width: int, height: int) -> np.ndarray:
    rows = rows.copy()
    rows[:, :4] = np.clip(rows[:, :4], 0, np.tile([width, height], 2))
    return rows
