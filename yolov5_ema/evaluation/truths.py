"""Read ground truth: VisDrone's text files, COCO's instances JSON, YOLO labels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from yolov5_ema.data import visdrone_format as visdrone
from yolov5_ema.data.image_names import name_of, named_once
from yolov5_ema.data.image_size import displayed_size
from yolov5_ema.data.text_rows import refuse
from yolov5_ema.data.yolo_format import to_xywh_pixels
from yolov5_ema.errors import UserError
from yolov5_ema.evaluation.judged import LabelledImages
from yolov5_ema.evaluation.records import NO_CLASS, Truth
from yolov5_ema.reading import MOST_JSON, parse_json, read_bytes
from yolov5_ema.texts import counted, listed

Sizes = Mapping[str, "tuple[int, int]"]
"""The width and height in pixels of each image, by its key."""
_LONGEST = 100_000
"""Pixels; a longer side is a mistake, and its mask of ignored regions would not fit into memory."""


@dataclass(frozen=True)
class TruthSet:
    """Ground truth of a set of images.

    Attributes:
        source: where it was read from, for messages.
        names: the names of the classes.
        truths: the ground truth of each image by its key, in the order for protocols.
        image_ids: the key of each id that results files may use for an image, besides its name.
        category_ids: the class of each category id of results files; empty: the ids are the classes.
        left_out: the keys of images that are not evaluated; detections in them are ignored.
    """

    source: str
    names: tuple[str, ...]
    truths: Mapping[str, Truth]
    image_ids: Mapping[Any, str] = field(default_factory=dict)
    category_ids: Mapping[int, int] = field(default_factory=dict)
    left_out: frozenset[str] = frozenset()


def visdrone_truth(
    folder: Path, sizes: Sizes, names: Sequence[str] = visdrone.CLASSES, *, only_sized: bool = False
) -> TruthSet:
    """Read VisDrone-DET annotations: a text file for each image, matched and sorted by name.

    Args:
        folder: the folder of the text files.
        sizes: the sizes of all of their images.
        names: the names of categories 1 to 10.
        only_sized: leave out files of images without a given size, instead of refusing them.

    Raises:
        UserError: there is no file, there are not 10 names, a line is malformed, an image's size is not known, or two
            images have one name.
    """
    files = sorted(folder.glob("*.txt")) if folder.is_dir() else []
    if not files:
        raise UserError(f"{folder}: no annotations there (*.txt, one for each image)")
    if len(names) != len(visdrone.CLASSES):
        raise UserError(f"{folder} holds VisDrone's annotations, of 10 classes, not of {counted(len(names), 'class')}")
    keys = named_once(sizes, f"{folder} tells images apart by that name alone")
    unknown = [file.stem for file in files if file.stem not in keys]
    if unknown and not only_sized:
        raise UserError(
            f"{folder}: the size of {listed(unknown, 3)} is not known; it takes the images, or --image-sizes"
        )
    found = {keys[file.stem]: file for file in files if file.stem in keys}
    truths = {key: _visdrone_image(file, key, *sizes[key]) for key, file in found.items()}
    return TruthSet(str(folder), tuple(names), truths)


def _visdrone_image(file: Path, key: str, width: int, height: int) -> Truth:
    rows = visdrone.read_annotations(file)
    refuse(rows.bad)
    category = rows.values[:, visdrone.CATEGORY].astype(np.int64)
    is_region = category == visdrone.IGNORED_REGION
    objects = rows.values[~is_region]
    of_objects = category[~is_region]
    return Truth(
        image=key,
        width=width,
        height=height,
        boxes=objects[:, :4],
        classes=np.where(of_objects == visdrone.OTHERS, NO_CLASS, of_objects - 1),
        ignored=objects[:, visdrone.SCORE] == 0,
        regions=rows.values[is_region, :4],
    )


def coco_truth(file: Path, names: Sequence[str] | None = None) -> TruthSet:
    """Read an instances JSON; its images are sorted by id, as pycocotools does.

    Crowds are ignored objects. The ignored regions that ``yolov5-ema data visdrone`` writes as a crowd in each class
    are converted back to regions.

    Args:
        file: the JSON.
        names: the names of the classes, which categories are matched with; None: the categories, ordered by id.

    Raises:
        UserError: it is not an instances JSON, is cut off, names an image twice, or has an invalid annotation.
    """
    content = read_json(file)
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in _COCO_KEYS):
        raise UserError(f"{file} is not an instances JSON: it must hold the lists {', '.join(_COCO_KEYS)}")
    try:
        categories = {int(entry["id"]): str(entry["name"]) for entry in content["categories"]}
        images = {_as_id(entry["id"]): entry for entry in content["images"]}
        sizes = {
            key: (PurePath(str(entry["file_name"])).as_posix(), *_size(entry["width"], entry["height"]))
            for key, entry in images.items()
        }
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{file}: an image or a category has a missing or invalid entry: {error!r}") from error
    odd = [key for key in images if not isinstance(key, (int, str))]
    if odd:
        raise UserError(f"{file}: an image's id must be a number or a name, not {odd[0]!r}")
    _refuse_repeated([_as_id(entry["id"]) for entry in content["images"]], f"{file}: image id")
    _refuse_repeated([name for name, _, _ in sizes.values()], f"{file}: image name")
    all_names = (
        tuple(names) if names is not None else tuple(dict.fromkeys(categories[key] for key in sorted(categories)))
    )
    class_of = {key: all_names.index(name) for key, name in categories.items() if name in all_names}
    if not class_of:
        raise UserError(f"{file}: none of its categories is a class of {', '.join(all_names[:5])} …")
    rows: dict[Any, list[dict[str, Any]]] = {key: [] for key in images}
    for position, entry in enumerate(content["annotations"]):
        _check_annotation(entry, position, file, rows, categories)
        rows[entry["image_id"]].append(entry)
    ordered = sorted(images, key=lambda key: (isinstance(key, str), key))
    truths = {sizes[key][0]: _coco_image(*sizes[key], rows[key], class_of) for key in ordered}
    return TruthSet(str(file), all_names, truths, {key: sizes[key][0] for key in images}, class_of)


def _as_id(value: Any) -> Any:
    """Turn 3.0, as pandas writes an id, into 3."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_COCO_KEYS = ("images", "annotations", "categories")


