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


def format_labels(classes: np.ndarray, boxes: np.ndarray, counts: np.ndarray) -> list[bytes]:
    """The texts of many label files at once, with six decimals.

    Args:
        classes: whole numbers >= 0, of shape (N,); all files' rows, one file after the other.
        boxes: normalised center boxes in millionths, whole numbers from 0 to 1,000,000, of shape (N, 4).
        counts: rows of each file, of shape (F,), with the sum N.

    Returns:
        F texts; a file without rows has an empty one.
    """
    classes = classes.astype(np.int64)
    class_width = len(str(int(classes.max(initial=0))))
    text = np.full((len(classes), class_width + 37), ord(" "), np.uint8)
    for place in range(class_width):
        text[:, class_width - 1 - place] = classes // 10**place % 10 + ord("0")
    millionths = boxes.astype(np.uint32)
    for column in range(4):
        start = class_width + 1 + 9 * column
        text[:, start + 1] = ord(".")
        for place in range(7):  # the units, then behind the point six decimals
            digit = millionths[:, column] // np.uint32(10 ** (6 - place)) % np.uint32(10)
            text[:, start + place + (place > 0)] = digit + ord("0")
    text[:, -1] = ord("\n")
    ends = np.cumsum(counts)
    if class_width == 1:
        width = text.shape[1]
        whole = text.tobytes()
        return [
            whole[width * (end - count) : width * end] for end, count in zip(ends.tolist(), counts.tolist())
        ]
    used = np.ones(text.shape, bool)
    for place in range(1, class_width):
        used[:, class_width - 1 - place] = classes >= 10**place
    whole = text[used].tobytes()
    offsets = np.concatenate([[0], np.cumsum(used.sum(axis=1))])
    return [whole[offsets[end - count] : offsets[end]] for end, count in zip(ends.tolist(), counts.tolist())]


MILLIONTHS = 1_000_000


def to_millionths(corners: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Corner boxes in pixels as normalised center boxes in millionths, for `format_labels`.

    Args:
        corners: left, top, right, bottom, of shape (N, 4), within their images.
        sizes: width and height of each row's image, of shape (N, 2).

    Returns:
        Whole numbers of shape (N, 4). Width or height is 0 where a label file could not tell it from 0.
    """
    scaled = np.empty((len(corners), 4))
    scaled[:, :2] = (corners[:, :2] + corners[:, 2:]) / (2 * sizes)
    scaled[:, 2:] = (corners[:, 2:] - corners[:, :2]) / sizes
    return np.rint(scaled * MILLIONTHS).astype(np.int64)


def clip_corners(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Left, top, width, height in pixels as corners cut off at the image's border; (N, 4) and (N, 2) to (N, 4).

    A box outside its image, or of negative size, comes out without area.
    """
    corners = np.empty((len(boxes), 4))
    limits = sizes.astype(np.float64)
    with np.errstate(over="ignore"):  # the sum of two huge numbers is infinite, and cut off all the same
        corners[:, :2] = np.clip(boxes[:, :2], 0, limits)
        corners[:, 2:] = np.clip(boxes[:, :2] + boxes[:, 2:], corners[:, :2], limits)
    return corners


def first_of_each(files: np.ndarray, classes: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """True for the first of rows that are the same in the same file, which YOLOv5 would drop; (N,) bool."""
    rows = np.column_stack([files, classes, boxes]).astype(np.int64)
    with np.errstate(over="ignore"):
        keys = rows @ _MIXERS
    in_order = np.sort(keys)
    if (in_order[1:] != in_order[:-1]).all():  # equal rows have equal keys, so there are none
        return np.ones(len(keys), bool)
    first = np.zeros(len(keys), bool)
    first[np.unique(rows, axis=0, return_index=True)[1]] = True
    return first


_MIXERS = np.array([0x9E3779B97F4A7C1, 0x1B873593CC9E2D51, 0x2127599BF4325C37, 0x52DCE729DA3E39CB,
                    0x38495AB5A4093823, 0x27D4EB2F165667C5], dtype=np.int64)  # fmt: skip


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
