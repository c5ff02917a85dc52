"""Evaluate a detector for its page (figures by class, curves, confusions, sample images) and keep the result."""

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

from yolov5_ema.data.dataset import Dataset
from yolov5_ema.data.image_names import keys_of_images
from yolov5_ema.errors import UserError
from yolov5_ema.evaluation.confusion import ConfusionMatrix
from yolov5_ema.evaluation.records import NO_CLASS, Predictions
from yolov5_ema.evaluation.truths import TruthSet
from yolov5_ema.evaluation.ultralytics import RULES, UltralyticsProtocol
from yolov5_ema.evaluation.yolov5 import RELEASES, Yolov5Protocol
from yolov5_ema.reporting import pictures
from yolov5_ema.reporting.reading import bytes_of, file_of, json_of
from yolov5_ema.reporting.runs import Run
from yolov5_ema.reporting.shapes import by_name, checked, maybe, number, one_of, record, several, whole, words
from yolov5_ema.texts import counted
from yolov5_ema.upstream.data_yaml import find_data_of_run
from yolov5_ema.upstream.locate import Engine

CONFIDENCE = 0.25
"""Detections with a lower confidence are not drawn, as in ``detect`` and ``predict``."""

_VERSION = 2
_RECALLS = np.linspace(0, 1, 101)
_MOST_DATA_YAML = 2**20
_MOST_CLASSES = 10_000


@dataclass(frozen=True)
class Sample:
    """One image with its boxes drawn.

    Attributes:
        image: name of the image in the data set.
        objects: number of objects in it.
        detections: number of detections that were drawn.
        picture: a small JPEG with the boxes, in base64; "" if the image could not be read. The pixels are stored, not
            a path, so that a page made later shows the same picture that was evaluated.
    """

    image: str
    objects: int
    detections: int
    picture: str


@dataclass(frozen=True)
class Measured:
    """The evaluation of one model by the rules of the ``val`` of its YOLO.

    Attributes:
        names: names of the classes.
        split: split of the data set.
        images: number of images in the split.
        objects: number of objects in these images.
        metrics: ``P``, ``R``, ``mAP50`` and ``mAP50-95``, 0 to 1.
        per_class: for each class name, ``P``, ``R``, ``AP50``, ``AP`` and ``labels``.
        curves: for each class name, the precision at recalls 0, 0.01 … 1, at IoU 0.5.
        confusion: counts; rows are true classes, columns are predicted classes, the background is last.
        samples: sample images, evenly spaced among those with objects.
        settings: what the evaluation depends on; if this changes, it has to be repeated.
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


def settings_of(weights: Path, data: Path, *, split: str, imgsz: int, samples: int, release: str) -> dict[str, Any]:
    """What an evaluation depends on. Data files are identified by content, weights by size and modification time."""
    return {
        "version": _VERSION,
        "weights": identity_of(weights),
        "data": [str(data.resolve()), hashlib.sha256(bytes_of(data, _MOST_DATA_YAML)).hexdigest()],
        "split": split,
        "imgsz": imgsz,
        "samples": samples,
        "rules": release,
    }


def identity_of(weights: Path) -> list[int]:
    """Size and modification time of a file, or of the graph and the weights in OpenVINO's folder."""
    files = sorted(weights.glob("*.*")) if weights.is_dir() else [weights]
    found = [file.stat() for file in files]
    return [sum(one.st_size for one in found), max((one.st_mtime_ns for one in found), default=0)]


def kept_file(run: Run, split: str) -> Path:
    """The file that keeps the evaluation of a run on a split."""
    return run.beside(f"report-{split}.json")


def kept(run: Run, split: str, settings: Mapping[str, Any] | None = None) -> Measured | None:
    """An evaluation that an earlier report left in the run's folder.

    Args:
        run: the run, which has weights.
        split: the split of the data set.
        settings: the settings that the evaluation must have been made with; None: any settings, as long as best.pt has
            not changed since.

    Returns:
        The evaluation, or None if there is none with these settings.

    Raises:
        UserError: the file is damaged, or is not such an evaluation. Says what is wrong in it.
    """
    file = file_of(run.folder, kept_file(run, split).name)
    if file is None:
        return None
    content = json_of(file)
    if isinstance(content, dict) and _version(content) < _VERSION:
        # written by an earlier version, which kept the paths of the pictures
        return None
    found = _checked(content, split, file)
    if settings is None:
        assert run.weights is not None
        settings = {**found.settings, "version": _VERSION, "weights": identity_of(run.weights)}
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
        rules=one_of(*RELEASES, *RULES),
    ),
)


def _checked(content: Any, split: str, where: Path) -> Measured:
    """The content of a kept file, after checking the types of its values and that the classes agree."""
    held = checked(_MEASURED, content, where, "evaluation that a report has kept")
    names, size = held["names"], len(held["names"]) + 1
    if [len(row) for row in held["confusion"]] != [size] * size:
        raise UserError(f"{where}: its confusion matrix does not have the {counted(size - 1, 'class')} that it names")
    if len(set(names)) < len(names) or not {*held["per_class"], *held["curves"]} <= set(names) or not held["curves"]:
        raise UserError(f"{where}: its figures by class are not of the classes that it names")
    if held["split"] != split:
        raise UserError(f"{where} is of the split {held['split'][:40]!r}")
    return Measured(**{**held, "samples": [Sample(**entry) for entry in held["samples"]]})


def as_json(measured: Measured) -> str:
    """The text of the file `kept_file`."""
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
    """Compute what a page shows from the detections for a split.

    Args:
        dataset: the data set.
        truths: its labels for the split in ``settings``.
        predictions: the detections, by the keys of the images.
        release: the release of YOLOv5 or ultralytics whose rules are used; see `Yolov5Protocol`, `UltralyticsProtocol`.
        settings: see `settings_of`; ``samples`` is the number of sample images.
        pictures_from: show only images in these folders, see `folders_of`; None: show images from anywhere.
        files: the image files, by their keys; None: those of the split.

    Raises:
        UserError: the split has no objects.
    """
    protocol = (UltralyticsProtocol if release in RULES else Yolov5Protocol)(truths.names, release)
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
        if len(truth.classes) and (pictures_from is None or _is_within_any(files[name], pictures_from))
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
    """``count`` of the images, evenly spaced, so that they are not selected by how they look."""
    if len(names) <= count:
        return list(names)
    return [names[math.floor((at + 0.5) * len(names) / count)] for at in range(count)]


def folders_of(dataset: Dataset, split: str) -> list[Path]:
    """The folders of a split's images: the root in the data YAML, the split's folders, and the folders of its lists."""
    found = [dataset.root]
    for place in map(dataset.place, dataset.entries(split)):
        found.append(place if place.is_dir() else place.parent)
    return [Path(os.path.realpath(folder)) for folder in found]


def _is_within_any(image: Path, folders: Sequence[Path]) -> bool:
    """Whether the image itself is in one of the folders; a symbolic link or a line of a list may lead out of them."""
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


def data_of(run: Run, engine: Engine | None = None) -> Path:
    """The data YAML that a training used.

    Args:
        run: the training.
        engine: the YOLO among whose data YAMLs a bare name is looked for.

    Raises:
        UserError: the training's options name no data YAML, or it no longer exists.
    """
    given = run.options.get("data")
    if not isinstance(given, str) or not given:
        raise UserError(f"{run.place} does not name the data YAML of its training; name one with --data")
    found = find_data_of_run(given, run.folder, engine)
    if found is None:
        raise UserError(f"the data set {given[:300]} does not exist; name it with --data")
    return found
