"""The sections on the results: a summary, and the comparison of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from yolov5_ema.comparing.intervals import BETTER, WORSE, Summary
from yolov5_ema.comparing.report import percent
from yolov5_ema.reporting.comparing import CONFIDENCE as CONFIDENCE_OF_MEANS
from yolov5_ema.reporting.comparing import METRICS, Compared, Row, recipe_differences
from yolov5_ema.reporting.cost import Cost
from yolov5_ema.reporting.parts import (
    TASKS,
    Material,
    Part,
    heading,
    lines_part,
    of_task,
    table_part,
)
from yolov5_ema.reporting.runs import CLASSIFY, DETECT, Evaluated, Run
from yolov5_ema.reporting.tables import NOTHING, Cell, Table, count, number, printed, text
from yolov5_ema.texts import counted

# --- in short -------------------------------------------------------------------------------


def verdict(material: Material) -> list[Part]:
    """The main figures and the warnings."""
    parts: list[Part] = []
    for compared in material.compared:
        parts += lines_part("verdicts", compared.verdicts)
    runs = material.runs
    if len(runs) == 1:
        parts.append({"kind": "cards", "cards": _cards(runs[0], material)})
    for task in (DETECT, CLASSIFY):
        several = of_task(runs, task)
        if len(runs) > 1 and several:
            parts.append(table_part(_headlines(several, material)))
    if len(runs) == 0:
        parts += [table_part(protocol_table(found)) for found in material.evaluated if found.protocols]
    warnings = [f"{run.name}: {note}" if len(runs) > 1 else note for run in runs for note in run.notes]
    return parts + lines_part("warnings", warnings)


def _cards(run: Run, material: Material) -> list[Mapping[str, str]]:
    epochs, cost, measured = run.epochs, material.costs.get(run.name, Cost()), material.measured.get(run.name)
    cards: list[Mapping[str, str]] = []

    def card(name: str, value: str, more: str = "") -> None:
        cards.append({"name": name, "value": value, "more": more})

    if run.metrics:
        images = run.metrics["images"]
        for name, key in (("top-1", "top1"), ("top-5", "top5")):
            card(name, f"{run.metrics[key]:.4f}", f"best.pt, {counted(images, 'image')}")
    elif measured is not None:
        for name in ("mAP50", "mAP50-95", "P", "R"):
            label = {"P": "precision", "R": "recall"}.get(name, name)
            images = counted(measured.images, "image")
            card(label, f"{measured.metrics[name]:.4f}", f"{run.model_file}, {measured.split}, {images}")
    elif epochs is not None and epochs.best is not None:
        for name in ("mAP50", "mAP50-95", "precision", "recall", "top-1", "top-5"):
            texts = epochs.texts(name)
            if texts is not None:
                card(name, texts[epochs.best], f"epoch {epochs.numbers[epochs.best]} in results.csv")
    if epochs is not None and epochs.rows:
        planned = run.options.get("epochs")
        of = f"of {planned}" if type(planned) is int else ""
        best = "no best epoch" if epochs.best is None else f"the best: epoch {epochs.numbers[epochs.best]}"
        card("epochs", f"{len(epochs.rows)} {of}".strip(), best)
    if cost.parameters is not None:
        card("parameters", f"{cost.parameters:,}", ", ".join(cost.blocks) or run.model)
    if cost.gflops is not None:
        card("GFLOPs", f"{cost.gflops:.2f}", f"at {cost.imgsz} x {cost.imgsz} pixels")
    return cards


def _headlines(runs: Sequence[Run], material: Material) -> Table:
    """One row for each run, with the figures of its best epoch as printed in ``results.csv``."""
    task = runs[0].task
    names = METRICS[task]
    measured = {run.name: material.measured[run.name] for run in runs if run.name in material.measured}
    columns = ["run", "model", "seed", "epochs", "best epoch", *names]
    on = ", ".join(dict.fromkeys(f"on {found.split}" for found in measured.values()))
    file = "evaluated" if any(run.is_alone for run in runs) else "best.pt"
    columns += [f"{name}, {file} {on}".strip() for name in names] if measured or task == CLASSIFY else []
    rows = []
    for run in runs:
        best = run.epochs.best if run.epochs is not None else None
        row = [text(run.name), text(run.model, "text"), count(run.seed)]
        row += [count(len(run.epochs.rows) if run.epochs else 0)]
        row += [count(None if best is None or run.epochs is None else run.epochs.numbers[best])]
        for name in names:
            texts = run.epochs.texts(name) if run.epochs is not None else None
            row.append(printed(texts[best]) if texts and best is not None else text(NOTHING))
        if task == CLASSIFY:
            row += [number(run.metrics.get(key)) for key in ("top1", "top5")]
        elif measured:
            found = measured[run.name].metrics if run.name in measured else {}
            row += [number(found.get(name)) for name in names]
        rows.append(row)
    return Table(
        f"The trainings ({TASKS[task]}); epochs are counted as in results.csv",
        columns,
        rows,
        is_sortable=True,
    )


def protocol_table(found: Evaluated) -> Table:
    """One row for each figure and one column for each protocol, in the units of ``evaluation.json``."""
    metrics = {
        name: {key: value for key, value in content.items() if isinstance(value, (int, float)) or value is None}
        for name, content in found.protocols.items()
    }
    rows = []
    for key in dict.fromkeys(key for figures in metrics.values() for key in figures):
        rows.append([text(key), *(number(figures.get(key)) for figures in metrics.values())])
    units = [f"{name} ({content['unit']})" for name, content in found.protocols.items()]
    return Table(f"{found.name}: figures over all classes", ["figure", *units], rows, is_sortable=True)


# --- comparison -----------------------------------------------------------------------------


def comparison(material: Material) -> list[Part]:
    """Models side by side, with intervals if there are several seeds."""
    parts: list[Part] = []
    for compared in material.compared:
        parts += [heading(compared.title)] if len(material.compared) > 1 else []
        parts.append(table_part(_summary_table(compared)))
        if len(compared.rows) > 1 and compared.has_pairs:
            parts.append(_intervals(compared))
        parts += lines_part("notes", compared.notes)
        differing = recipe_differences(compared.runs)
        if differing:
            sentence = (
                f"These trainings differ in more than model and seed: {', '.join(differing)} (see Configuration). The "
                "cause of a difference cannot be known."
            )
            parts += lines_part("warnings", [sentence])
    return parts


def _summary_table(compared: Compared) -> Table:
    has_latency = any(row.latency for row in compared.rows)
    has_differences = any(found for row in compared.rows for found in row.differences.values())
    range_of_what = "min to max" if has_differences else f"{percent(CONFIDENCE_OF_MEANS)} interval of the mean"
    columns = ["model", "seeds"]
    for metric in compared.metrics:
        columns += [f"{metric} ± sd", range_of_what]
    columns += ["parameters", "GFLOPs"] if any(row.parameters for row in compared.rows) else []
    columns += ["latency ms (quartiles)", "ratio"] if has_latency else []
    rows = []
    for row in compared.rows:
        name = f"{row.model} (baseline)" if row.is_baseline and len(compared.rows) > 1 else row.model
        cells = [text(name), _seeds(row)]
        for metric in compared.metrics:
            cells += _summary_cells(row.summaries.get(metric), has_differences)
        if "GFLOPs" in columns:
            cells += [count(row.parameters), number(row.gflops, "{:.2f}")]
        if has_latency:
            cells += _latency_cells(row)
        rows.append(cells)
    return Table("Figures of each model over its seeds", columns, rows, is_sortable=True)


def _seeds(row: Row) -> Cell:
    known = [str(seed) for seed in row.seeds if seed is not None]
    words = ", ".join(known) if len(known) == len(row.seeds) else counted(len(row.seeds), "run")
    return Cell(words or NOTHING, float(len(row.seeds)))


def _summary_cells(summary: Summary | None, has_differences: bool) -> list[Cell]:
    """The mean with its standard deviation, and the range; without differences, the interval of the mean instead."""
    if summary is None:
        return [text(NOTHING)] * 2
    spread = "" if summary.sd is None else f" ± {summary.sd:.4f}"
    ends = (summary.smallest, summary.largest) if has_differences else (summary.low, summary.high)
    words = NOTHING if None in ends else f"{ends[0]:.4f} to {ends[1]:.4f}"
    return [Cell(f"{summary.mean:.4f}{spread}", summary.mean), text(words)]


def _latency_cells(row: Row) -> list[Cell]:
    if not row.latency:
        return [text("not measured"), text(NOTHING)]
    found = row.latency
    words = f"{found['median']:.2f} ({found['quartile1']:.2f} to {found['quartile3']:.2f})"
    return [Cell(words, found["median"]), number(found["ratio"], "{:.2f}")]


def _intervals(compared: Compared) -> Part:
    """The differences to the baseline with their intervals, all drawn on the same scale."""
    listed = [(row, metric, row.differences.get(metric)) for row in compared.rows[1:] for metric in compared.metrics]
    ends = [
        value
        for _, _, found in listed
        if found is not None
        for value in (found.mean, found.low, found.high)
        if value is not None
    ]
    reach = max((abs(value) for value in ends), default=0) * 1.05 or 1.0

    def place(value: float) -> float:
        return round(50 + 50 * value / reach, 3)

    rows = []
    for row, metric, found in listed:
        entry: dict[str, Any] = {
            "model": row.model,
            "metric": metric,
            "difference": NOTHING,
            "interval": NOTHING,
        }
        entry.update(pairs=0, verdict="no pair of figures", verdict_kind="", mean=None)
        if found is not None:
            low, high = (found.mean if end is None else end for end in (found.low, found.high))
            entry.update(
                difference=f"{found.mean:+.4f}",
                pairs=found.n,
                verdict=found.verdict,
                verdict_kind=found.verdict if found.verdict in (BETTER, WORSE) else "",
                zero=place(0),
                mean=place(found.mean),
                low=place(low),
                wide=round(place(high) - place(low), 3),
            )
            if found.low is not None and found.high is not None:
                entry["interval"] = f"{found.low:+.4f} to {found.high:+.4f}"
        rows.append(entry)
    return {
        "kind": "intervals",
        "caption": f"Difference to {compared.rows[0].model}, with its {percent(compared.level)} interval",
        "scale": (f"{-reach:+.3f}", f"{reach:+.3f}"),
        "rows": rows,
    }
