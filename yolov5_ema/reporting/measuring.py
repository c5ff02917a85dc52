"""Evaluating a detector for its page: figures by class, curves, confusions, sample images; kept for the next time."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from yolov5_ema.data.dataset import Dataset, is_there
from yolov5_ema.errors import UserError
from yolov5_ema.evaluation.confusion import ConfusionMatrix
from yolov5_ema.evaluation.records import NO_CLASS, Predictions
from yolov5_ema.evaluation.truths import TruthSet
from yolov5_ema.evaluation.yolov5 import Yolov5Protocol

CONFIDENCE = 0.25
"""Detections below it are not drawn, as YOLOv5's ``detect`` does not show them."""

_VERSION = 1
_RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Sample:
    """One image with its boxes.

    Attributes:
        image: its file.
        truth: a list (class, left, top, width, height) an object, pixels.
        found: a list (class, left, top, width, height, confidence) a detection, the best first.
    """

    image: str
    truth: list[list[float]]
    found: list[list[float]]


@dataclass(frozen=True)
class Measured:
    """What evaluating one best.pt gave, by the rules of YOLOv5's ``val``.

    Attributes:
        names: of the classes.
        split: of the data set.
        images: in it.
        objects: in them.
        metrics: ``P``, ``R``, ``mAP50`` and ``mAP50-95``, 0 to 1.
        per_class: by name ``P``, ``R``, ``AP50``, ``AP`` and ``labels``.
        curves: by name the precision at recalls 0, 0.01 … 1, at IoU 0.5.
        confusion: rows the true class, columns the detected one, the background last; counts.
        samples: images, evenly spaced among those that hold objects.
        settings: what it was made from; another evaluation is due when they differ.
    """

    names: list[str]
    split: str
    images: int
    objects: int
    metrics: dict[str, float]
    per_class: dict[str, dict[str, Any]]
    curves: dict[str, list[float]]
    confusion: list[list[int]]
    samples: list[Sample] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)


def settings_of(
    weights: Path, data: Path, *, split: str, imgsz: int, samples: int, release: str
) -> dict[str, Any]:
    """What an evaluation depends on: files by their content (data) or by size and time (weights)."""
    status = weights.stat()
    return {
        "version": _VERSION,
        "weights": [status.st_size, status.st_mtime_ns],
        "data": [str(data.resolve()), hashlib.sha256(data.read_bytes()).hexdigest()],
        "split": split,
        "imgsz": imgsz,
        "samples": samples,
        "rules": release,
    }


def kept_file(folder: Path, split: str) -> Path:
    """Where the evaluation of a run on a split is kept."""
    return folder / f"report-{split}.json"


def kept(folder: Path, split: str, settings: Mapping[str, Any] | None = None) -> Measured | None:
    """An evaluation that an earlier report left in the run's folder.

    Args:
        folder: of the run.
        split: of the data set.
        settings: that it must have been made with; None: whichever they were, if best.pt is still the same.

    Returns:
        None if there is none that fits; one that cannot be read is made anew.
    """
    try:
        content = json.loads(kept_file(folder, split).read_text(encoding="utf-8"))
        found = Measured(**{**content, "samples": [Sample(**entry) for entry in content["samples"]]})
        given = found.settings
        if settings is None:
            status = (folder / "weights" / "best.pt").stat()
            settings = {**given, "version": _VERSION, "weights": [status.st_size, status.st_mtime_ns]}
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return found if given == settings else None


def as_json(measured: Measured) -> str:
    """For `kept_file`."""
    return json.dumps(asdict(measured), allow_nan=False) + "\n"


def measure(
    dataset: Dataset,
    truths: TruthSet,
    predictions: Mapping[str, Predictions],
    *,
    release: str,
    settings: Mapping[str, Any],
) -> Measured:
    """Turn detections of a split into what a page shows.

    Args:
        dataset: the data set.
        truths: its labels, for the split that ``settings`` names.
        predictions: by the images' names.
        release: whose rules hold, see `Yolov5Protocol`.
        settings: see `settings_of`; ``samples`` is how many images to keep.

    Raises:
        UserError: the split holds no object.
    """
    protocol = Yolov5Protocol(truths.names, release)
    matrix = ConfusionMatrix(truths.names, CONFIDENCE)
    for name, truth in truths.truths.items():
        protocol.update(truth, predictions[name])
        matrix.update(truth, predictions[name])
    result = protocol.compute()
    files = {image.stem: image for image in dataset.images(settings["split"])}
    chosen = _evenly(
        [name for name, truth in truths.truths.items() if len(truth.classes)], settings["samples"]
    )
    return Measured(
        names=list(truths.names),
        split=settings["split"],
        images=len(truths.truths),
        objects=sum(len(truth.classes) for truth in truths.truths.values()),
        metrics=dict(result.metrics),
        per_class={name: dict(figures) for name, figures in result.per_class.items()},
        curves={name: curve.at(_RECALLS).round(5).tolist() for name, curve in result.curves.items()},
        confusion=matrix.counts.T.tolist(),
        samples=[_sample(files[name], truths.truths[name], predictions[name]) for name in chosen],
        settings=dict(settings),
    )


def _evenly(names: Sequence[str], count: int) -> list[str]:
    """So many of them, evenly spaced: nobody chose them for how they look."""
    if len(names) <= count:
        return list(names)
    return [names[math.floor((at + 0.5) * len(names) / count)] for at in range(count)]


def _sample(image: Path, truth: Any, found: Predictions) -> Sample:
    best = found.by_score()
    shown = (best.scores >= CONFIDENCE) & (best.classes != NO_CLASS)
    rows = np.column_stack([best.classes[shown], best.boxes[shown], best.scores[shown]])
    real = truth.classes != NO_CLASS
    objects = np.column_stack([truth.classes[real], truth.boxes[real]])
    return Sample(str(image.resolve()), objects.round(2).tolist(), rows.round(4).tolist())


def data_of(options: Mapping[str, Any], folder: Path) -> Path:
    """The data YAML that a training was given.

    Raises:
        UserError: it is no longer where it was.
    """
    from yolov5_ema.resources import find_shipped

    given = str(options.get("data") or "")
    if not given:
        raise UserError("opt.yaml names no data set")
    # a relative path is from where the training was started: often three folders above runs/train/exp
    for place in (Path(given), *(above / given for above in list(folder.resolve().parents)[:3])):
        if is_there(place) and place.is_file():
            return place
    shipped = find_shipped(given)
    if shipped is not None:
        return shipped
    raise UserError(f"the data set {given} is not there")
