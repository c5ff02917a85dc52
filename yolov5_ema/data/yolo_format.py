"""YOLO label files: one line for each object, ``class x_center y_center width height``.

The coordinates are fractions of the image's width and height, from 0 to 1. A line with more numbers is a polygon
(``class x y x y …``), which is replaced by its bounding box, as in YOLOv5. If YOLOv5 cannot use one row, it leaves out
the whole image, in training and in ``val``.
"""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import NamedTuple

import numpy as np

from yolov5_ema.data.text_rows import BadLine, numbers_in
from yolov5_ema.files import reading_from
from yolov5_ema.reading import read_bytes
from yolov5_ema.texts import counted

POLYGON_FROM = 7
"""From this number of columns, YOLOv5 reads a row, and then all rows of the file, as polygons; 9 in v6.0 and v6.1."""
_LEAST_OF_POLYGON = 7


class Labels(NamedTuple):
    """The content of a label file.

    Attributes:
        values: the rows that can be used, cut off at the image's border if a number is not in 0 to 1; float64 of
            shape (R, 5): class, x and y of the center, width, height.
        lines: the line of each of these rows in the file, counted from 1; int64 of shape (R,).
        bad: the rows that cannot be used.
        odd: rows among `values` that YOLOv5 refuses, or reads differently.
        left_out: the row because of which YOLOv5 leaves out the whole image; None if it uses the image.
        seen: the rows as YOLOv5 reads them, without unknown classes; empty if YOLOv5 leaves out the image.
    """

    values: np.ndarray
    lines: np.ndarray
    bad: list[BadLine]
    odd: list[BadLine]
    left_out: BadLine | None
    seen: np.ndarray

    @property
    def reason_left_out(self) -> str:
        """`left_out` as a message; "" if YOLOv5 uses the image."""
        if self.left_out is None:
            return ""
        others = len({entry.line for entry in self.named}) - 1
        more = f" (and {counted(others, 'more odd row')})" if others else ""
        return f"YOLOv5 leaves it out because of its labels: {self.left_out}{more}"

    @property
    def named(self) -> list[BadLine]:
        """All bad and odd rows, in the order of their lines."""
        return sorted([*self.bad, *self.odd], key=lambda entry: entry.line)


def read_labels(file: Path, nc: int, polygon_from: int = POLYGON_FROM) -> Labels:
    """Read the labels of one image; a missing file means an image without objects.

    Lines with a class outside 0 to ``nc`` - 1 are bad.

    Args:
        file: the label file.
        nc: the number of classes.
        polygon_from: the value for the release of YOLOv5, see `POLYGON_FROM`.

    Raises:
        UserError: the file exists but cannot be read.
    """
    if not file.exists():
        return Labels(_none(), np.zeros(0, np.int64), [], [], None, _none())
    with reading_from(file):
        content = read_bytes(file)
    reader = _Reader(file, nc)
    reader.read(content, polygon_from)
    return reader.labels()


class _Reader:
    """Reads one file row by row, leniently and as YOLOv5 does."""

    def __init__(self, file: Path, nc: int) -> None:
        self._file, self._nc = file, nc
        self._values: list[list[float]] = []
        self._lines: list[int] = []
        self._bad: list[BadLine] = []
        self._odd: list[BadLine] = []
        self._left_out: BadLine | None = None
        self._seen: list[list[float]] = []

    def read(self, content: bytes, polygon_from: int) -> None:
        if content.startswith(codecs.BOM_UTF8):
            self._note(self._odd, 1, "there is a byte order mark before the first row", leaves_out=True)
        lines = content.decode("utf-8-sig", "replace").splitlines()
        rows = _without_blank_ends([(number, line.split()) for number, line in enumerate(lines, 1) if line])
        polygons = any(len(fields) >= polygon_from for _, fields in rows)
        for number, fields in rows:
            self._row(number, fields, polygons)

    def _row(self, number: int, fields: list[str], polygons: bool) -> None:
        if not fields:  # a line of blanks is a row to YOLOv5
            self._note(self._odd, number, "there are only blanks", leaves_out=True)
            return
        row, reason = numbers_in(fields)
        box = None if reason else _box(row)
        if box is None:
            self._note(self._bad, number, reason or f"{len(row)} columns, not 5", leaves_out=True)
        elif box[0] != round(box[0]) or not 0 <= box[0] < self._nc:
            reason = f"class {box[0]:g} is not in 0 to {self._nc - 1}"
            self._note(self._bad, number, reason, leaves_out=box[0] < 0)
        else:
            self._take(number, row, box, polygons)

    def _take(self, number: int, row: list[float], box: list[float], polygons: bool) -> None:
        """Take a row of numbers, both as it is meant and as YOLOv5 reads it."""
        seen = [box[0], *_around(row[1:])] if polygons else box
        self._seen.append(seen)
        leaves_out = bool(_refused_number(seen))
        fault, cut = _refused_number(box), _cut(box)
        if cut is None:
            self._note(self._bad, number, fault, leaves_out)
            return
        if fault:
            self._note(self._odd, number, f"{fault}; cut off at the border", leaves_out)
        elif len(row) != 5 and not polygons:
            self._note(self._odd, number, f"{len(row)} columns, which this YOLOv5 does not read as a polygon", True)
        elif len(row) == 5 and polygons:
            self._note(self._odd, number, "a box among polygons, which YOLOv5 reads as two points", leaves_out)
        self._values.append(cut)
        self._lines.append(number)

    def _note(self, into: list[BadLine], number: int, reason: str, leaves_out: bool) -> None:
        entry = BadLine(self._file, number, reason)
        into.append(entry)
        if leaves_out and self._left_out is None:
            self._left_out = entry

    def labels(self) -> Labels:
        seen = [] if self._left_out else self._seen
        return Labels(
            np.array(self._values, dtype=np.float64).reshape(-1, 5),
            np.array(self._lines, dtype=np.int64),
            self._bad,
            self._odd,
            self._left_out,
            np.array(seen, dtype=np.float64).reshape(-1, 5),
        )


