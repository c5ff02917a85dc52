"""A few images of VisDrone2019-DET at a time, from source to labels and COCO JSON: what a worker process does."""

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

# Raise it with every change of what is written: what an older version wrote is then written anew.
RULES = 1
_UNUSABLE = (0, 0)


class Job(NamedTuple):
    """A split on its way from its source to its folder, as workers need to know it.

    Attributes:
        split: train, val or test.
        source: what holds ``images/`` and ``annotations/``.
        target: folder of the output, which gets the same and ``labels/``.
        annotated: whether the source has annotations.
        mask: whether ignored regions are greyed out.
        copy: whether images are copied.
        drafts: folder for drafts; "" writes nothing.
    """

    split: str
    source: Place
    target: str
    annotated: bool
    mask: bool
    copy: bool
    drafts: str = ""

    def header(self) -> dict[str, Any]:
        """Whatever makes results differ, but for the files themselves."""
        options = {"annotated": self.annotated, "mask_ignored": self.mask, "copy": self.copy}
        return {"rules": RULES, "split": self.split, "source": str(self.source), **options}


class Item(NamedTuple):
    """An image of a job.

    Attributes:
        image: its file name.
        annotation: name of its annotation file; "" if there is none.
        size: width and height if it is done already, and is only to be read for the JSON.
    """

    image: str
    annotation: str
    size: tuple[int, int] | None


class Task(NamedTuple):
    """What a worker does at a time."""

    job: Job
    items: list[Item]


class Chunk(NamedTuple):
    """What a worker returns.

    Attributes:
        sizes: width and height of each item; (0, 0) if it could not be used.
        images: entries of the COCO JSON's images, joined by commas.
        annotations: the same of its annotations, with ``%d`` for each id.
        annotation_count: of them.
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
    """A file's name without its ending; many times as fast as pathlib's."""
    return name[: name.rfind(".")] if "." in name else name


def remove_results(target: str, images: Iterable[str]) -> None:
    """Results of an earlier run whose image is gone from the source, or cannot be used any more."""
    for image in images:
        text = f"{stem_of(image)}.txt"
        for name in (f"images/{image}", f"labels/{text}", f"annotations/{text}"):
            remove_inside(Path(target, name), Path(target).parent)


class _Objects(NamedTuple):
    """The rows of a chunk's images, one image after the other.

    Attributes:
        boxes: left, top, width, height as annotated, (R, 4).
        corners: left, top, right, bottom, cut off at the border, (R, 4).
        sizes: width and height of the row's image, (R, 2).
        files: index of the row's image, (R,).
        categories: 0 to 11, (R,).
        scored: False for what is not evaluated, (R,).
        kept: False for boxes of no area, (R,).
    """

    boxes: np.ndarray
    corners: np.ndarray
    sizes: np.ndarray
    files: np.ndarray
    categories: np.ndarray
    scored: np.ndarray
    kept: np.ndarray


def convert_chunk(task: Task) -> Chunk:
    """Convert some images; what is wrong with one of them does not keep the others back."""
    broken: dict[str, UserError] = {}
    while True:
        try:
            return _convert_usable(task, broken)
        except BrokenImageError as error:  # it was found out late: once more without it
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
            problems.append(Problem(kind, where, str(error).removeprefix(where).lstrip(": ")))
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
    """Put an image into its place, unless it is to be masked or nothing is to be written; returns its size."""
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
        # YOLOv5 rewrites a JPEG without its end mark in place, which must not reach the source.
        place_link(file, target, job.drafts, copy=job.copy or not info.whole)
    return info[:2]


def _parse(
    job: Job, items: Sequence[Item], texts: Sequence[bytes], problems: list[Problem]
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of all texts, (R, 8), and how many each has; malformed lines become problems."""
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
    """Texts of the label files, and what is in them."""
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
    """Place the images with their ignored regions greyed out; True for rows that are at least half hidden."""
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
    """Entries of the images and of the annotations, and how many annotations there are."""
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


# What follows the ids: the numbers of a row stand between these.
_ANNOTATION = (
    *(',"category_id":', ',"bbox":[', ",", ",", ",", '],"area":', ',"iscrowd":', ',"ignore":'),
    *(',"visdrone_category":', "}"),
)


def _coco_rows(objects: _Objects) -> tuple[np.ndarray, np.ndarray]:
    """Rows of all annotations, one image after the other, and the index of each one's image.

    A row is class, x, y, width, height, area, iscrowd, ignore and category. Ignored regions come once for each
    class, behind the objects of their image, for COCO's tools look at one class at a time.
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
    return _whole_if_all_are(table, [0, 6, 7, 8]), objects.files[rows]


def _others(objects: _Objects) -> dict[int, list[list[float]]]:
    """Boxes of the category 'others' by the index of their image."""
    rows = np.flatnonzero(objects.kept & (objects.categories == OTHERS))
    found: dict[int, list[list[float]]] = {}
    for index, box in zip(objects.files[rows].tolist(), _whole_if_all_are(_ltwh(objects, rows), []).tolist()):
        found.setdefault(index, []).append(box)
    return found


def _ltwh(objects: _Objects, rows: np.ndarray) -> np.ndarray:
    """Left, top, width and height of boxes cut off at the border."""
    corners = objects.corners[rows]
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


def _whole_if_all_are(table: np.ndarray, always: list[int]) -> np.ndarray:
    """As whole numbers, as the benchmark's are; else only the columns that always are."""
    whole = table.astype(np.int64)
    if (whole == table).all():
        return whole
    mixed = table.astype(object)
    mixed[:, always] = whole[:, always]
    return mixed
