"""Tables, JSON and CSV of evaluation results."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence

from yolov5_ema.evaluation.results import Result
from yolov5_ema.texts import aligned

_NOTHING = "-"
_SIDE_BY_SIDE = {
    "AP50:95": {"yolov5": "mAP50-95", "ultralytics": "mAP50-95", "coco": "AP", "visdrone": "AP"},
    "AP50": {"yolov5": "mAP50", "ultralytics": "mAP50", "coco": "AP50", "visdrone": "AP50"},
    "AP75": {"coco": "AP75", "visdrone": "AP75"},
    "precision": {"yolov5": "P", "ultralytics": "P"},
    "recall": {"yolov5": "R", "ultralytics": "R"},
}
"""Rows of the table: each protocol's name for the same figure; its other figures follow under their own names."""


def side_by_side(results: Sequence[Result], mean_over_classes: bool = False) -> str:
    """A table of the figures over all classes, in percent: a row for each figure, a column for each protocol.

    Args:
        results: the results of the protocols.
        mean_over_classes: also show the plain mean over classes of protocols that weight them.
    """
    columns: list[tuple[str, Mapping[str, float], Result]] = []
    for result in results:
        columns.append((result.protocol, result.metrics, result))
        if mean_over_classes and result.mean_over_classes:
            columns.append((f"{result.protocol}, mean of classes", result.mean_over_classes, result))
    rows = [["%", *(title for title, _, _ in columns)]]
    shared = {name for names in _SIDE_BY_SIDE.values() for name in names.values()}
    own = dict.fromkeys(name for _, metrics, _ in columns for name in metrics if name not in shared)
    for label, names in [*_SIDE_BY_SIDE.items(), *((name, {}) for name in own)]:
        cells = [
            _percent(metrics.get(names.get(result.protocol, label), math.nan), result) for _, metrics, result in columns
        ]
        if set(cells) != {_NOTHING}:
            rows.append([label, *cells])
    return aligned(rows)


def difference_table(results: Sequence[Result], exact: Sequence[Result]) -> str:
    """How the AP of each protocol differs from that in float32, in percentage points."""
    rows = [["minus float32", *(result.protocol for result in results)]]
    for label in ("AP50:95", "AP50"):
        cells = []
        for result, reference in zip(results, exact):
            name = _SIDE_BY_SIDE[label][result.protocol]
            unit = 100 if result.unit == "fraction" else 1
            cells.append(f"{unit * (result.metrics[name] - reference.metrics[name]):+.2f}")
        rows.append([label, *cells])
    return aligned(rows) + "\n"


def class_table(results: Sequence[Result]) -> str:
    """AP over IoU 0.50 to 0.95 and AP50 of each class under each protocol, in percent."""
    names = list(dict.fromkeys(name for result in results for name in result.per_class))
    rows = [["class", *(f"{result.protocol} {metric}" for result in results for metric in ("AP", "AP50"))]]
    for name in names:
        cells = []
        for result in results:
            figures = result.per_class.get(name, {})
            held = figures.get("in_mean", True)
            cells += [_percent(figures.get(m, math.nan) if held else math.nan, result) for m in ("AP", "AP50")]
        rows.append([name, *cells])
    return aligned(rows)


def size_table(result: Result) -> str:
    """Figures by the size of objects, in percent."""
    metrics = list(dict.fromkeys(name for figures in result.by_size.values() for name in figures))
    rows = [["size", *(f"{result.protocol} {name}" for name in metrics)]]
    bounds = {"tiny": "below 16 px", "small": "16 to 32", "medium": "32 to 96", "large": "96 and more"}
    for size, figures in result.by_size.items():
        rows.append([f"{size} ({bounds[size]})", *(_percent(figures[name], result) for name in metrics)])
    return aligned(rows)


def as_json(results: Sequence[Result]) -> str:
    """``{protocol: Result.as_dict()}``, each in its protocol's own unit."""
    return json.dumps({result.protocol: result.as_dict() for result in results}, indent=2, allow_nan=False) + "\n"


def as_csv(results: Sequence[Result]) -> str:
    """Rows of protocol, class (``all`` for all classes), metric, value, unit; missing values have no row."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["protocol", "class", "metric", "value", "unit"])
    for result in results:
        content = result.as_dict()
        groups = {"all": content, "all, mean of classes": content.get("mean_over_classes", {})}
        groups.update({f"all, {size}": figures for size, figures in content.get("by_size", {}).items()})
        groups.update(content["per_class"])
        for name, figures in groups.items():
            for metric, value in figures.items():
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    unit = result.unit if isinstance(value, float) else "count"
                    writer.writerow([result.protocol, name, metric, repr(value), unit])
    return out.getvalue()


def _percent(value: float, result: Result) -> str:
    if math.isnan(value):
        return _NOTHING
    return f"{value * (1 if result.unit == 'percent' else 100):.2f}"
