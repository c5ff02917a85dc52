"""The sections on what best.pt finds: figures by class, precision over recall, confusions, sample images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from yolov5_ema.reporting import pictures
from yolov5_ema.reporting.charts import COLOURS, Line, line_chart
from yolov5_ema.reporting.measuring import CONFIDENCE, Measured, Sample
from yolov5_ema.reporting.parts import (
    Material,
    Part,
    chart_part,
    heading,
    legend_item,
    lines_part,
    looks_of,
    paragraph,
    run_legend_item,
    table_part,
)
from yolov5_ema.reporting.runs import Run
from yolov5_ema.reporting.tables import Cell, Table, count, number, text
from yolov5_ema.texts import counted

MOST_PICTURES = 36
"""The most sample pictures in one page; each has at most `pictures.MOST_BYTES` bytes."""

_MOST_NAMED = 20
"""The most classes with their own line, row and column. With more classes, only the table by class is complete."""
_MOST_CONFUSIONS = 20
_WHOSE = {
    "6.0": "YOLOv5's val (v6.0 and v6.1)",
    "6.2": "YOLOv5's val (v6.2 and later)",
    "8.3": "ultralytics' val (up to 8.3)",
    "8.4": "ultralytics' val (8.4)",
}


def classes(material: Material) -> list[Part]:
    """Figures by class, and the reasons for what was not measured."""
    parts: list[Part] = []
    evaluated = [run for run in material.runs if run.name in material.measured]
    measured = {run.name: material.measured[run.name] for run in evaluated}
    if len(measured) == 1:
        run = evaluated[0]
        title = run.name if run.is_alone else f"{run.name}, best.pt"
        parts.append(table_part(_class_table(measured[run.name], title)))
    elif measured:
        file = "the model" if any(run.is_alone for run in evaluated) else "best.pt"
        parts.append(table_part(_class_tables(measured, file)))
    if measured:
        parts += _rules(list(measured.values()))
    if material.comparisons and measured:
        parts.append(paragraph("Of a comparison, the first seed of each model is evaluated here.", is_soft=True))
    classified = [run for run in material.runs if run.metrics]
    if classified:
        parts.append(table_part(_top1_table(classified)))
    missing = [f"{name}: not measured: {reason}" for name, reason in material.not_measured.items()]
    return parts + lines_part("notes", missing)


def _rules(measured: Sequence[Measured]) -> list[Part]:
    """The rules and the image size of the evaluations, and whether they were the same for all runs."""

    def kinds(name: str) -> list[str]:
        return sorted({str(found.settings.get(name)) for found in measured})

    words = (
        f"By the rules of {', '.join(map(_WHOSE.__getitem__, kinds('rules')))}, at {', '.join(kinds('imgsz'))} pixels: "
        "AP50 at IoU 0.5, AP the mean over IoU 0.50 to 0.95, P and R at the confidence of the best mean F1. A class "
        "without objects has no figures."
    )
    differing = [name for name in ("data", "split", "imgsz", "rules") if len(kinds(name)) > 1]
    warning = f"The evaluations of these runs differ ({', '.join(differing)}): their figures cannot be compared."
    return [paragraph(words, is_soft=True), *lines_part("warnings", [warning] if differing else [])]


def _class_table(found: Measured, title: str) -> Table:
    columns = ["class", "objects", "P", "R", "AP50", "AP"]
    rows = []
    for cls in found.names:
        figures = found.per_class.get(cls, {})
        rows.append(
            [
                text(cls),
                count(figures.get("labels", 0)),
                *(number(figures.get(key)) for key in columns[2:]),
            ]
        )
    caption = f"{title} on {found.split}: {counted(found.images, 'image')}, {counted(found.objects, 'object')}"
    return Table(caption, columns, rows, is_sortable=True)


def _class_tables(measured: Mapping[str, Measured], file: str) -> Table:
    names = list(dict.fromkeys(name for found in measured.values() for name in found.names))
    columns = ["class", "objects"]
    for run in measured:
        columns += [f"{run} AP50", f"{run} AP"]
    rows = []
    for name in names:
        labels = {m.per_class.get(name, {}).get("labels", 0) for m in measured.values()}
        # The number of labels is shown only if all runs have the same.
        row = [text(name), count(labels.pop() if len(labels) == 1 else None)]
        for found in measured.values():
            row += [number(found.per_class.get(name, {}).get(key)) for key in ("AP50", "AP")]
        rows.append(row)
    splits = ", ".join(sorted({found.split for found in measured.values()}))
    return Table(f"Average precision by class, {file} of each run on {splits}", columns, rows, is_sortable=True)


def _top1_table(runs: Sequence[Run]) -> Table:
    by_run = {run.name: {str(entry["name"]): entry for entry in run.metrics["classes"]} for run in runs}
    names = list(dict.fromkeys(name for entries in by_run.values() for name in entries))
    rows = []
    for name in names:
        images = next(entries[name]["images"] for entries in by_run.values() if name in entries)
        row = [text(name), count(images)]
        row += [number(entries.get(name, {}).get("top1")) for entries in by_run.values()]
        rows.append(row)
    titles = ["top-1"] if len(runs) == 1 else [f"{name} top-1" for name in by_run]
    return Table("Top-1 accuracy by class, best.pt", ["class", "images", *titles], rows, is_sortable=True)


# --- precision and recall -------------------------------------------------------------------


def pr_curves(material: Material) -> list[Part]:
    """Precision over recall at IoU 0.5, with one chart for each run."""
    if not material.measured:
        return []
    classes = list(dict.fromkeys(name for found in material.measured.values() for name in found.names))
    is_named = len(classes) <= _MOST_NAMED
    charts, means = [], []
    for at, (name, found) in enumerate(material.measured.items()):
        mean = _mean_curve(found)
        means.append((name, mean))
        lines = [
            Line(_recalls(curve), curve, classes.index(cls), classes.index(cls) // len(COLOURS))
            for cls, curve in found.curves.items()
            if is_named
        ]
        lines.append(Line(_recalls(mean), mean, is_strong=True))
        alt = f"Precision over recall of {name} at IoU 0.5; mAP50 {found.metrics['mAP50']:.4f}"
        charts.append(chart_part(name, alt, _pr_chart(lines, f"p{at}")))
    entries = [legend_item("mean of the classes", "currentColor", 0, is_strong=True)]
    if is_named:
        entries += [
            legend_item(name, COLOURS[at % len(COLOURS)], at // len(COLOURS)) for at, name in enumerate(classes)
        ]
    parts: list[Part] = [
        {"kind": "legend", "entries": entries},
        {"kind": "charts", "layout": "", "charts": charts},
    ]
    if len(means) > 1:
        looks = looks_of([run for run in material.runs if run.name in material.measured])
        runs = {run.name: run for run in material.runs}
        lines = [Line(_recalls(mean), mean, *looks[name]) for name, mean in means]
        overlaid = chart_part("Means of the classes", "Mean precision over recall of all runs", _pr_chart(lines, "pm"))
        parts += [
            heading("All runs"),
            {"kind": "legend", "entries": [run_legend_item(runs[name], *looks[name]) for name, _ in means]},
            {"kind": "charts", "layout": "", "charts": [overlaid]},
        ]
    return parts


def _pr_chart(lines: Sequence[Line], key: str) -> str:
    return line_chart(lines, key=key, x_label="recall", y_label="precision", unit_square=True)


def _mean_curve(found: Measured) -> list[float]:
    curves = list(found.curves.values())
    return [sum(values) / len(curves) for values in zip(*curves)]


def _recalls(curve: Sequence[float]) -> list[float]:
    return [at / (len(curve) - 1) for at in range(len(curve))]


def confusion(material: Material) -> list[Part]:
    """Which classes are confused with which."""
    tables = []
    parts: list[Part] = []
    for name, found in material.measured.items():
        tables.append(_confusions(name, [*found.names, "background"], found.confusion))
    if tables:
        words = (
            f"Detections with a confidence above {CONFIDENCE:g} that overlap an object with an IoU above 0.45. The "
            "column background counts objects that were not found, the row background counts detections without an "
            "object. The shade of a cell is its share of the row."
        )
        parts.append(paragraph(words, is_soft=True))
    for run in material.runs:
        if run.metrics:
            names = [str(entry["name"]) for entry in run.metrics["classes"]]
            tables.append(_confusions(run.name, names, run.metrics["confusion"]))
    return [{"kind": "tables", "layout": "matrices", "tables": tables}, *parts] if tables else []


def _confusions(name: str, names: Sequence[str], counts: Sequence[Sequence[int]]) -> Table:
    """The confusion matrix for few classes; for many, the pairs that are confused most often."""
    if len(names) <= _MOST_NAMED + 1:
        return _matrix(name, names, counts)
    size = range(len(names))
    pairs = [(counts[row][at], row, at) for row in size for at in size if row != at and counts[row][at]]
    rows = []
    for times, row, at in sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2]))[:_MOST_CONFUSIONS]:
        share = number(times / sum(counts[row]), "{:.3f}")
        rows.append([text(names[row]), text(names[at], "text"), count(times), share])
    caption = f"{name}: the {counted(len(rows), 'most frequent confusion')} of {counted(len(names), 'class')}"
    return Table(caption, ["true class", "predicted class", "times", "share of the class"], rows, is_sortable=True)


def _matrix(name: str, names: Sequence[str], counts: Sequence[Sequence[int]]) -> Table:
    rows = []
    for own, row in zip(names, counts):
        total = sum(row)
        cells = [Cell(f"{count:,}", float(count), "shaded", count / total if total else 0.0) for count in row]
        rows.append([text(own), *cells])
    return Table(f"{name}: true class (rows) and predicted class (columns)", ["", *names], rows, kind="confusion")


# --- sample detections ----------------------------------------------------------------------


def samples(material: Material) -> list[Part]:
    """Sample images with their true boxes and their detections."""
    runs = {run.name: run for run in material.runs}
    shown: list[Mapping[str, str]] = []
    classes: list[str] = []
    images = list(dict.fromkeys(sample.image for m in material.measured.values() for sample in m.samples))
    most = max(MOST_PICTURES // max(len(material.measured), 1), 1)
    for image in images[:most]:
        for name, found in material.measured.items():
            for sample in found.samples:
                if sample.image == image and len(shown) < MOST_PICTURES:
                    shown.append(_sample_picture(sample, runs[name].name, len(material.measured) > 1))
                    classes = classes or list(found.names)
    if not shown:
        return []
    swatches = [legend_item(name, pictures.colour_of(at), None) for at, name in enumerate(classes[: len(COLOURS)])]
    note = (
        "Images evenly spaced through the split, among those with objects; they were not selected by hand. White "
        f"dashes: true boxes. Colours: detections with a confidence of {CONFIDENCE:g} or more."
    )
    return [
        paragraph(note, is_soft=True),
        {"kind": "legend", "entries": swatches},
        {
            "kind": "pictures",
            "layout": "samples",
            "pictures": [picture for picture in shown if picture["uri"]],
        },
        *lines_part("notes", [picture["caption"] for picture in shown if not picture["uri"]]),
    ]


def _sample_picture(sample: Sample, run: str, is_named: bool) -> Mapping[str, str]:
    file = Path(sample.image).name
    words = f"{file}: {counted(sample.objects, 'object')}, {counted(sample.detections, 'detection')}"
    words += f" by {run}" if is_named else ""
    if not sample.picture:
        return {"uri": "", "alt": "", "caption": f"{file} could not be read."}
    return {"uri": pictures.uri_of(sample.picture), "alt": f"{words}, drawn as boxes", "caption": words}
