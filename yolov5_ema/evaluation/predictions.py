"""Reading and writing detections: COCO's results JSON, VisDrone's text files, YOLO's."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolov5_ema.data import visdrone_format as visdrone
from yolov5_ema.data.text_rows import parse_rows, read_lines
from yolov5_ema.data.yolo_format import to_xywh_pixels
from yolov5_ema.errors import UserError
from yolov5_ema.evaluation.records import NO_CLASS, Predictions, Truth, check_predictions
from yolov5_ema.evaluation.truths import TruthSet, read_json


def read_predictions(
    place: Path, truth: TruthSet, *, missing_as_empty: bool = False, category_ids: str = "auto"
) -> dict[str, Predictions]:
    """Detections for each image of a ground truth.

    Args:
        place: a COCO results JSON; or a text file an image, in a folder (or its subfolder ``labels``), with
            commas in VisDrone's format, with spaces in YOLO's (``class x y w h confidence``). VisDrone's keep the order
            of their rows, all others are sorted by score.
        truth: whose images they are of.
        missing_as_empty: images without a file, or with an empty one, have no detections; else that is an error.
        category_ids: what ``category_id`` means in a JSON: the ids of the ground truth's categories (``coco``) or the
            classes counted from 0, as YOLOv5's ``--save-json`` writes them (``index``). ``auto``: the former unless
            an id is none of them.

    Returns:
        For each image, by its name.

    Raises:
        UserError: names the file, the row and what to do: a malformed row, an image or a class that there is not, a
            score that is no number, a box outside its image, images without detections.
    """
    if not place.exists():
        raise UserError(f"--predictions {place}: no such file or folder")
    if place.suffix.lower() == ".json":
        found = _from_json(place, truth, category_ids)
    else:
        found = _from_text(place, truth)
    _check_complete(found, truth, place, missing_as_empty)
    return {image: found.get(image, Predictions()) for image in truth.truths}


def _from_json(file: Path, truth: TruthSet, category_ids: str) -> dict[str, Predictions]:
    entries = read_json(file)
    if not isinstance(entries, list):
        raise UserError(
            f"{file} is no results JSON: it must hold a list of image_id, category_id, bbox, score"
        )
    if not entries:
        raise UserError(f"{file} holds no detections")
    names = _image_names(truth)
    class_of = _classes(entries, truth, category_ids, file)
    rows: dict[str, list[list[float]]] = {}
    for position, entry in enumerate(entries):
        where = f"{file}: detection {position + 1}"
        try:
            image, category = names.get(entry["image_id"]), class_of.get(entry["category_id"])
            row = [*map(float, entry["bbox"]), float(entry["score"])]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{where} lacks what it needs: {error!r}") from error
        if image is None:
            raise UserError(
                f"{where}: image_id {entry['image_id']!r} is none of the images in {truth.source}"
            )
        if category is None:
            known = sorted(class_of)
            raise UserError(
                f"{where}: category_id {entry['category_id']!r} is none of {known[0]} to {known[-1]}"
            )
        if len(row) != 5:
            raise UserError(f"{where}: its bbox must be four numbers, not {entry['bbox']}")
        rows.setdefault(image, []).append([*row, category])
    return {
        image: _checked(np.array(found), truth.truths[image], str(file), truth).by_score()
        for image, found in rows.items()
    }


def _image_names(truth: TruthSet) -> dict[Any, str]:
    """The images by all that a results JSON may call them: their ids, their names, their names as numbers."""
    names: dict[Any, str] = {int(stem): stem for stem in truth.truths if stem.isdecimal()}
    names.update({stem: stem for stem in truth.truths})
    names.update(truth.image_ids)
    return names


def _classes(entries: Sequence[Any], truth: TruthSet, category_ids: str, file: Path) -> Mapping[int, int]:
    index = {number: number for number in range(len(truth.names))}
    if category_ids == "index" or not truth.category_ids:
        return index
    if category_ids == "coco":
        return truth.category_ids
    ids = (entry.get("category_id") for entry in entries if isinstance(entry, dict))
    used = {
        category for category in ids if isinstance(category, (int, float))
    }  # what else there is is refused later
    fits_coco, fits_index = used <= set(truth.category_ids), used <= set(index)
    if fits_coco or not fits_index:
        return truth.category_ids
    print(
        f"{file}: category ids are taken as classes counted from 0 (--category-ids coco takes {truth.source}'s own)"
    )
    return index


def _from_text(place: Path, truth: TruthSet) -> dict[str, Predictions]:
    files = {file.stem: file for file in _text_files(place)}
    unknown = [file for stem, file in files.items() if stem not in truth.truths]
    if unknown:
        more = f" ({len(unknown)} such files)" if len(unknown) > 1 else ""
        raise UserError(f"{unknown[0]}: there is no image {unknown[0].stem} in {truth.source}{more}")
    return {stem: _from_file(file, truth.truths[stem], truth) for stem, file in files.items()}


def _text_files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    files = sorted(place.glob("*.txt")) or sorted((place / "labels").glob("*.txt"))
    if not files:
        raise UserError(
            f"--predictions {place}: no *.txt there, one an image; a COCO results file must end in .json"
        )
    return files


def _from_file(file: Path, truth: Truth, known: TruthSet) -> Predictions:
    lines = read_lines(file)
    if any("," in line for line in lines):
        return _from_visdrone(file, truth, known)
    rows = parse_rows(lines, file, 6, at_least=5)
    if rows.bad:
        raise UserError(str(rows.bad[0]))
    if any(len(line.split()) == 5 for line in lines):
        raise UserError(
            f"{file}: rows without a confidence; let YOLOv5 write them with --save-txt --save-conf"
        )
    boxes = to_xywh_pixels(rows.values[:, 1:5], truth.width, truth.height)
    values = np.concatenate([boxes, rows.values[:, 5:], rows.values[:, :1]], axis=1)
    return _checked(values, truth, str(file), known).by_score()


def _from_visdrone(file: Path, truth: Truth, known: TruthSet) -> Predictions:
    rows = visdrone.read_results(file)
    if rows.bad:
        raise UserError(str(rows.bad[0]))
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
    check_predictions(found, truth.image, truth.width, truth.height, where, len(known.names))
    return found


def _check_complete(
    found: Mapping[str, Predictions], truth: TruthSet, place: Path, missing_as_empty: bool
) -> None:
    lacking = [image for image in truth.truths if image not in found or not len(found[image].scores)]
    if len(lacking) == len(truth.truths):
        raise UserError(f"{place} holds no detection for any image of {truth.source}")
    if lacking and not missing_as_empty:
        raise UserError(
            f"{place}: no detections for {len(lacking)} of {len(truth.truths)} images, such as {lacking[0]}. "
            "If the detector found nothing there, pass --missing-as-empty; else the predictions are not complete."
        )


def write_visdrone_results(folder: Path, predictions: Mapping[str, Predictions], max_det: int = 500) -> int:
    """Write results as VisDrone's benchmark takes them: a text file an image, best first, at most ``max_det`` rows.

    Images without detections get an empty file. Scores are written with 6 digits, coordinates with 2.

    Args:
        folder: to write; it must not exist or be empty.
        predictions: by the images' names.
        max_det: rows of a file.

    Returns:
        How many rows were written.

    Raises:
        UserError: the folder holds something, or cannot be written; nothing half-written stays.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is left as it is; name another folder")
    written = 0
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as draft:
            inside = Path(draft) / "results"
            inside.mkdir()
            for image, found in predictions.items():
                rows = _visdrone_rows(found.best(max_det))
                (inside / f"{image}.txt").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
                written += len(rows)
            os.replace(inside, folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}") from error
    return written


def _visdrone_rows(found: Predictions) -> list[str]:
    return [
        f"{left:.2f},{top:.2f},{width:.2f},{height:.2f},{score:.6f},{index + 1},-1,-1"
        for (left, top, width, height), score, index in zip(found.boxes, found.scores, found.classes)
        if index != NO_CLASS
    ]
