"""Convert a few images of VisDrone2019-DET at a time to labels and COCO JSON, in a worker process."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from yolov5_ema.data import problems as problems_of
from yolov5_ema.data.archives import Place
from yolov5_ema.data.image_names import image_id
from yolov5_ema.data.image_size import image_info_of, read_image_info
from yolov5_ema.data.masking import BrokenImageError, hidden_boxes, place_masked
from yolov5_ema.data.number_texts import number_texts
from yolov5_ema.data.problems import Problem
from yolov5_ema.data.text_rows import parse_clean
from yolov5_ema.data.visdrone_format import (
    CATEGORY,
    CLASSES,
    IGNORED_REGION,
    OTHERS,
    SCORE,
    parse_annotations,
)
from yolov5_ema.data.writing import place_bytes, place_link
from yolov5_ema.data.yolo_format import clip_corners, first_of_each, format_labels, to_millionths
from yolov5_ema.errors import UserError
from yolov5_ema.files import remove_inside

# Increase it with every change of the output, so that the output of an older version is written again.
RULES = 1
_UNUSABLE = (0, 0)


class Job(NamedTuple):
    """What workers need to know about a split.

    Attributes:
        split: train, val or test.
        source: the folder or archive with ``images/`` and ``annotations/``.
        target: the output folder, for ``images/``, ``annotations/`` and ``labels/``.
        annotated: whether the source has annotations.
        mask: whether ignored regions are painted grey.
        copy: whether images are copied.
        drafts: the folder for unfinished files; "" means that nothing is written.
    """

    split: str
    source: Place
    target: str
    annotated: bool
    mask: bool
    copy: bool
    drafts: str = ""

    def header(self) -> dict[str, Any]:
        """Everything that affects the results, except for the source files."""
        options = {"annotated": self.annotated, "mask_ignored": self.mask, "copy": self.copy}
        return {"rules": RULES, "split": self.split, "source": str(self.source), **options}


class Item(NamedTuple):
    """An image of a job.

    Attributes:
        image: its file name.
        annotation: the name of its annotation file; "" if there is none.
        size: width and height, if the image is already converted and only read for the JSON.
    """

    image: str
    annotation: str
    size: tuple[int, int] | None


class Task(NamedTuple):
    """The work that a worker gets at a time."""

    job: Job
    items: list[Item]


class Chunk(NamedTuple):
    """What a worker returns.

    Attributes:
        sizes: the width and height of each item; (0, 0) if it could not be used.
        images: the entries of the COCO JSON's list of images, joined by commas.
        annotations: the entries of its list of annotations, joined by commas, with ``%d`` for each id.
        annotation_count: the number of annotations.
        tallies: see `SplitResult`.
        problems: what was left out.
    """

    sizes: list[tuple[int, int]]
    images: str
    annotations: str
    annotation_count: int
    tallies: Counter[str]
    problems: list[Problem]


def stem_of(name: str) -> str:
    """A file name without its suffix; many times as fast as pathlib."""
    return name[: name.rfind(".")] if "." in name else name


def remove_results(target: str, images: Iterable[str]) -> None:
    """Remove the results of an earlier run for images that are gone or can no longer be used."""
    for image in images:
        text = f"{stem_of(image)}.txt"
        for name in (f"images/{image}", f"labels/{text}", f"annotations/{text}"):
            remove_inside(Path(target, name), Path(target).parent)


class _Objects(NamedTuple):
    """The rows of a chunk's images, one image after the other.

    Attributes:
        boxes: left, top, width, height as annotated, (R, 4).
        corners: left, top, right, bottom, cut off at the border, (R, 4).
        sizes: the width and height of the row's image, (R, 2).
        files: the index of the row's image, (R,).
        categories: 0 to 11, (R,).
        scored: False for rows that are not evaluated, (R,).
        kept: False for boxes without area, (R,).
    """

    boxes: np.ndarray
    corners: np.ndarray
    sizes: np.ndarray
    files: np.ndarray
    categories: np.ndarray
    scored: np.ndarray
    kept: np.ndarray


def convert_chunk(task: Task) -> Chunk:
    """Convert some images; a problem with one image does not affect the others."""
    broken: dict[str, UserError] = {}
    while True:
        try:
            return _convert_usable(task, broken)
        except BrokenImageError as error:  # convert again without this image
            broken[error.image] = error


def _convert_usable(task: Task, broken: Mapping[str, UserError]) -> Chunk:
    job, problems = task.job, []
    used, texts, sizes, all_sizes = [], [], [], []
    for item in task.items:
        text, size = b"", _UNUSABLE
        kind, where = "annotation", job.source.sub("annotations").name_of(item.annotation)
        try:
            if job.annotated:
                text = job.source.sub("annotations").read(item.annotation)
            kind, where = "image", job.source.sub("images").name_of(item.image)
            if item.image in broken:
                raise broken[item.image]
            size = item.size or _take_image(job, item.image)
        except UserError as error:
            problems.append(problems_of.of_error(kind, where, error))
            if job.drafts:
                remove_results(job.target, [item.image])
        else:
            used.append(item)
            texts.append(text)
            sizes.append(size)
        all_sizes.append(size)
    tallies = Counter(images=len(used))
    if not used or not job.annotated:
        return Chunk(all_sizes, "", "", 0, tallies, problems)
    values, counts = _parse(job, used, texts, problems)
    objects = _objects(values, counts, np.array(sizes, np.int64))
    hidden = _mask(job, used, objects, counts) if job.mask else np.zeros(len(values), bool)
    labels = _labels(objects, hidden, len(used), tallies)
    _place_texts(job, used, texts, labels)
    images, annotations, count = _coco(used, sizes, objects)
    return Chunk(all_sizes, images, annotations, count, tallies, problems)


def _take_image(job: Job, image: str) -> tuple[int, int]:
    """Link or copy an image, unless it is to be masked or nothing is to be written; return its size."""
    place = job.source.sub("images")
    target = f"{job.target}/images/{image}"
    if place.inside is not None:
        content = place.read(image)
        info = image_info_of(content, place.name_of(image))
        if job.drafts and not job.mask:
            place_bytes(content, target, job.drafts)
        return info[:2]
    file = f"{place.path}/{image}"
    info = read_image_info(file)
    if job.drafts and not job.mask:
        # YOLOv5 rewrites a JPEG without an end marker in place; through a link it would change the source.
        place_link(file, target, job.drafts, copy=job.copy or not info.whole)
    return info[:2]


def _parse(
    job: Job, items: Sequence[Item], texts: Sequence[bytes], problems: list[Problem]
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of all texts, (R, 8), and the number of rows of each; malformed lines become problems."""
    clean = parse_clean(texts, 8)
    if clean is not None and clean[0][:, CATEGORY].max(initial=0) <= OTHERS:
        return clean
    place, parts = job.source.sub("annotations"), []
    for item, text in zip(items, texts):
        rows = parse_annotations(text, Path(place.name_of(item.annotation)))
        problems += map(problems_of.of_line, rows.bad)
        parts.append(rows.values)
    return np.concatenate(parts), np.array([len(part) for part in parts], np.int64)


