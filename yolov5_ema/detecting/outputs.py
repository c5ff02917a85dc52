"""Write the results of images to a file: Parquet with a row for each image, or a COCO results JSON."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from yolov5_ema.data.image_names import image_id, named_once
from yolov5_ema.errors import UserError

SUFFIXES = (".parquet", ".json")
METADATA_KEY = b"yolov5_ema"
_ROWS = 8192
_DETECTIONS = 200_000
"""A group of rows is written when it has this many rows or detections, which limits the memory needed."""


def check_format(out: Path) -> None:
    """Check that a file can be written in the format that its suffix names.

    Raises:
        UserError: there is no such format, or pyarrow is not installed.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise UserError(f"-o {out}: the suffix must be {' or '.join(SUFFIXES)}")
    if out.suffix.lower() == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UserError(f"-o {out} needs pyarrow: pip install pyarrow (or 'yolov5-ema[ray]'); .json does not")


def check_image_ids(images: Iterable[str]) -> None:
    """Check that the images have different ``image_id``s in a COCO results JSON.

    Raises:
        UserError: names two images with one id.
    """
    named_once(images, "COCO's JSON tells images apart by that image_id alone; a .parquet has the paths", image_id)


def write(
    file: Path,
    rows: Iterable[Mapping[str, Any]],
    *,
    form: str,
    names: Sequence[str],
    settings: Mapping[str, Any],
) -> None:
    """Write results in order, piece by piece.

    Args:
        file: the file to write.
        rows: the results, as `rows.row_of` makes them.
        form: the format, one of `SUFFIXES`.
        names: the names of the classes.
        settings: written into the metadata of a Parquet file.
    """
    if form == ".json":
        _write_coco(file, rows)
    else:
        _write_parquet(file, rows, names, settings)


def _write_coco(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with open(file, "w", encoding="utf-8") as stream:
        separator = "["
        for row in rows:
            for entry in _coco_entries(row):
                stream.write(separator + json.dumps(entry))
                separator = ",\n"
        stream.write("[]\n" if separator == "[" else "]\n")


def _coco_entries(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The entries of an image, rounded and named as in YOLOv5's ``save_one_json``."""
    identity = image_id(row["image"])
    for (left, top, right, bottom), score, number in zip(row["xyxy"], row["confidence"], row["class_id"]):
        bbox = [round(value, 3) for value in (left, top, right - left, bottom - top)]
        yield {"image_id": identity, "category_id": number, "bbox": bbox, "score": round(score, 5)}


def _write_parquet(
    file: Path, rows: Iterable[Mapping[str, Any]], names: Sequence[str], settings: Mapping[str, Any]
) -> None:
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema(
        [
            ("index", pyarrow.int64()),
            ("image", pyarrow.string()),
            ("height", pyarrow.int32()),
            ("width", pyarrow.int32()),
            ("xyxy", pyarrow.list_(pyarrow.list_(pyarrow.float32(), 4))),
            ("confidence", pyarrow.list_(pyarrow.float32())),
            ("class_id", pyarrow.list_(pyarrow.int32())),
            ("class_name", pyarrow.list_(pyarrow.string())),
            ("error", pyarrow.string()),
        ],
        metadata={METADATA_KEY: json.dumps(settings).encode()},
    )
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        for group in _groups(rows):
            named = [{**row, "class_name": [names[number] for number in row["class_id"]]} for row in group]
            writer.write_table(pyarrow.Table.from_pylist(named, schema=schema))


def _groups(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    group: list[Mapping[str, Any]] = []
    detections = 0
    for row in rows:
        group.append(row)
        detections += len(row["confidence"])
        if len(group) >= _ROWS or detections >= _DETECTIONS:
            yield group
            group, detections = [], 0
    if group:
        yield group
