"""Read the ``results.csv`` of a training, keeping its cells as they are printed there."""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass
from pathlib import Path

from yolov5_ema.errors import UserError
from yolov5_ema.reporting.reading import bytes_of
from yolov5_ema.texts import counted

_MOST_BYTES = 64 * 2**20
_MOST_ROWS, _MOST_COLUMNS, _MOST_DIGITS = 100_000, 20_000, 9
_LAST = "x/lr2"
# The names of each column, and its short name here. v6.0 with --mmdet_tags, and segment/train.py, use other names than
# YOLOv5's train.py; the last ones are those of ultralytics.
NAMES = {
    "mAP50": ("metrics/mAP_0.5", "val/bbox_mAP_50", "metrics/mAP_0.5(B)", "metrics/mAP50(B)"),
    "mAP50-95": ("metrics/mAP_0.5:0.95", "val/bbox_mAP", "metrics/mAP_0.5:0.95(B)", "metrics/mAP50-95(B)"),
    "precision": ("metrics/precision", "val/precision", "metrics/precision(B)"),
    "recall": ("metrics/recall", "val/recall", "metrics/recall(B)"),
    "train box loss": ("train/box_loss", "train/loss_bbox"),
    "train objectness loss": ("train/obj_loss", "train/loss_obj"),
    "train class loss": ("train/cls_loss", "train/loss_cls"),
    "val box loss": ("val/box_loss", "val/loss_bbox"),
    "val objectness loss": ("val/obj_loss", "val/loss_obj"),
    "val class loss": ("val/cls_loss", "val/loss_cls"),
    "top-1": ("val/top1", "metrics/accuracy_top1"),
    "top-5": ("val/top5", "metrics/accuracy_top5"),
    "train loss": ("train/loss",),
    "val loss": ("val/loss",),
}
_DETECTION = ("mAP50", "mAP50-95")
_VAL_LOSSES = ("val box loss", "val objectness loss", "val class loss")
_OF_VAL = (*_DETECTION, "precision", "recall", *_VAL_LOSSES)
_LOSS = re.compile(r"(train|val)/\w+_loss")
# the columns whose sum is the fitness in ultralytics: of boxes, and of masks or keypoints
_FITNESS = re.compile(r"metrics/mAP50-95\([BMP]\)")