def _objects(values: np.ndarray, counts: np.ndarray, sizes: np.ndarray) -> _Objects:
    files = np.repeat(np.arange(len(counts)), counts)
    row_sizes = sizes[files].reshape(-1, 2)
    corners = clip_corners(values[:, :4], row_sizes)
    kept = (corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1])
    categories = values[:, CATEGORY].astype(np.int64)
    return _Objects(values[:, :4], corners, row_sizes, files, categories, values[:, SCORE] != 0, kept)


def _labels(objects: _Objects, hidden: np.ndarray, files: int, tallies: Counter[str]) -> list[bytes]:
    """The texts of the label files; what is in them is added to the tallies."""
    categories, kept = objects.categories, objects.kept
    is_class = (categories > IGNORED_REGION) & (categories < OTHERS)
    millionths = to_millionths(objects.corners, objects.sizes)
    chosen = is_class & objects.scored & kept & ~hidden & (millionths[:, 2:] > 0).all(axis=1)
    rows = np.flatnonzero(chosen)
    first = first_of_each(objects.files[rows], categories[rows], millionths[rows])
    rows, duplicates = rows[first], int((~first).sum())
    counts = np.bincount(objects.files[rows], minlength=files)
    x, y, width, height = objects.boxes.T
    over = (x < 0) | (y < 0) | (x + width > objects.sizes[:, 0]) | (y + height > objects.sizes[:, 1])
    tallies.update(
        boxes=len(rows),
        background=int((counts == 0).sum()),
        regions=int(((categories == IGNORED_REGION) & kept).sum()),
        others=int(((categories == OTHERS) & kept).sum()),
        score0=int((is_class & ~objects.scored & kept).sum()),
        no_area=int((~kept).sum()),
        clipped=int((over & kept).sum()),
        hidden=int((hidden & is_class & objects.scored & kept).sum()),
        duplicates=duplicates,
    )
    return format_labels(categories[rows] - 1, millionths[rows], counts)


def _place_texts(job: Job, items: Sequence[Item], texts: Sequence[bytes], labels: Sequence[bytes]) -> None:
    if not job.drafts:
        return
    source = job.source.sub("annotations")
    for item, text, label in zip(items, texts, labels):
        if item.size is not None:
            continue
        target = f"{job.target}/annotations/{item.annotation}"
        if source.inside is None:
            place_link(f"{source.path}/{item.annotation}", target, job.drafts, job.copy)
        else:
            place_bytes(text, target, job.drafts)
        place_bytes(label, f"{job.target}/labels/{item.annotation}", job.drafts)


