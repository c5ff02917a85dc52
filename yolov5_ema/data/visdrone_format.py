"""The text format of VisDrone2019-DET, which annotations and results share.

There is one line for each object: ``left,top,width,height,score,category,truncation,occlusion``, in pixels from the
upper left corner of the image. In annotations, the score is 1 if the object is evaluated, otherwise 0. In results, it
is the confidence, and truncation and occlusion are -1.
Source: https://github.com/VisDrone/VisDrone2018-DET-toolkit (README).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from yolov5_ema.data.text_rows import BadLine, Rows, parse_clean, parse_rows, read_lines
from yolov5_ema.files import reading_from
from yolov5_ema.reading import read_bytes

CLASSES = (
    "pedestrian",
    "people",
    "bicycle",
    "car",
    "van",
    "truck",
    "tricycle",
    "awning-tricycle",
    "bus",
    "motor",
)
"""The names of categories 1 to 10, in order: category c is class c - 1."""

IGNORED_REGION, OTHERS = 0, 11
SPLIT_FOLDERS = {
    "train": "VisDrone2019-DET-train",
    "val": "VisDrone2019-DET-val",
    "test": "VisDrone2019-DET-test-dev",
}
"""The folder names of the benchmark; each contains ``images/`` and ``annotations/``."""

LEFT, TOP, WIDTH, HEIGHT, SCORE, CATEGORY, TRUNCATION, OCCLUSION = range(8)


def read_annotations(file: Path) -> Rows:
    """Read the annotations of one image: rows of 8 numbers, in the order of the file.

    Lines with a category outside 0 to 11 are bad. Boxes are not changed, whatever their size.

    Raises:
        UserError: the file cannot be read.
    """
    with reading_from(file):
        return parse_annotations(read_bytes(file), file)


def parse_annotations(text: bytes, file: Path) -> Rows:
    """Parse annotations in memory, such as a member of an archive; ``file`` is used to report bad lines."""
    clean = parse_clean([text], 8)
    if clean is not None:
        values = clean[0].astype(np.float64)
        rows = Rows(values, np.arange(1, len(values) + 1), [])
    else:
        lines = text.decode("utf-8-sig", errors="replace").splitlines()
        rows = parse_rows(lines, file, 8, separator=",")
    return _with_known_categories(rows, file)


def read_results(file: Path) -> Rows:
    """Read the detections of one image: rows of 8 numbers, in the order of the file.

    Truncation and occlusion may be missing.

    Raises:
        UserError: the file cannot be read.
    """
    return _with_known_categories(parse_rows(read_lines(file), file, 8, separator=",", at_least=6), file)


def _with_known_categories(rows: Rows, file: Path) -> Rows:
    category = rows.values[:, CATEGORY]
    known = (category == category.round()) & (category >= IGNORED_REGION) & (category <= OTHERS)
    unknown = [
        BadLine(file, int(line), f"category {value:g} is not in 0 to 11")
        for line, value in zip(rows.lines[~known], category[~known])
    ]
    return Rows(rows.values[known], rows.lines[known], sorted(rows.bad + unknown, key=lambda bad: bad.line))
