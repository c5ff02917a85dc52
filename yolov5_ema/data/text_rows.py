"""Rows of numbers in text files, as annotation formats hold them: read leniently, nothing dropped in silence."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from yolov5_ema.errors import UserError


class BadLine(NamedTuple):
    """A line that could not be used.

    Attributes:
        file: the text file.
        line: counted from 1.
        reason: what is wrong with it.
    """

    file: Path
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.reason}"


class Rows(NamedTuple):
    """What a file holds.

    Attributes:
        values: float64 of shape (R, columns).
        lines: for each row its line in the file, counted from 1; int64 of shape (R,).
        bad: the lines that are no row.
    """

    values: np.ndarray
    lines: np.ndarray
    bad: list[BadLine]


def read_lines(file: Path) -> list[str]:
    """The lines of a text file, whatever its line ends, without a byte order mark.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error


def parse_rows(
    lines: Iterable[str],
    file: Path,
    columns: int,
    *,
    separator: str | None = None,
    at_least: int | None = None,
) -> Rows:
    """Rows of ``columns`` finite numbers.

    Blank lines are passed over, and so are separators at the end of a line. Columns beyond ``columns`` are
    an error, as are fewer than ``at_least`` (default: ``columns``); the ones between are filled with 0.

    Args:
        lines: the text.
        file: named in `BadLine`.
        columns: of the result.
        separator: between numbers; None for white space.
        at_least: how many columns a line must have.
    """
    least = columns if at_least is None else at_least
    values, numbers, bad = [], [], []
    for number, line in enumerate(lines, start=1):
        text = line.strip().rstrip(f"{separator or ''} \t")
        if not text:
            continue
        fields = text.split(separator)
        row, reason = _numbers(fields)
        if not reason and not least <= len(row) <= columns:
            wanted = str(columns) if least == columns else f"{least} to {columns}"
            reason = f"{len(row)} columns, not {wanted}"
        if reason:
            bad.append(BadLine(file, number, reason))
            continue
        values.append(row + [0.0] * (columns - len(row)))
        numbers.append(number)
    array = np.array(values, dtype=np.float64).reshape(-1, columns)
    return Rows(array, np.array(numbers, dtype=np.int64), bad)


def _numbers(fields: list[str]) -> tuple[list[float], str]:
    row = []
    for field in fields:
        try:
            number = float(field)
        except ValueError:
            return [], f"{field.strip()[:40]!r} is no number"
        if not math.isfinite(number):
            return [], f"{field.strip()[:40]} is not finite"
        row.append(number)
    return row, ""
