"""Read COCO's instances JSON, report its faults, and map its categories to YOLOv5's classes."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from yolov5_ema.data.problems import Problem, describe
from yolov5_ema.errors import UserError
from yolov5_ema.reading import MOST_JSON, read_json

_TEXT_ID = "; this id is a text: write it without quotes, here and as category_id"

COCO_NAMES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard",
    "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase",
    "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
"""COCO's 80 classes in the order of their category ids, which is that of YOLOv5's coco.yaml."""


class Instances(NamedTuple):
    """An instances JSON reduced to the entries that can be used.

    Attributes:
        coco: pycocotools' COCO, indexed.
        names: the names of the classes, in order.
        class_of: the class of each category id.
        annotations: the number of annotations in the JSON, including those that cannot be used.
        problems: what was left out.
    """

    coco: Any
    names: list[str]
    class_of: dict[int, int]
    annotations: int
    problems: list[Problem]


def read_instances(file: Path) -> Instances:
    """Read an instances JSON; entries that cannot be used are left out and reported.

    Raises:
        UserError: it cannot be read, is not JSON, has no images or no categories, or has two categories of one name.
    """
    content = _load(file)
    problems: list[Problem] = []
    class_of, names = _categories(content["categories"], content["annotations"], file)
    images = _usable_images(content["images"], file, problems)
    annotations = _usable_annotations(content["annotations"], images, set(class_of), file, problems)
    coco = _index({"images": list(images.values()), "annotations": annotations, "categories": content["categories"]})
    return Instances(coco, names, class_of, len(content["annotations"]), problems)


def _load(file: Path) -> dict[str, Any]:
    try:
        content = read_json(file, MOST_JSON)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON, or it is cut off: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is not an instances JSON: it holds a {type(content).__name__}, not an object")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise UserError(f"{file} is not an instances JSON: it has no list {key!r}; its keys: {', '.join(content)}")
    return content


def _categories(categories: Sequence[Any], annotations: Sequence[Any], file: Path) -> tuple[dict[int, int], list[str]]:
    """The class of each category id, and the names of the classes.

    Classes are in the order of the ids; COCO's own are in the order of YOLOv5's coco.yaml.
    """
    by_id: dict[int, str] = {}
    for category in categories:
        identity = whole_number(category.get("id")) if isinstance(category, dict) else None
        if identity is None or not isinstance(category.get("name"), str):
            hint = _TEXT_ID if isinstance(category, dict) and isinstance(category.get("id"), str) else ""
            raise UserError(f"{file}: the category {category!r:.80} needs a whole number 'id' and a 'name'{hint}")
        if identity in by_id:
            raise UserError(f"{file}: the category id {identity} appears twice")
        by_id[identity] = category["name"]
    if not by_id:
        raise UserError(f"{file} has no categories")
    by_name = _ids_by_name(by_id, annotations, file)
    names = list(by_name)
    if sorted(names) == sorted(COCO_NAMES):
        names.sort(key=COCO_NAMES.index)
    return {identity: number for number, name in enumerate(names) for identity in by_name[name]}, names


def _ids_by_name(by_id: Mapping[int, str], annotations: Sequence[Any], file: Path) -> dict[str, list[int]]:
    """The ids of each name, in the order of the ids that are used.

    Two categories may have one name if nothing is annotated with one of them: Roboflow's exports have such a category
    for the whole data set.
    """
    ids: dict[str, list[int]] = {}
    for identity in sorted(by_id):
        ids.setdefault(by_id[identity], []).append(identity)
    if len(ids) == len(by_id):
        return ids
    used = {whole_number(entry.get("category_id")) for entry in annotations if isinstance(entry, dict)}
    for name, shared in ids.items():
        in_use = [identity for identity in shared if identity in used]
        if len(in_use) > 1:
            raise UserError(
                f"{file}: the categories {in_use[0]} and {in_use[1]} are both called {name!r:.80}, and both are "
                "annotated. YOLOv5 tells classes apart by their names: rename one of them, or give its annotations "
                "the other's id"
            )
        shared.sort(key=lambda identity: identity not in used)
    return dict(sorted(ids.items(), key=lambda entry: entry[1][0]))


def _usable_images(images: Sequence[Any], file: Path, problems: list[Problem]) -> dict[Any, dict[str, Any]]:
    found: dict[Any, dict[str, Any]] = {}
    names: set[str] = set()
    for index, image in enumerate(images):
        reason = _image_fault(image, found, names)
        if reason:
            problems.append(Problem("image", f"{file}, image {index}", reason))
            continue
        identity = _identity(image["id"])
        found[identity] = {**image, "id": identity}
        names.add(image["file_name"].rsplit(".", 1)[0])
    if not found:
        raise UserError("\n".join([f"{file} has no images that can be used", *describe(problems)]))
    return found


def _image_fault(image: Any, found: Mapping[Any, Any], names: set[str]) -> str:
    if not isinstance(image, dict):
        return "is not an object"
    identity, name = image.get("id"), image.get("file_name")
    if _identity(identity) is None:
        return f"id {identity!r:.40} is neither a number nor a text"
    if identity in found:
        return f"id {identity!r:.40} appears twice"
    if not isinstance(name, str) or not name or "\0" in name:
        return f"file_name {name!r:.80} is not a file name"
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in name.split("/")[0]:
        return f"file_name {name!r:.80} leads out of the folder of images; make it relative to that, such as a/b.jpg"
    if name.rsplit(".", 1)[0] in names:
        return f"file_name {name!r:.80} appears twice, or differs from another only in its suffix"
    sides = [image[key] for key in ("width", "height") if image.get(key) is not None]
    if not all(_is_finite(side) and side >= 1 for side in sides):
        return f"width and height {image.get('width')!r:.20}, {image.get('height')!r:.20} are not a valid size"
    return ""


def _usable_annotations(
    annotations: Sequence[Any],
    images: Mapping[Any, Any],
    categories: set[int],
    file: Path,
    problems: list[Problem],
) -> list[dict[str, Any]]:
    usable = []
    for index, annotation in enumerate(annotations):
        reason = _annotation_fault(annotation, images, categories)
        if reason:
            problems.append(Problem("annotation", f"{file}, annotation {index}", reason))
            continue
        usable.append(
            {
                **annotation,
                "id": annotation.get("id", -1 - index),
                "image_id": _identity(annotation["image_id"]),
                "category_id": whole_number(annotation["category_id"]),
            }
        )
    return usable


def _annotation_fault(annotation: Any, images: Mapping[Any, Any], categories: set[int]) -> str:
    if not isinstance(annotation, dict):
        return "is not an object"
    image, category, box = (annotation.get(key) for key in ("image_id", "category_id", "bbox"))
    if _identity(image) not in images:
        return f"image_id {image!r:.40} is not the id of an image"
    if whole_number(category) not in categories:
        return f"category_id {category!r:.40} is not the id of a category"
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
        return f"bbox {box!r:.80} is not four finite numbers"
    return ""


def whole_number(value: Any) -> int | None:
    """An id as a whole number, also if pandas turned 3 into 3.0; None if it is not a whole number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return int(value) if isinstance(value, int) or value.is_integer() else None


def _identity(value: Any) -> int | str | None:
    """Of an image, which may be called by a text."""
    return value if isinstance(value, str) else whole_number(value)


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond what a float holds
        return False


def _index(content: dict[str, Any]) -> Any:
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = content
        coco.createIndex()
    return coco