def _check_annotation(entry: Any, position: int, file: Path, rows: Mapping[Any, Any], categories: Any) -> None:
    where = f"{file}: annotation {position + 1}"
    try:
        image, category = entry["image_id"], entry["category_id"]
        known = image in rows and category in categories
        box = np.array(entry["bbox"], dtype=np.float64)
        area = float(entry.get("area", 0))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{where} has a missing or invalid entry: {error!r}") from error
    if not known:
        raise UserError(f"{where} names image {image} or category {category}, which the file does not have")
    if box.shape != (4,) or not np.isfinite(box).all():
        raise UserError(f"{where}: its bbox must be four numbers, not {entry['bbox']}")
    if not np.isfinite(area):
        raise UserError(f"{where}: its area must be a number, not {area}")


def _coco_image(
    name: str, width: int, height: int, entries: list[dict[str, Any]], class_of: Mapping[int, int]
) -> Truth:
    is_region = [entry.get("visdrone_category") == visdrone.IGNORED_REGION for entry in entries]
    first = min((entry["category_id"] for entry, region in zip(entries, is_region) if region), default=None)
    regions = [e["bbox"] for e, region in zip(entries, is_region) if region and e["category_id"] == first]
    objects = [entry for entry, region in zip(entries, is_region) if not region]
    boxes = np.array([entry["bbox"] for entry in objects], dtype=np.float64).reshape(-1, 4)
    areas = [entry.get("area", box[2] * box[3]) for entry, box in zip(objects, boxes)]
    return Truth(
        image=name,
        width=width,
        height=height,
        boxes=boxes,
        classes=np.array([class_of.get(entry["category_id"], NO_CLASS) for entry in objects], dtype=np.int64),
        ignored=np.array([bool(entry.get("iscrowd")) for entry in objects], dtype=bool),
        regions=np.array(regions, dtype=np.float64).reshape(-1, 4),
        areas=np.array(areas, dtype=np.float64),
    )


def label_truth(images: LabelledImages, names: Sequence[str], source: str, sizes: Sizes) -> TruthSet:
    """The ground truth of YOLO labels, sorted by the images' names; an image without a label file has no objects.

    Args:
        images: the images to evaluate, with their labels.
        names: the names of the classes.
        source: where they were read from, for messages.
        sizes: the sizes of the images.
    """
    keys = sorted(images.files, key=lambda key: (name_of(key), key))
    truths = {key: _label_image(key, *sizes[key], images.rows[key]) for key in keys}
    return TruthSet(source, tuple(names), truths, left_out=images.left_out_keys)


def _label_image(key: str, width: int, height: int, rows: np.ndarray) -> Truth:
    # YOLOv5 drops duplicate rows, and stores the numbers in single precision
    first = np.unique(rows.astype(np.float32), axis=0, return_index=True)[1]
    labels = rows[first]
    return Truth(
        image=key,
        width=width,
        height=height,
        boxes=to_xywh_pixels(labels[:, 1:], width, height),
        classes=labels[:, 0].astype(np.int64),
        ignored=np.zeros(len(labels), bool),
    )


def image_sizes(files: Mapping[str, Path]) -> dict[str, tuple[int, int]]:
    """The width and height of each image as it is displayed, from its header, by its key.

    Raises:
        UserError: an image cannot be read.
    """
    return {key: displayed_size(file) for key, file in files.items()}


def read_image_sizes(file: Path) -> dict[str, tuple[int, int]]:
    """Read a JSON of sizes: ``{name: {"width": w, "height": h}}`` or ``{name: [w, h]}``, in pixels.

    Raises:
        UserError: it cannot be read, or an entry is not a size.
    """
    content = read_json(file)
    if not isinstance(content, dict) or not content:
        raise UserError(f"{file}: it must hold an object: the images' names, and for each its width and height")
    sizes = {}
    for name, entry in content.items():
        try:
            width, height = (entry["width"], entry["height"]) if isinstance(entry, dict) else entry
            size = _size(width, height)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{file}: {name}: no width and height of an image in {entry!r}") from error
        sizes[name_of(name)] = size
    return sizes


def _size(width: Any, height: Any) -> tuple[int, int]:
    size = int(width), int(height)
    if not 1 <= min(size) <= max(size) <= _LONGEST:
        raise ValueError(f"an image of {width} x {height} pixels")
    return size


def read_json(file: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: it is missing, empty, or cut off; the message gives the line and column.
    """
    try:
        text = read_bytes(file, MOST_JSON).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not text.strip():
        raise UserError(f"{file} is empty")
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{file} is not JSON, or it is cut off: line {error.lineno}, column {error.colno}: {error.msg}"
        ) from error
    except ValueError as error:
        raise UserError(f"{file} is not what is needed: {error}") from error


def _refuse_repeated(values: Sequence[Any], what: str) -> None:
    seen = set()
    for value in values:
        if value in seen:
            raise UserError(f"{what} {value!r} appears twice; each image must have its own")
        seen.add(value)
