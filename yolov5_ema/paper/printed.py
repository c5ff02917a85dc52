"""The numbers that the paper prints: `printed.yaml` as objects."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).with_name("printed.yaml")


@dataclass(frozen=True)
class PrintedRow:
    """A row of one of the paper's tables, with numbers as text; the text is empty if the paper prints no number.

    One of ``classifier`` (a name), ``cfg`` (a YAML's name) and ``detector`` (options of `build_cfg`) says which model
    to build.
    """

    label: str
    parameters: str = ""
    operations: str = ""
    over: str = ""
    classifier: str = ""
    cfg: str = ""
    detector: dict[str, Any] = field(default_factory=dict)
    accuracy: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PrintedTable:
    """One of the paper's tables, or the half of it for one data set; ``operations`` is the unit of that column."""

    table: str
    title: str
    operations: str
    accuracy: list[str]
    rows: list[PrintedRow]


@functools.cache
def printed_tables() -> list[PrintedTable]:
    """All of the tables, in the paper's order."""
    return [_table(entry) for entry in _content()["tables"]]


def accuracy_source() -> str:
    """The source of the accuracies."""
    return str(_content()["accuracy_source"])


@functools.cache
def _content() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


def _table(entry: dict[str, Any]) -> PrintedTable:
    metrics = entry["accuracy"]
    rows = []
    for fields in entry["rows"]:
        accuracy = {metric: fields[metric] for metric in metrics if metric in fields}
        rest = {key: value for key, value in fields.items() if key not in metrics}
        rows.append(PrintedRow(**rest, accuracy=accuracy))
    return PrintedTable(entry["table"], entry["title"], entry["operations"], metrics, rows)
