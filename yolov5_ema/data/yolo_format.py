"""YOLO label files: a line an object, ``class x_center y_center width height``, all but the class in 0 to 1.

The coordinates are fractions of the image's width and height. A line with more numbers is a polygon
(``class x y x y …``), whose box is taken, as YOLOv5 does.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from yolov5_ema.data.text_rows import BadLine, Rows, parse_rows, read_lines


def read_labels(file: Path, nc: int) -> Rows:
    """One image's labels: rows of 5 numbers; a missing file is an image without objects.

    Lines with a class that is none of 0 to ``nc`` - 1 are bad.

    Raises:
        UserError: the file is there and cannot be read.
    """
    if not file.exists():
        return Rows(np.zeros((0, 5)), np.zeros(0, np.int64), [])
    rows = parse_rows([_boxed(line) for line in read_lines(file)], file, 5)
    return with_known_classes(rows, file, nc)


def with_known_classes(rows: Rows, file: Path, nc: int) -> Rows:
    """The rows whose first column is a class; the others become bad lines."""
    classes = rows.values[:, 0]
    known = (classes == classes.round()) & (classes >= 0) & (classes < nc)
    unknown = [
        BadLine(file, int(line), f"class {value:g} is none of 0 to {nc - 1}")
        for line, value in zip(rows.lines[~known], classes[~known])
    ]
    return Rows(rows.values[known], rows.lines[known], sorted(rows.bad + unknown, key=lambda bad: bad.line))


def to_xywh_pixels(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """Normalised center boxes as left, top, width, height in pixels; (N, 4) to (N, 4)."""
    size = boxes[:, 2:] * (width, height)
    return np.concatenate([boxes[:, :2] * (width, height) - size / 2, size], axis=1)


def _boxed(line: str) -> str:
    fields = line.split()
    if len(fields) < 7 or len(fields) % 2 == 0:
        return line
    try:
        points = np.array(fields[1:], dtype=np.float64).reshape(-1, 2)
    except ValueError:
        return line
    low, high = points.min(axis=0), points.max(axis=0)
    numbers = [*((low + high) / 2), *(high - low)]
    return " ".join([fields[0], *(repr(float(number)) for number in numbers)])
