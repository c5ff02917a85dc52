"""Evaluating a detector for its page: figures by class, curves, confusions, sample images; kept for the next time."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from yolov5_ema.data.dataset import Dataset, is_there
from yolov5_ema.data.image_names import keys_of_images
from yolov5_ema.errors import UserError
from yolov5_ema.evaluation.confusion import ConfusionMatrix
from yolov5_ema.evaluation.records import NO_CLASS, Predictions
from yolov5_ema.evaluation.truths import TruthSet
from yolov5_ema.evaluation.yolov5 import Yolov5Protocol
from yolov5_ema.reporting import pictures
from yolov5_ema.reporting.reading import bytes_of, file_of, json_of
from yolov5_ema.reporting.shapes import by_name, checked, maybe, number, one_of, record, several, whole, words

CONFIDENCE = 0.25
"""Detections below it are not drawn, as YOLOv5's ``detect`` does not show them."""

_VERSION = 2
_RECALLS = np.linspace(0, 1, 101)
_MOST_DATA_YAML = 2**20
_MOST_CLASSES = 10_000


@dataclass(frozen=True)
class Sample:
    """One image with its boxes, drawn.

    Attributes:
        image: its name in the data set.
        objects: how many it holds.
        detections: how many were drawn.
        picture: a small JPEG with the boxes in it, in base64; "" if the image could not be read. The pixels
            themselves, not where they are: a page made later holds no other picture than the evaluation saw.
    """

    image: str
    objects: int
    detections: int
    picture: str


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
        "data": [str(data.resolve()), hashlib.sha256(bytes_of(data, _MOST_DATA_YAML)).hexdigest()],
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
        None if there is none that fits.

    Raises:
        UserError: the file is damaged, or no such evaluation; names what is wrong in it.
    """
    file = file_of(folder, kept_file(folder, split).name)
    if file is None:
        return None
    content = json_of(file)
    if isinstance(content, dict) and _version(content) < _VERSION:
        return None  # of an earlier version, which kept where the pictures are
    found = _checked(content, split, file)
    if settings is None:
        status = (folder / "weights" / "best.pt").stat()
        settings = {**found.settings, "version": _VERSION, "weights": [status.st_size, status.st_mtime_ns]}
    return found if found.settings == settings else None


def _version(content: Mapping[str, Any]) -> int:
    settings = content.get("settings")
    version = settings.get("version") if isinstance(settings, dict) else None
    return version if type(version) is int else _VERSION


_FIGURES = ("P", "R", "mAP50", "mAP50-95")
_OR_NONE = maybe(number(0, 1))
_OF_A_CLASS = {"P": _OR_NONE, "R": _OR_NONE, "AP50": _OR_NONE, "AP": _OR_NONE, "labels": whole()}
_SAMPLE = record(image=words, objects=whole(), detections=whole(), picture=pictures.checked_picture)
_MEASURED = record(
    names=several(words, most=_MOST_CLASSES, least=1),
    split=words,
    images=whole(),
    objects=whole(),
    metrics=record((), **{name: number(0, 1) for name in _FIGURES}),
    per_class=by_name(record(tuple(_OF_A_CLASS), **_OF_A_CLASS)),
    curves=by_name(several(number(0, 1), most=len(_RECALLS), least=len(_RECALLS))),
    confusion=several(several(whole())),
    samples=several(_SAMPLE, most=24),
    settings=record(
        version=whole(),
        weights=several(whole(-(10**18), 10**19), most=2),
        data=several(words, most=2, least=2),
        split=words,
        imgsz=whole(1),
        samples=whole(),
        rules=one_of("6.0", "6.2"),
    ),
)


def _checked(content: Any, split: str, where: Path) -> Measured:
    """What a kept file holds, each value of its type, and all for the same classes."""
    held = checked(_MEASURED, content, where, "evaluation that a report has kept")
    names, size = held["names"], len(held["names"]) + 1
    if [len(row) for row in held["confusion"]] != [size] * size:
        raise UserError(f"{where}: its confusion matrix does not have the {size - 1} classes that it names")
    if (
        len(set(names)) < len(names)
        or not {*held["per_class"], *held["curves"]} <= set(names)
        or not held["curves"]
    ):
        raise UserError(f"{where}: its figures by class are not of the classes that it names")
    if held["split"] != split:
        raise UserError(f"{where} is of the split {held['split'][:40]!r}")
    return Measured(**{**held, "samples": [Sample(**entry) for entry in held["samples"]]})


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
    pictures_from: Sequence[Path] | None = None,
    files: Mapping[str, Path] | None = None,
) -> Measured:
    """Turn detections of a split into what a page shows.

    Args:
        dataset: the data set.
        truths: its labels, for the split that ``settings`` names.
        predictions: by the images' keys.
        release: whose rules hold, see `Yolov5Protocol`.
        settings: see `settings_of`; ``samples`` is how many images to keep.
        pictures_from: folders that an image must lie in to be shown, see `folders_of`; None: wherever it lies.
        files: of the images by their keys; None: those of the split.

    Raises:
        UserError: the split holds no object.
    """
    protocol = Yolov5Protocol(truths.names, release)
    matrix = ConfusionMatrix(truths.names, CONFIDENCE)
    for name, truth in truths.truths.items():
        protocol.update(truth, predictions[name])
        matrix.update(truth, predictions[name])
    result = protocol.compute()
    if files is None:
        files = {key: image for image, key in keys_of_images(dataset.images(settings["split"])).items()}
    shown = [
        name
        for name, truth in truths.truths.items()
        if len(truth.classes) and (pictures_from is None or _lies_in(files[name], pictures_from))
    ]
    chosen = _evenly(shown, settings["samples"])
    return Measured(
        names=list(truths.names),
        split=settings["split"],
        images=len(truths.truths),
        objects=sum(len(truth.classes) for truth in truths.truths.values()),
        metrics=dict(result.metrics),
        per_class={name: dict(figures) for name, figures in result.per_class.items()},
        curves={name: curve.at(_RECALLS).round(5).tolist() for name, curve in result.curves.items()},
        confusion=matrix.counts.T.tolist(),
        samples=[_sample(dataset, files[name], truths.truths[name], predictions[name]) for name in chosen],
        settings=dict(settings),
    )


def _evenly(names: Sequence[str], count: int) -> list[str]:
    """So many of them, evenly spaced: nobody chose them for how they look."""
    if len(names) <= count:
        return list(names)
    return [names[math.floor((at + 0.5) * len(names) / count)] for at in range(count)]


def folders_of(dataset: Dataset, split: str) -> list[Path]:
    """Where the images of a split lie by what its data YAML says: its root, the split's folders, those of its lists."""
    found = [dataset.root]
    for place in map(dataset.place, dataset.entries(split)):
        found.append(place if place.is_dir() else place.parent)
    return [Path(os.path.realpath(folder)) for folder in found]


