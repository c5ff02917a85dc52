"""The sections on the model (rows and cost) and its training (curves over the epochs)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from yolov5_ema.reporting.charts import Line, line_chart
from yolov5_ema.reporting.comparing import grouped
from yolov5_ema.reporting.cost import Cost
from yolov5_ema.reporting.measuring import identity_of
from yolov5_ema.reporting.parts import (
    TASKS,
    Material,
    Part,
    chart_part,
    heading,
    looks_of,
    of_task,
    paragraph,
    run_legend_item,
    table_part,
)
from yolov5_ema.reporting.runs import CLASSIFY, DETECT, Run
from yolov5_ema.reporting.tables import NOTHING, Cell, Table, count, number, printed, text

_MOST_EPOCHS, _MOST_ROWS = 200, 600
"""The most rows in a table of epochs, and in all such tables together. With more, evenly spaced rows are shown."""
_PLOTTED = {
    DETECT: (
        ("mAP50", "mAP50-95", "precision", "recall"),
        (
            *("train box loss", "train objectness loss", "train class loss"),
            *("val box loss", "val objectness loss", "val class loss"),
        ),
    ),
    CLASSIFY: (("top-1", "top-5", "train loss", "val loss"),),
}
"""Figures over the epochs: first those that should rise, then the losses."""


def model_and_cost(material: Material) -> list[Part]:
    """Rows, parameters and GFLOPs of each model."""
    if not material.runs:
        return []
    rows, parts = [], []
    for model, members in _models(material).items():
        cost = material.costs.get(members[0].name, Cost())
        size = f"{cost.imgsz} x {cost.imgsz}" if cost.imgsz else NOTHING
        if members[0].task == CLASSIFY and not cost.rows:
            block = members[0].metrics.get("block", members[0].options.get("block"))
            blocks = str(block) if block else "none"
        else:
            blocks = ", ".join(cost.blocks) or ("none" if cost.rows else NOTHING)
        rows.append(
            [
                text(model),
                text(blocks, "text"),
                count(cost.parameters),
                number(cost.gflops, "{:.2f}"),
                text(size),
                number(_megabytes(members[0]), "{:.1f}"),
            ]
        )
        if cost.reason:
            parts.append(paragraph(f"{model}: not everything was counted: {cost.reason}.", is_soft=True))
        if cost.rows:
            words = f"{model}: the {len(cost.rows)} rows of its YAML" + (", blocks marked" if cost.blocks else "")
            parts.append({"kind": "details", "summary": words, "table": _row_table(model, cost)})
    columns = ["model", "attention blocks", "parameters", "GFLOPs", "at pixels", "file in MB"]
    note = "GFLOPs count convolutions and matrix products for one image, blocks included; a multiply-add counts as two."
    return [table_part(Table("What each model costs", columns, rows, True)), paragraph(note, True), *parts]


def _megabytes(run: Run) -> float | None:
    return identity_of(run.weights)[0] / 1e6 if run.weights is not None else None


def _models(material: Material) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {}
    for task in (DETECT, CLASSIFY):
        found.update(grouped(of_task(material.runs, task)))
    return found


def _row_table(model: str, cost: Cost) -> Table:
    columns = ["row", "module", "arguments", "from", "repeats", "channels", "stride", "parameters", "GFLOPs"]
    rows = []
    for row in cost.rows:
        flops = None if row.flops is None else row.flops / 1e9
        rows.append(
            [
                Cell(str(row.index), float(row.index), "marked" if row.is_block else ""),
                text(f"{row.module} (block)" if row.is_block else row.module, "text"),
                text(row.args, "text"),
                text(row.source),
                count(row.repeats),
                count(row.channels),
                count(row.stride),
                count(row.parameters),
                number(flops, "{:.3f}"),
            ]
        )
    return Table(f"Rows of {model}", columns, rows, is_sortable=True)


# --- training -------------------------------------------------------------------------------


def curves(material: Material) -> list[Part]:
    """Figures over the epochs, with one chart for each figure and all runs in it."""
    parts: list[Part] = []
    runs = [run for run in material.runs if run.epochs is not None and run.epochs.rows]
    for task in (DETECT, CLASSIFY):
        chosen = of_task(runs, task)
        if not chosen:
            continue
        looks = looks_of(chosen)
        if len({run.task for run in runs}) > 1:
            parts.append(heading(TASKS[task].capitalize()))
        if len(chosen) > 1:
            parts.append({"kind": "legend", "entries": [run_legend_item(run, *looks[run.name]) for run in chosen]})
        others = list(dict.fromkeys(name for run in chosen if run.epochs for name in run.epochs.other_losses))
        for at, known in enumerate(_PLOTTED[task]):
            names = [*known, *others] if at else known
            charts = [
                _curve_chart(name, chosen, looks, f"e{task[0]}{at}{n}", is_small=at == 0)
                for n, name in enumerate(names)
            ]
            shown = [chart for chart in charts if chart]
            parts.append({"kind": "charts", "layout": "" if at else "four", "charts": shown})
        parts += [
            {
                "kind": "details",
                "summary": f"{run.name}: results.csv, epoch by epoch",
                "table": _epoch_table(run, most=min(_MOST_EPOCHS, max(_MOST_ROWS // len(chosen), 20))),
            }
            for run in chosen
        ]
    without = [run.name for run in material.runs if run not in runs and not run.is_alone]
    if without:
        parts.append(paragraph(f"No epoch was finished: {', '.join(without)}.", is_soft=True))
    return parts


def _curve_chart(
    name: str, runs: Sequence[Run], looks: Mapping[str, tuple[int, int]], key: str, is_small: bool
) -> Mapping[str, Any] | None:
    lines, told = [], []
    for run in runs:
        epochs = run.epochs
        values = epochs.values(name) if epochs is not None else None
        if epochs is None or values is None:
            continue
        lines.append(Line(epochs.numbers, values, *looks[run.name]))
        last = epochs.texts(name)
        told.append(f"{run.name} ends at {last[-1] if last else NOTHING}")
    if not lines:
        return None
    svg = line_chart(lines, key=key, x_label="epoch", whole_x=True, is_small=is_small)
    return chart_part(name, f"{name} over the epochs: {'; '.join(told)}", svg)


def _epoch_table(run: Run, most: int) -> Table:
    epochs = run.epochs
    assert epochs is not None
    step = math.ceil(len(epochs.rows) / most)
    shown = [at for at in range(len(epochs.rows)) if at % step == 0 or at == epochs.best]
    caption = f"{run.name}: results.csv" + (f", one epoch in {step}" if step > 1 else "")
    if epochs.best is not None:
        caption += f"; epoch {epochs.numbers[epochs.best]}, marked, was the best"
    rows = []
    for at in shown:
        first, *rest = epochs.rows[at]
        rows.append([printed(first, "marked" if at == epochs.best else ""), *map(printed, rest)])
    return Table(caption, epochs.columns, rows, is_sortable=True)