@dataclass(frozen=True)
class Epochs:
    """The rows of a ``results.csv``.

    Attributes:
        columns: names in the header, the epoch first; columns of single classes are left out.
        rows: the cells as they are printed there, without blanks; one row for each epoch, in order.
        is_cut_off: whether the last line is incomplete; it is left out.
        again: epochs that occur more than once, as a resumed training writes them; the last row counts.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    is_cut_off: bool = False
    again: tuple[int, ...] = ()

    @property
    def numbers(self) -> list[int]:
        """The numbers of the epochs, counted as in the file (from 0)."""
        return [int(row[0]) for row in self.rows]

    def column(self, name: str) -> int | None:
        """The index of the column with this short name (see `NAMES`) or its own; None if the file has none."""
        return next((self.columns.index(own) for own in NAMES.get(name, (name,)) if own in self.columns), None)

    @property
    def other_losses(self) -> list[str]:
        """The columns with losses that have no short name, such as those of masks."""
        known = {own for names in NAMES.values() for own in names}
        return [name for name in self.columns if _LOSS.fullmatch(name) and name not in known]

    def texts(self, name: str) -> list[str] | None:
        """A figure for all epochs, as printed in the file; None if there is no such column."""
        at = self.column(name)
        return None if at is None else [row[at] for row in self.rows]

    def values(self, name: str) -> list[float] | None:
        """A figure for all epochs, as numbers, which may be infinite or NaN. NaN also if an epoch was not validated."""
        texts = self.texts(name)
        if texts is None:
            return None
        is_known = self.is_validated if name in _OF_VAL else [True] * len(texts)
        return [float(text) if known else math.nan for text, known in zip(texts, is_known)]

    @property
    def is_validated(self) -> list[bool]:
        """Whether each epoch was validated: with ``--noval``, YOLOv5 writes 0 for all epochs except the last."""
        losses = [texts for name in _VAL_LOSSES if (texts := self.texts(name)) is not None]
        return [not losses or any(float(texts[at]) for texts in losses) for at in range(len(self.rows))]

    @property
    def best(self) -> int | None:
        """Index of the row for which best.pt was saved; None if no row has figures.

        YOLOv5 chooses the highest 0.1 mAP50 + 0.9 mAP50-95; ultralytics (8.4) the highest mAP50-95, to which that of
        masks or keypoints is added, or the highest mean of top-1 and top-5. Both choose the last of equal ones.
        ``yolov5-ema classify`` chooses the highest top-1, the first of equal ones.
        """
        fitness = self._fitness() if self.rows else []
        finite = [at for at, value in enumerate(fitness) if math.isfinite(value)]
        later = -1 if "val/top1" in self.columns else 1
        return max(finite, key=lambda at: (fitness[at], later * at), default=None)

    def _fitness(self) -> list[float]:
        of_ultralytics = [name for name in self.columns if _FITNESS.fullmatch(name)]
        if of_ultralytics:
            is_known = self.is_validated
            columns = [self.values(name) or [] for name in of_ultralytics]
            return [sum(row) if known else math.nan for *row, known in zip(*columns, is_known)]
        half, whole = (self.values(name) for name in _DETECTION)
        if half is not None and whole is not None:
            return [0.1 * a + 0.9 * b for a, b in zip(half, whole)]
        top1 = self.values("top-1") or []
        if "metrics/accuracy_top1" in self.columns:
            return [(a + b) / 2 for a, b in zip(top1, self.values("top-5") or [])]
        return top1

    @property
    def diverged_at(self) -> int | None:
        """The first epoch with a training loss that is not a number; None if there is none."""
        names = [name for name in (*NAMES, *self.other_losses) if name.startswith("train")]
        losses = [values for name in names if (values := self.values(name)) is not None]
        for at, number in enumerate(self.numbers):
            if not all(math.isfinite(values[at]) for values in losses):
                return number
        return None


def read_epochs(file: Path) -> Epochs:
    """Read a ``results.csv`` of YOLOv5, of ultralytics or of ``yolov5-ema classify train``.

    An incomplete last line, which a killed training can leave, is skipped.

    Raises:
        UserError: the file cannot be read, is not such a table, or has a damaged line. Names the file and the line.
    """
    lines = _text(file).split("\n")
    # "" if the last line is complete
    unfinished = lines.pop()
    header = list(_cells(lines[0], f"{file}, line 1")) if lines else []
    if len(header) > _MOST_COLUMNS or len(lines) > _MOST_ROWS:
        raise UserError(
            f"{file} has {counted(len(lines), 'line')} of {counted(len(header), 'column')}: not a results.csv of a "
            "training"
        )
    if header[:1] != ["epoch"]:
        raise UserError(f"{file} is not a results.csv of a training: its first line does not begin with 'epoch'")
    # After these columns, the PyPI package writes one column for each class, without quoting: a comma in a class name
    # gives two columns.
    columns = header[: header.index(_LAST) + 1] if _LAST in header else header
    rows: dict[int, tuple[str, ...]] = {}
    again = []
    width = 0
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        cells = _cells(line, f"{file}, line {number}")
        width = width or max(len(cells), len(columns))
        epoch = _checked(cells, width, f"{file}, line {number}")
        if epoch in rows:
            again.append(epoch)
        rows[epoch] = cells[: len(columns)]
    ordered = tuple(rows[epoch] for epoch in sorted(rows))
    return Epochs(tuple(columns), ordered, bool(unfinished.strip()), tuple(again))


def _text(file: Path) -> str:
    try:
        return bytes_of(file, _MOST_BYTES).decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text (byte {error.start}): it is damaged") from None


def _cells(line: str, where: str) -> tuple[str, ...]:
    try:
        cells = next(csv.reader([line]), [])
    except csv.Error as error:
        raise UserError(f"{where}: {error}; the file is damaged") from None
    return tuple(cell.strip() for cell in cells)


def _checked(cells: tuple[str, ...], columns: int, where: str) -> int:
    """The epoch of a row, after checking that all its cells are numbers."""
    if len(cells) != columns:
        raise UserError(f"{where}: {len(cells)} cells instead of {columns}; the file is damaged")
    for cell in cells:
        try:
            float(cell)
        except ValueError:
            raise UserError(f"{where}: {cell[:40]!r} is not a number; the file is damaged") from None
    if not cells[0].isdecimal() or len(cells[0]) > _MOST_DIGITS:
        raise UserError(f"{where}: {cells[0][:40]!r} is not an epoch")
    return int(cells[0])