def _lies_in(image: Path, folders: Sequence[Path]) -> bool:
    """Whether an image lies in one of them itself: a link in it, or a line of a list, may lead to any picture."""
    parents = Path(os.path.realpath(image)).parents
    return any(folder in parents and folder != Path(folder.anchor) for folder in folders)


def _sample(dataset: Dataset, image: Path, truth: Any, found: Predictions) -> Sample:
    best = found.by_score()
    shown = (best.scores >= CONFIDENCE) & (best.classes != NO_CLASS)
    rows = np.column_stack([best.classes[shown], best.boxes[shown], best.scores[shown]])
    real = truth.classes != NO_CLASS
    objects = np.column_stack([truth.classes[real], truth.boxes[real]])
    root = Path(os.path.realpath(dataset.root))
    place = Path(os.path.realpath(image))
    name = place.relative_to(root).as_posix() if root in place.parents else image.name
    picture = pictures.draw_sample(place, objects.tolist(), rows.tolist(), dataset.names)
    return Sample(name, len(objects), len(rows), picture)


def data_of(options: Mapping[str, Any], folder: Path) -> Path:
    """The data YAML that a training was given.

    Raises:
        UserError: it is no longer where it was.
    """
    from yolov5_ema.resources import find_shipped

    given = options.get("data")
    if not isinstance(given, str) or not given:
        raise UserError("opt.yaml names no data YAML; name one with --data")
    # a relative path is from where the training was started: often three folders above runs/train/exp
    for place in (Path(given), *(above / given for above in list(folder.resolve().parents)[:3])):
        if is_there(place) and place.is_file():
            return place
    shipped = find_shipped(given)
    if shipped is not None:
        return shipped
    raise UserError(f"the data set {given[:300]} is not there")
