"""The comparison with the paper's tables as text, Markdown and JSON, with the same rows in each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from yolov5_ema.paper.counting import CONVENTIONS
from yolov5_ema.paper.matching import CUT_OFF, ROUNDED, TWO_DIGITS
from yolov5_ema.paper.printed import accuracy_source
from yolov5_ema.paper.tables import Figure, Row
from yolov5_ema.texts import aligned

_HEADER = ("row", "figure", "paper", "ours, in full", "over baseline", "the paper's way", "which", "match")
_LEFT = (0, 1, 6, 7)  # columns of words
_WORDS = {ROUNDED: "yes", TWO_DIGITS: "to two digits", CUT_OFF: "only cut off", "": "NO"}


def as_json(rows: Sequence[Row]) -> dict[str, Any]:
    """The whole comparison, for programs."""
    return {
        "conventions": CONVENTIONS,
        "accuracy_source": accuracy_source(),
        "rows": [row.as_dict() for row in rows],
        "unexplained": [{"table": row.table, "row": row.label, **_brief(figure)} for row, figure in _unexplained(rows)],
        "matches": _tally(rows),
    }


def as_text(rows: Sequence[Row]) -> str:
    """The comparison for a terminal."""
    parts = []
    for title, lines in _tables(rows):
        parts += [title, aligned([_HEADER, *lines], left=_LEFT), ""]
    parts.append(aligned(list(CONVENTIONS.items()), left=(0, 1)))
    return "\n".join([*parts, "", *_closing(rows)])


def as_markdown(rows: Sequence[Row]) -> str:
    """The comparison for a page of the documentation."""
    parts = []
    for title, lines in _tables(rows):
        dashes = ["---" if place in _LEFT else "---:" for place in range(len(_HEADER))]
        table = [f"| {' | '.join(line)} |" for line in (_HEADER, dashes, *lines)]
        parts += [f"### {title}", "", *table, ""]
    parts += ["| way of counting | what |", "| --- | --- |"]
    parts += [f"| {name} | {meaning} |" for name, meaning in CONVENTIONS.items()]
    return "\n".join([*parts, "", *(f"- {line}" for line in _closing(rows))])


def _tables(rows: Sequence[Row]) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    for (table, title), group in groupby(rows, lambda row: (row.table, row.title)):
        yield f"Table {table}: {title}", [line for row in group for line in _lines(row)]


def _lines(row: Row) -> Iterator[tuple[str, ...]]:
    label = row.label
    for figure in row.figures:
        name = f"{figure.kind}, M" if figure.kind == "parameters" else figure.unit
        over = "" if figure.over is None else f"{'+' if figure.over >= 0 else ''}{_number(figure, figure.over)}"
        way = "" if figure.explained is None else _number(figure, figure.explained)
        word = _WORDS[figure.how] if figure.printed else ""
        remark = " (as without the block)" if figure.as_without_block else ""
        shown = figure.printed or "-"
        yield label, name, shown, _number(figure, figure.ours), over, way, figure.convention, word + remark
        label = ""
    if row.accuracy:
        yield "", ", ".join(row.accuracy), " ".join(row.accuracy.values()), *[""] * 4, "quoted, not measured"


def _number(figure: Figure, value: float) -> str:
    if figure.kind == "parameters":
        return f"{round(value * 1e6):,}"
    return f"{value:.2f}" if figure.unit == "M MACs" else f"{value:.4f}"


def _closing(rows: Sequence[Row]) -> list[str]:
    tally = _tally(rows)
    lines = [
        f"{sum(tally.values())} figures: {tally[ROUNDED]} match when rounded, {tally[TWO_DIGITS]} to two digits, "
        f"{tally[CUT_OFF]} only cut off, {tally['none']} by no way of counting that was tried."
    ]
    for row, figure in _unexplained(rows):
        ways = ", ".join(f"{name} {_number(figure, value)}" for name, value in figure.conventions.items())
        same = "; it is what the row without the block gives" if figure.as_without_block else ""
        name = "M parameters" if figure.kind == "parameters" else figure.unit
        lines.append(f"Not explained: Table {row.table}, {row.label}, {figure.printed} {name} ({ways}){same}.")
    lines.append(f"Accuracies are quoted, not measured here: {accuracy_source()}.")
    return lines


def _tally(rows: Sequence[Row]) -> dict[str, int]:
    found = [figure.how or "none" for row in rows for figure in row.figures if figure.printed]
    return {how: found.count(how) for how in (ROUNDED, TWO_DIGITS, CUT_OFF, "none")}


def _unexplained(rows: Sequence[Row]) -> list[tuple[Row, Figure]]:
    return [(row, figure) for row in rows for figure in row.figures if figure.is_unexplained]


def _brief(figure: Figure) -> dict[str, Any]:
    return {
        "kind": figure.kind,
        "unit": figure.unit,
        "printed": figure.printed,
        "ours": figure.ours,
        "as_without_block": figure.as_without_block,
    }
