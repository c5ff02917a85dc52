"""What the paper prints: `printed.yaml` as objects."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).with_name("printed.yaml")


@dataclass(frozen=True)
class PrintedRow:
    """A row of a table of the paper's, figures as text; empty where it prints none.

    One of ``classifier`` (a name), ``cfg`` (a YAML's name) and ``detector`` (options of `build_cfg`) says what to
    build.
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
    """A table of the paper's, or the half of one on a data set; ``operations`` is the unit of that column."""

    table: str
    title: str
    operations: str
    accuracy: list[str]
    rows: list[PrintedRow]


@functools.cache
def printed_tables() -> list[PrintedTable]:
    """All of them, in the paper's order."""
    return [_table(entry) for entry in _content()["tables"]]


def accuracy_source() -> str:
    """Where the accuracies are from."""
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
