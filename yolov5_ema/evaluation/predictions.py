"""Read and write detections: COCO's results JSON, and VisDrone's and YOLO's text files."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolov5_ema.data import visdrone_format as visdrone
from yolov5_ema.data.image_names import image_id, name_of, named_once
from yolov5_ema.data.text_rows import parse_rows, read_lines, refuse
from yolov5_ema.data.yolo_format import to_xywh_pixels
from yolov5_ema.errors import UserError
from yolov5_ema.evaluation.records import NO_CLASS, Predictions, Truth, check_predictions
from yolov5_ema.evaluation.truths import TruthSet, read_json
from yolov5_ema.files import check_new_folder, whole_folder
from yolov5_ema.texts import counted

_LOGGER = logging.getLogger(__name__)


def read_predictions(
    place: Path, truth: TruthSet, *, missing_as_empty: bool = False, category_ids: str = "auto"
) -> dict[str, Predictions]:
    """Read the detections for each image of a ground truth.

    Args:
        place: a COCO results JSON; or a folder (or its subfolder ``labels``) with a text file for each image, in
            VisDrone's format with commas or in YOLO's with spaces (``class x y w h confidence``). Rows in VisDrone's
            format keep their order; all others are sorted by score.
        truth: the ground truth of the images.
        missing_as_empty: an image with a missing or empty file has no detections; otherwise this is an error.
        category_ids: the meaning of ``category_id`` in a JSON: the category ids of the ground truth (``coco``), the
            classes counted from 0, as YOLOv5's ``--save-json`` writes them (``index``), or from 1, as ultralytics'
            does for data sets other than COCO (``one-based``). The last two also apply to files in YOLO's format.
            ``auto``: the first of ``coco`` and ``index`` that fits; another reading that also fits is reported.

    Returns:
        The detections of each image, by its key.

    Raises:
        UserError: a row is malformed, an image or a class is unknown, a score is not a number, a box is outside its
            image, or images have no detections. The message gives the file, the row and what to do.
    """
    if not place.exists():
        raise UserError(f"--predictions {place}: no such file or folder")
    if place.suffix.lower() == ".json":
        found = _from_json(place, truth, category_ids)
    else:
        found = _from_text(place, truth, category_ids)
    _check_complete(found, truth, place, missing_as_empty)
    return {image: found.get(image, Predictions()) for image in truth.truths}


def _from_json(file: Path, truth: TruthSet, category_ids: str) -> dict[str, Predictions]:
    entries = read_json(file)
    if not isinstance(entries, list):
        raise UserError(f"{file} is not a results JSON: it must hold a list of image_id, category_id, bbox, score")
    if not entries:
        raise UserError(f"{file} holds no detections")
    images = _Images(truth)
    class_of = _classes(entries, truth, category_ids, file)
    rows: dict[str, list[list[float]]] = {}
    for position, entry in enumerate(entries):
        where = f"{file}: detection {position + 1}"
        try:
            image, category = images.named(entry["image_id"], where), class_of.get(entry["category_id"])
            row = [*map(float, entry["bbox"]), float(entry["score"])]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{where} has a missing or invalid entry: {error!r}") from error
        if image is None:
            continue
        if category is None:
            known = sorted(class_of)
            raise UserError(f"{where}: category_id {entry['category_id']!r} is not in {known[0]} to {known[-1]}")
        if len(row) != 5:
            raise UserError(f"{where}: its bbox must be four numbers, not {entry['bbox']}")
        rows.setdefault(image, []).append([*row, category])
    return {
        image: _checked(np.array(found), truth.truths[image], str(file), truth).by_score()
        for image, found in rows.items()
    }


class _Images:
    """Finds images by what a results JSON may call them: their ids, their names, or their names as numbers."""

    def __init__(self, truth: TruthSet) -> None:
        self._truth = truth
        self._by_id: dict[Any, list[str]] = {}
        known = dict.fromkeys((*truth.truths, *truth.left_out))
        for key in known:
            for called in {name_of(key), image_id(key)}:
                self._by_id.setdefault(called, []).append(key)
        self._by_id.update({identity: [key] if key in known else [] for identity, key in truth.image_ids.items()})

    def named(self, identity: Any, where: str) -> str | None:
        """The key of the image; None if it is not evaluated.

        Raises:
            UserError: there is no such image, or more than one.
        """
        keys = self._by_id.get(identity)
        if not keys:
            raise UserError(f"{where}: image_id {identity!r} is not an image in {self._truth.source}")
        if len(keys) > 1:
            what = "name" if isinstance(identity, str) else "number"
            raise UserError(
                f"{where}: image_id {identity!r} is the {what} of {' and of '.join(keys[:2])}; rename one of them"
            )
        return keys[0] if keys[0] in self._truth.truths else None


# --- which class a number means ---------------------------------------------------------------


CATEGORY_IDS = ("auto", "coco", "index", "one-based")
_MEANING = {
    "coco": "the category ids of the ground truth",
    "index": "classes counted from 0",
    "one-based": "classes counted from 1, as ultralytics writes them for a data set that is not COCO",
}


def _classes(entries: Sequence[Any], truth: TruthSet, category_ids: str, file: Path) -> Mapping[int, int]:
    ids = (entry.get("category_id") for entry in entries if isinstance(entry, dict))
    used = {number for number in ids if isinstance(number, (int, float))}  # the others are refused later
    readings = _readings(truth)
    return readings[_reading(used, readings, category_ids, file)]


def _readings(truth: TruthSet) -> dict[str, Mapping[int, int]]:
    """The class of each number, for each possible meaning of the numbers; the most likely meaning first."""
    count = len(truth.names)
    own: dict[str, Mapping[int, int]] = {"coco": truth.category_ids} if truth.category_ids else {}
    by_index = {number: number for number in range(count)}
    return {**own, "index": by_index, "one-based": {number + 1: number for number in range(count)}}


def _reading(used: set[Any], readings: Mapping[str, Mapping[int, int]], wanted: str, place: Path) -> str:
    """The meaning to use, out of ``readings``; if others would fit too, a message says so."""
    if wanted in readings:
        return wanted
    first = next(iter(readings))
    if wanted != "auto":
        return first
    fitting = [name for name, class_of in readings.items() if used <= set(class_of)]
    if not fitting:
        return first
    if fitting == ["one-based"]:
        known = readings["index"]
        wrong = next(number for number in sorted(used) if number not in known)
        raise UserError(
            f"{place}: category_id {wrong:g} is not in 0 to {len(known) - 1}. If these are {_MEANING['one-based']}, "
            "pass --category-ids one-based"
        )
    chosen, *others = fitting
    others = [name for name in others if any(readings[name][key] != readings[chosen][key] for key in used)]
    if others or chosen != first:
        also = " or ".join(f"{_MEANING[name]} (--category-ids {name})" for name in others)
        why = "" if chosen == first else f"; not all of them are {_MEANING[first]}"
        also = f". They could also be {also}" if also else ""
        _LOGGER.info("%s: category ids are taken as %s%s%s", place, _MEANING[chosen], why, also)
    return chosen


# --- text files -------------------------------------------------------------------------------


def _from_text(place: Path, truth: TruthSet, category_ids: str) -> dict[str, Predictions]:
    known = named_once((*truth.truths, *truth.left_out), f"{place} tells detections apart by that alone")
    of_images = {file: known.get(file.stem) for file in _text_files(place)}
    unknown = [file for file, key in of_images.items() if key is None]
    if unknown:
        more = f" ({len(unknown)} such files)" if len(unknown) > 1 else ""
        raise UserError(f"{unknown[0]}: there is no image {unknown[0].stem} in {truth.source}{more}")
    files = {key: file for file, key in of_images.items() if key is not None and key in truth.truths}
    lines = {key: read_lines(file) for key, file in files.items()}
    found = {
        key: _from_visdrone(file, truth.truths[key], truth)
        for key, file in files.items()
        if any("," in line for line in lines[key])
    }
    others = {key: _yolo_rows(lines[key], file) for key, file in files.items() if key not in found}
    readings = {name: class_of for name, class_of in _readings(truth).items() if name != "coco"}
    used = {number for rows in others.values() for number in rows[:, 0].tolist()}
    first_class = int(_reading(used, readings, category_ids, place) == "one-based")
    for key, rows in others.items():
        found[key] = _from_yolo(rows - [first_class, 0, 0, 0, 0, 0], truth.truths[key], files[key], truth)
    return found


def _text_files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    files = sorted(place.glob("*.txt")) or sorted((place / "labels").glob("*.txt"))
    if not files:
        raise UserError(
            f"--predictions {place}: no *.txt there, one for each image; a COCO results file must end in .json"
        )
    return files


def _yolo_rows(lines: Sequence[str], file: Path) -> np.ndarray:
    """Rows of class, x, y, width, height, confidence, (N, 6)."""
    rows = parse_rows(lines, file, 6, at_least=5)
    refuse(rows.bad)
    if any(len(line.split()) == 5 for line in lines):
        raise UserError(f"{file}: rows without a confidence; let YOLOv5 write them with --save-txt --save-conf")
    return rows.values


def _from_yolo(rows: np.ndarray, truth: Truth, file: Path, known: TruthSet) -> Predictions:
    boxes = to_xywh_pixels(rows[:, 1:5], truth.width, truth.height)
    values = np.concatenate([boxes, rows[:, 5:], rows[:, :1]], axis=1)
    return _checked(values, truth, str(file), known).by_score()


def _from_visdrone(file: Path, truth: Truth, known: TruthSet) -> Predictions:
    rows = visdrone.read_results(file)
    refuse(rows.bad)
    category = rows.values[:, visdrone.CATEGORY]
    not_evaluated = (category == visdrone.IGNORED_REGION) | (category == visdrone.OTHERS)
    classes = np.where(not_evaluated, NO_CLASS, category - 1)
    return _checked(np.concatenate([rows.values[:, :5], classes[:, None]], axis=1), truth, str(file), known)


def _checked(values: np.ndarray, truth: Truth, where: str, known: TruthSet) -> Predictions:
    """Rows of left, top, width, height, score, class."""
    classes = values[:, 5]
    broken = classes[classes != classes.round()]
    if len(broken):
        raise UserError(f"{where}: image {truth.image}: a class must be a whole number, not {broken[0]:g}")
    found = Predictions(values[:, :4], values[:, 4], classes.astype(np.int64))
    check_predictions(found, truth, where, len(known.names))
    return found


def _check_complete(found: Mapping[str, Predictions], truth: TruthSet, place: Path, missing_as_empty: bool) -> None:
    absent = [image for image in truth.truths if image not in found or not len(found[image].scores)]
    if len(absent) == len(truth.truths):
        raise UserError(f"{place} holds no detection for any image of {truth.source}")
    if absent and not missing_as_empty:
        raise UserError(
            f"{place}: no detections for {len(absent)} of {counted(len(truth.truths), 'image')}, such as {absent[0]}. "
            "If the detector found nothing there, pass --missing-as-empty; otherwise the predictions are incomplete."
        )


def write_visdrone_results(folder: Path, predictions: Mapping[str, Predictions], max_det: int = 500) -> int:
    """Write results for VisDrone's benchmark: a text file for each image, best first, at most ``max_det`` rows.

    Images without detections get an empty file. Scores are written with 6 digits, coordinates with 2.

    Args:
        folder: the folder to write; it must be missing or empty.
        predictions: the detections by image key; a file has the name of its image.
        max_det: the maximum number of rows of a file.

    Returns:
        The number of rows written.

    Raises:
        UserError: the folder is not empty or cannot be written, or two images have the same name. No incomplete
            output remains.
    """
    check_new_folder(folder)
    named = named_once(predictions, f"{folder} takes one file of that name")
    written = 0
    with whole_folder(folder) as draft:
        for name, key in named.items():
            rows = _visdrone_rows(predictions[key].best(max_det))
            (draft / f"{name}.txt").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
            written += len(rows)
    return written


def _visdrone_rows(found: Predictions) -> list[str]:
    return [
        f"{left:.2f},{top:.2f},{width:.2f},{height:.2f},{score:.6f},{index + 1},-1,-1"
        for (left, top, width, height), score, index in zip(found.boxes, found.scores, found.classes)
        if index != NO_CLASS
    ]
