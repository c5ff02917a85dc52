"""The material of a page, and the parts that its sections consist of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from yolov5_ema.reporting.charts import COLOURS, DASHES
from yolov5_ema.reporting.comparing import Compared, grouped
from yolov5_ema.reporting.cost import Cost
from yolov5_ema.reporting.measuring import Measured
from yolov5_ema.reporting.runs import CLASSIFY, DETECT, Comparison, Evaluated, Run, Source
from yolov5_ema.reporting.tables import Table, text

TASKS = {DETECT: "detection", CLASSIFY: "classification"}

Part = Mapping[str, Any]
"""A part of the page for the template: its ``kind``, and the values that this kind needs."""


@dataclass
class Material:
    """Everything that a page is made from.

    Attributes:
        sources: the folders that the user named.
        compared: comparisons, including those of ``comparison.json``.
        costs: costs of the models, by the names of the runs.
        measured: evaluations, by the names of the runs.
        not_measured: why a run has no evaluation, by the name of the run.
        software: versions of the software that made the page.
        machine: the machine that made the page.
        title: title of the page; "" for a title made from the names of the runs.
    """

    sources: Sequence[Source]
    compared: Sequence[Compared] = ()
    costs: Mapping[str, Cost] = field(default_factory=dict)
    measured: Mapping[str, Measured] = field(default_factory=dict)
    not_measured: Mapping[str, str] = field(default_factory=dict)
    software: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""

    @property
    def runs(self) -> list[Run]:
        """All trainings, including those of comparisons."""
        found: list[Run] = []
        for source in self.sources:
            found += source.runs if isinstance(source, Comparison) else []
            found += [source] if isinstance(source, Run) else []
        return found

    @property
    def evaluated(self) -> list[Evaluated]:
        return [source for source in self.sources if isinstance(source, Evaluated)]

    @property
    def comparisons(self) -> list[Comparison]:
        return [source for source in self.sources if isinstance(source, Comparison)]


def heading(words: str) -> Part:
    return {"kind": "heading", "text": words}


def paragraph(words: str, is_soft: bool = False) -> Part:
    return {"kind": "text", "text": words, "is_soft": is_soft}


def table_part(table: Table) -> Part:
    return {"kind": "table", "table": table}


def lines_part(kind: str, lines: Sequence[str]) -> list[Part]:
    return [{"kind": kind, "lines": lines}] if lines else []


def of_task(runs: Sequence[Run], task: str) -> list[Run]:
    return [run for run in runs if run.task == task]


def looks_of(runs: Sequence[Run]) -> dict[str, tuple[int, int]]:
    """Colour and dash of each run, by its name.

    Each model has a colour, and each of its runs a dash. If there is only one model, each run has a colour.
    """
    groups = grouped(runs)
    if len(groups) == 1:
        return {run.name: (at, at // len(COLOURS)) for at, run in enumerate(runs)}
    return {
        run.name: (colour, dash) for colour, members in enumerate(groups.values()) for dash, run in enumerate(members)
    }


def run_legend_item(run: Run, colour: int, dash: int) -> Mapping[str, Any]:
    model = "" if run.model in run.name else f", {run.model}"
    return legend_item(f"{run.name}{model}", COLOURS[colour % len(COLOURS)], dash)


def legend_item(name: str, colour: str, dash: int | None, is_strong: bool = False) -> Mapping[str, Any]:
    pattern: Any = None
    if dash is not None:
        drawn = DASHES[dash % len(DASHES)]
        pattern = "" if isinstance(drawn, str) else " ".join(str(2 * part) for part in drawn[1])
    return {"name": name, "colour": colour, "dash": pattern, "is_strong": is_strong}


def chart_part(title: str, alt: str, svg: str) -> Mapping[str, Any]:
    from markupsafe import Markup

    # safe to mark: the SVG is made only from numbers, see charts.py
    return {"title": title, "alt": alt, "svg": Markup(svg)}


def settings_table(caption: str, held: Mapping[str, Any]) -> Table:
    rows = [[text(name), text(shown(value))] for name, value in held.items()]
    return Table(caption, ["what", "value"], rows, kind="settings")


def shown(value: Any) -> str:
    words = "''" if value == "" else str(value)
    return words if len(words) <= 300 else words[:299] + "…"