def _mask(job: Job, items: Sequence[Item], objects: _Objects, counts: np.ndarray) -> np.ndarray:
    """Write the images with grey ignored regions; return True for rows that are at least half hidden."""
    hidden = np.zeros(len(objects.boxes), bool)
    place = job.source.sub("images")
    ends = np.cumsum(counts).tolist()
    for item, end, count in zip(items, ends, counts.tolist()):
        rows = slice(end - count, end)
        is_region = (objects.categories[rows] == IGNORED_REGION) & objects.kept[rows]
        target = f"{job.target}/images/{item.image}"
        if not is_region.any():
            if job.drafts and item.size is None:
                _take_image(job._replace(mask=False), item.image)
            continue
        regions = objects.corners[rows][is_region]
        hidden[rows] = hidden_boxes(objects.corners[rows], regions)
        if job.drafts and item.size is None:
            place_masked(place.read(item.image), item.image, regions, target, job.drafts)
    return hidden


def _coco(items: Sequence[Item], sizes: Sequence[tuple[int, int]], objects: _Objects) -> tuple[str, str, int]:
    """The JSON entries of the images and of the annotations, and the number of annotations."""
    table, files = _coco_rows(objects)
    rows = number_texts(table, _ANNOTATION)
    bounds = np.searchsorted(files, np.arange(len(items) + 1)).tolist()
    others = _others(objects)
    images, annotations = [], []
    for index, (item, (width, height)) in enumerate(zip(items, sizes)):
        identity = json.dumps(image_id(item.image))
        entry = f'{{"id":{identity},"file_name":{json.dumps(item.image)},"width":{width},"height":{height}'
        boxes = f',"others":{json.dumps(others[index])}' if index in others else ""
        images.append(f"{entry}{boxes}}}")
        start, end = bounds[index : index + 2]
        if start < end:
            head = f'{{"id":%d,"image_id":{identity.replace("%", "%%")}'
            annotations.append(head + f",\n{head}".join(rows[start:end]))
    return ",\n".join(images), ",\n".join(annotations), len(table)


# What follows the ids; the numbers of a row are inserted between these texts.
_ANNOTATION = (
    *(',"category_id":', ',"bbox":[', ",", ",", ",", '],"area":', ',"iscrowd":', ',"ignore":'),
    *(',"visdrone_category":', "}"),
)


def _coco_rows(objects: _Objects) -> tuple[np.ndarray, np.ndarray]:
    """The rows of all annotations, one image after the other, and the index of each row's image.

    A row is class, x, y, width, height, area, iscrowd, ignore and category. Ignored regions are repeated for each
    class, after the objects of their image, because COCO's tools evaluate one class at a time.
    """
    is_region = objects.categories == IGNORED_REGION
    ordinary = np.flatnonzero(objects.kept & ~is_region & (objects.categories != OTHERS))
    regions = np.repeat(np.flatnonzero(objects.kept & is_region), len(CLASSES))
    rows = np.concatenate([ordinary, regions])
    classes = np.concatenate([objects.categories[ordinary] - 1, np.arange(len(regions)) % len(CLASSES)])
    order = np.argsort(objects.files[rows], kind="stable")
    rows, classes = rows[order], classes[order]
    table = np.empty((len(rows), 9))
    table[:, 0] = classes
    table[:, 1:5] = _ltwh(objects, rows)
    table[:, 5] = table[:, 3] * table[:, 4]
    table[:, 6] = table[:, 7] = (~objects.scored | is_region)[rows]
    table[:, 8] = objects.categories[rows]
    return _as_integers(table, [0, 6, 7, 8]), objects.files[rows]


def _others(objects: _Objects) -> dict[int, list[list[float]]]:
    """The boxes of the category 'others', by the index of their image."""
    rows = np.flatnonzero(objects.kept & (objects.categories == OTHERS))
    found: dict[int, list[list[float]]] = {}
    for index, box in zip(objects.files[rows].tolist(), _as_integers(_ltwh(objects, rows), []).tolist()):
        found.setdefault(index, []).append(box)
    return found


def _ltwh(objects: _Objects, rows: np.ndarray) -> np.ndarray:
    """The left, top, width and height of boxes, cut off at the border."""
    corners = objects.corners[rows]
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


def _as_integers(table: np.ndarray, always: list[int]) -> np.ndarray:
    """The table as whole numbers, if all are whole; otherwise only the columns ``always``."""
    whole = table.astype(np.int64)
    if (whole == table).all():
        return whole
    mixed = table.astype(object)
    mixed[:, always] = whole[:, always]
    return mixed
