"""The sections on where results come from: earlier evaluations, configuration, software and machine."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

from yolov5_ema.reporting import pictures
from yolov5_ema.reporting.comparing import recipe_differences
from yolov5_ema.reporting.outcome import protocol_table
from yolov5_ema.reporting.parts import (
    TASKS,
    Material,
    Part,
    heading,
    of_task,
    paragraph,
    settings_table,
    shown,
    table_part,
)
from yolov5_ema.reporting.reading import without_secrets
from yolov5_ema.reporting.runs import CLASSIFY, DETECT, Evaluated, Run
from yolov5_ema.reporting.tables import NOTHING, Table, number, text


def evaluations(material: Material) -> list[Part]:
    """The results of ``evaluate`` and ``val``, and the plots of trainings that could not be evaluated."""
    parts: list[Part] = []
    for found in material.evaluated:
        parts.append(heading(found.name))
        if found.protocols:
            parts += [table_part(protocol_table(found))] if material.runs else []
            parts.append(table_part(_protocol_classes(found)))
        else:
            words = "A folder of val, which saves pictures but no figures; 'yolov5-ema evaluate' saves both."
            parts.append(paragraph(words))
        parts += _drawn(found.pictures, found.name)
    for run in material.runs:
        if run.name in material.not_measured and run.pictures:
            parts.append(heading(f"{run.name}: drawn at the end of its training"))
            parts += _drawn(run.pictures, run.name)
    return parts


def _drawn(files: Sequence[Path], name: str) -> list[Part]:
    shown = []
    for file in files:
        picture = pictures.embedded_picture(file)
        if picture is not None:
            shown.append({"uri": pictures.uri_of(picture), "alt": f"{file.name} of {name}", "caption": file.name})
    return [{"kind": "pictures", "layout": "pictures", "pictures": shown}] if shown else []


def _protocol_classes(found: Evaluated) -> Table:
    names = list(dict.fromkeys(name for content in found.protocols.values() for name in content["per_class"]))
    columns = ["class"]
    for protocol in found.protocols:
        columns += [f"{protocol} AP", f"{protocol} AP50"]
    rows = []
    for name in names:
        row = [text(name)]
        for content in found.protocols.values():
            figures = content["per_class"].get(name, {})
            row += [number(figures.get(key)) for key in ("AP", "AP50")]
        rows.append(row)
    return Table(f"{found.name}: average precision by class", columns, rows, is_sortable=True)


# --- configuration --------------------------------------------------------------------------


def configuration(material: Material) -> list[Part]:
    """Options and hyperparameters; those that differ come first."""
    parts: list[Part] = []
    for task in (DETECT, CLASSIFY):
        runs = of_task(material.runs, task)
        if not runs:
            continue
        of = f", {TASKS[task]}" if len({run.task for run in material.runs}) > 1 else ""
        differing = recipe_differences(runs, shown, everything=True)
        if differing:
            columns = ["setting", *(run.name for run in runs)]
            rows = [[text(name), *map(text, values)] for name, values in differing.items()]
            parts.append(table_part(Table(f"What differs between the runs{of}", columns, rows, kind="settings")))
        shared = " that all runs share" if len(runs) > 1 else ""
        tables = [
            settings_table(
                f"{title}{shared}{of}",
                {name: value for name, value in getattr(runs[0], kind).items() if name not in differing},
            )
            for kind, title in (("options", "Options"), ("hyp", "Hyperparameters"))
        ]
        parts.append({"kind": "tables", "layout": "beside", "tables": [table for table in tables if table.rows]})
    return parts


# --- software and machine -------------------------------------------------------------------


def origin(material: Material) -> list[Part]:
    """The software and machines that made the page and its results, and the times of the runs."""
    tables = [settings_table("What made this page", {**material.software, **material.machine})]
    for comparison in material.comparisons:
        content = comparison.content
        held = {
            **content.get("software", {}),
            **content.get("machine", {}),
            "created": content.get("created", NOTHING),
        }
        tables.append(settings_table(f"What trained and measured {comparison.name}", without_secrets(held)))
    parts: list[Part] = [{"kind": "tables", "layout": "beside", "tables": tables}]
    rows = [[text(run.name), text(_when(run), "text"), text(run.place.resolve(), "text")] for run in material.runs]
    if rows:
        parts.append(table_part(Table("The runs", ["run", "results.csv last written", "place"], rows)))
    return parts


def _when(run: Run) -> str:
    file = run.folder / "results.csv"
    if run.epochs is None:
        return NOTHING
    try:
        written = datetime.datetime.fromtimestamp(file.stat().st_mtime, datetime.timezone.utc)
    # the file has been deleted, or its time is outside the calendar
    except (OSError, OverflowError, ValueError):
        return NOTHING
    return written.strftime("%Y-%m-%d %H:%M UTC")