def _none() -> np.ndarray:
    return np.zeros((0, 5))


def _without_blank_ends(rows: list[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    filled = [at for at, (_, fields) in enumerate(rows) if fields]
    return rows[filled[0] : filled[-1] + 1] if filled else []


def _box(row: list[float]) -> list[float] | None:
    """The class and the box of a row, which is a box or a polygon; None for anything else."""
    if len(row) == 5:
        return row
    if len(row) < _LEAST_OF_POLYGON or len(row) % 2 == 0:
        return None
    return [row[0], *_around(row[1:])]


def _around(points: list[float]) -> list[float]:
    """The center and the size of the box around x y x y …"""
    x, y = points[::2], points[1::2]
    low, high = (min(x), min(y)), (max(x), max(y))
    return [(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, high[0] - low[0], high[1] - low[1]]


def _refused_number(box: list[float]) -> str:
    """Which number of a row YOLOv5 refuses, in its precision; "" if none."""
    for value in box[1:]:
        if not 0 <= value <= 1:
            if np.float32(value) < 0:
                return f"{value:g} is negative"
            if np.float32(value) > 1:
                return f"{value:.7g} is not in 0 to 1"
    return ""


def _cut(box: list[float]) -> list[float] | None:
    """A box cut off at the image's border; None if it is completely outside."""
    if not _refused_number(box):
        return box
    cls, x, y, width, height = box
    left, right = max(x - width / 2, 0.0), min(x + width / 2, 1.0)
    top, bottom = max(y - height / 2, 0.0), min(y + height / 2, 1.0)
    if width <= 0 or height <= 0 or left >= right or top >= bottom:
        return None
    return [cls, (left + right) / 2, (top + bottom) / 2, right - left, bottom - top]


def label_text(rows: np.ndarray) -> str:
    """The content of a label file: class, x and y of the center, width, height, of shape (R, 5), with six decimals."""
    lines = (f"{int(cls)} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for cls, x, y, w, h in rows.tolist())
    return "".join(lines)


def to_xywh_pixels(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """Convert normalised center boxes to left, top, width, height in pixels; (N, 4) to (N, 4)."""
    size = boxes[:, 2:] * (width, height)
    return np.concatenate([boxes[:, :2] * (width, height) - size / 2, size], axis=1)


def format_labels(classes: np.ndarray, boxes: np.ndarray, counts: np.ndarray) -> list[bytes]:
    """The texts of many label files at once, with six decimals.

    Args:
        classes: whole numbers >= 0, of shape (N,); the rows of all files, one file after the other.
        boxes: normalised center boxes in millionths, whole numbers from 0 to 1,000,000, of shape (N, 4).
        counts: the number of rows of each file, of shape (F,), with the sum N.

    Returns:
        F texts; the text of a file without rows is empty.
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
        for place in range(7):  # the units, then six decimals after the point
            digit = millionths[:, column] // np.uint32(10 ** (6 - place)) % np.uint32(10)
            text[:, start + place + (place > 0)] = digit + ord("0")
    text[:, -1] = ord("\n")
    ends = np.cumsum(counts)
    if class_width == 1:
        width = text.shape[1]
        whole = text.tobytes()
        return [whole[width * (end - count) : width * end] for end, count in zip(ends.tolist(), counts.tolist())]
    used = np.ones(text.shape, bool)
    for place in range(1, class_width):
        used[:, class_width - 1 - place] = classes >= 10**place
    whole = text[used].tobytes()
    offsets = np.concatenate([[0], np.cumsum(used.sum(axis=1))])
    return [whole[offsets[end - count] : offsets[end]] for end, count in zip(ends.tolist(), counts.tolist())]


MILLIONTHS = 1_000_000


def to_millionths(corners: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Convert corner boxes in pixels to normalised center boxes in millionths, for `format_labels`.

    Args:
        corners: left, top, right, bottom, of shape (N, 4), within their images.
        sizes: width and height of each row's image, of shape (N, 2).

    Returns:
        Whole numbers of shape (N, 4). A width or height that a label file would round to 0 is 0.
    """
    scaled = np.empty((len(corners), 4))
    scaled[:, :2] = (corners[:, :2] + corners[:, 2:]) / (2 * sizes)
    scaled[:, 2:] = (corners[:, 2:] - corners[:, :2]) / sizes
    return np.rint(scaled * MILLIONTHS).astype(np.int64)


def clip_corners(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Convert left, top, width, height in pixels to corners, cut off at the border; (N, 4) and (N, 2) to (N, 4).

    A box outside its image, or of negative size, gets no area.
    """
    corners = np.empty((len(boxes), 4))
    limits = sizes.astype(np.float64)
    with np.errstate(over="ignore"):  # the sum of two huge numbers is infinite, and cut off all the same
        corners[:, :2] = np.clip(boxes[:, :2], 0, limits)
        corners[:, 2:] = np.clip(boxes[:, :2] + boxes[:, 2:], corners[:, :2], limits)
    return corners


def first_of_each(files: np.ndarray, classes: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """True for the first of several equal rows of a file; YOLOv5 drops the others; (N,) bool."""
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
