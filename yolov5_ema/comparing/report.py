"""The results of a comparison as numbers, tables and files."""

from __future__ import annotations

import csv
import io
import statistics as plain_statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from yolov5_ema.comparing.design import Design
from yolov5_ema.comparing.intervals import (
    Difference,
    Summary,
    bonferroni_confidence,
    paired_difference,
    summarize,
)
from yolov5_ema.texts import aligned

METRICS = {"map50": "mAP50", "map50_95": "mAP50-95"}
LEARNED_MAP50 = 0.05
"""A model with a lower mAP50 has hardly learned anything yet."""


@dataclass(frozen=True)
class Model:
    """The results of one model.

    Attributes:
        name: its name in tables.
        parameters: number of parameters of the model as it is trained.
        gflops: GFLOPs for one image at the comparison's size.
        latency_ms: milliseconds, one value for each round; empty if latency was not measured.
        figures: results from 0 to 1, by metric (see `METRICS`) and seed.
        engine: the engine that trained it, if models of both are compared.
    """

    name: str
    parameters: int
    gflops: float
    latency_ms: Sequence[float]
    figures: Mapping[str, Mapping[int, float]]
    engine: str = ""


@dataclass(frozen=True)
class Latency:
    """Milliseconds for one image; ``ratio`` is the median over rounds of the model's time over the baseline's."""

    median: float
    quartile1: float
    quartile3: float
    ratio: float


@dataclass(frozen=True)
class Row:
    """A model's row: for each metric its summary and its difference to the baseline, None if results are missing."""

    model: Model
    is_baseline: bool
    latency: Latency | None
    summaries: Mapping[str, Summary | None]
    differences: Mapping[str, Difference | None]


@dataclass(frozen=True)
class Report:
    """The computed comparison.

    Attributes:
        rows: one for each model, the baseline first.
        seeds: number of seeds that were asked for.
        confidence: confidence that all intervals of a metric hold together.
        comparisons: number of models that are compared with the baseline.
        level: confidence of the interval of each difference, Bonferroni-corrected.
        design: how the number of seeds was chosen, if it was not in advance.
        scored: what the figures of a run are from.
    """

    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    confidence: float
    comparisons: int
    level: float
    design: Design | None = None
    scored: str = "best.pt"

    @property
    def baseline(self) -> Row:
        return self.rows[0]

    @property
    def candidates(self) -> tuple[Row, ...]:
        return self.rows[1:]


def build_report(
    models: Sequence[Model],
    baseline: str,
    seeds: Sequence[int],
    confidence: float = 0.95,
    design: Design | None = None,
    scored: str = "best.pt",
) -> Report:
    """Compute the summaries, and the paired differences to the baseline.

    With several candidates, each interval is widened so that all intervals of one metric hold together with
    ``confidence`` (Bonferroni). There is no correction for having two metrics.
    """
    reference = next(model for model in models if model.name == baseline)
    others = [model for model in models if model is not reference]
    level = bonferroni_confidence(confidence, max(len(others), 1))
    pilot = design.pilot if design else None
    rows = [_row(model, reference, confidence, level, pilot) for model in (reference, *others)]
    return Report(tuple(rows), tuple(seeds), confidence, len(others), level, design, scored)


def _row(model: Model, reference: Model, confidence: float, level: float, pilot: int | None) -> Row:
    is_baseline = model is reference
    summaries: dict[str, Summary | None] = {}
    differences: dict[str, Difference | None] = {}
    for metric in METRICS:
        figures = model.figures.get(metric, {})
        summaries[metric] = summarize(figures.values(), confidence) if figures else None
        if not is_baseline:
            differences[metric] = paired_difference(figures, reference.figures.get(metric, {}), level, pilot)
    return Row(model, is_baseline, _latency(model, reference), summaries, differences)


def _latency(model: Model, reference: Model) -> Latency | None:
    if len(model.latency_ms) < 2:
        return None
    low, median, high = plain_statistics.quantiles(model.latency_ms, n=4, method="inclusive")
    ratios = [mine / theirs for mine, theirs in zip(model.latency_ms, reference.latency_ms)]
    return Latency(median, low, high, plain_statistics.median(ratios))


# --- tables ---------------------------------------------------------------------------------


def model_table(report: Report) -> list[list[str]]:
    """A header, and a row for each model."""
    lines = [["model", "seeds"]]
    for label in METRICS.values():
        lines[0] += [f"{label} ± sd", "min to max"]
    lines[0] += ["parameters", "GFLOPs", "latency ms (quartiles)", "ratio"]
    for row in report.rows:
        line = [_name(row), f"{_complete(row)} of {len(report.seeds)}"]
        for metric in METRICS:
            line += _summary_cells(row.summaries[metric])
        line += [f"{row.model.parameters:,}", f"{row.model.gflops:.2f}", *_latency_cells(row.latency)]
        lines.append(line)
    return lines


def difference_table(report: Report) -> list[list[str]]:
    """A header, and a row for each candidate and metric."""
    lines = [["model", "metric", "difference", f"{percent(report.level)} interval", "pairs", "verdict"]]
    for row in report.candidates:
        for metric, label in METRICS.items():
            lines.append([row.model.name, label, *_difference_cells(row.differences[metric])])
    return lines


def _name(row: Row) -> str:
    remarks = [*filter(None, [row.model.engine]), *(["baseline"] if row.is_baseline else [])]
    return f"{row.model.name} ({', '.join(remarks)})" if remarks else row.model.name


def _complete(row: Row) -> int:
    return max((summary.n for summary in row.summaries.values() if summary), default=0)


def _summary_cells(summary: Summary | None) -> list[str]:
    if summary is None:
        return ["missing", "-"]
    spread = "" if summary.sd is None else f" ± {summary.sd:.4f}"
    return [f"{summary.mean:.4f}{spread}", f"{summary.smallest:.4f} to {summary.largest:.4f}"]


def _latency_cells(latency: Latency | None) -> list[str]:
    if latency is None:
        return ["not measured", "-"]
    quartiles = f"{latency.quartile1:.2f} to {latency.quartile3:.2f}"
    return [f"{latency.median:.2f} ({quartiles})", f"{latency.ratio:.2f}"]


def _difference_cells(difference: Difference | None) -> list[str]:
    if difference is None:
        return ["missing", "-", "0", "no pair of figures"]
    interval = "none"
    if difference.low is not None and difference.high is not None:
        interval = f"{difference.low:+.4f} to {difference.high:+.4f}"
    return [f"{difference.mean:+.4f}", interval, str(difference.n), difference.verdict]


def percent(level: float) -> str:
    """Format a confidence for tables.

    Example:
        >>> percent(0.95), percent(1 - 0.05 / 3)
        ('95 %', '98.3 %')
    """
    return f"{100 * level:.1f}".removesuffix(".0") + " %"


def markdown(table: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    head, *body = (f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |" for cells in table)
    return "\n".join([head, "| --- " * len(table[0]) + "|", *body])


def method_notes(report: Report) -> list[str]:
    """Notes on how the intervals were computed and what they say."""
    notes = []
    if len(report.seeds) < 2:
        notes.append("One seed: a difference cannot be judged without a spread, so there is no verdict.")
    else:
        correction = ""
        if report.comparisons > 1:
            correction = (
                f", Bonferroni-corrected for {report.comparisons} models against one baseline "
                f"({percent(report.confidence)} together, {percent(report.level)} each)"
            )
        notes.append(
            f"Differences are paired by seed; intervals are t intervals over seeds{correction}. The verdict is "
            "'better' or 'worse' if the interval excludes 0."
        )
        if report.design:
            notes.append(
                f"The number of seeds was chosen after the first {report.design.pilot}, for intervals of mAP50-95 that "
                f"are at most {report.design.width:g} wide. Only the spread of those seeds decided it, and it alone "
                "sets the width of all intervals (two stages, Stein 1945), so they hold as if it had been chosen in "
                "advance."
            )
        notes.append(
            "They say what other seeds would give with this data and recipe, not what other images would; "
            "mAP50 and mAP50-95 are judged separately."
        )
    notes += [
        f"{row.model.name}, {METRICS[metric]}: every seed gave the same figure; the spread means nothing."
        for row in report.rows
        for metric, summary in row.summaries.items()
        if summary is not None and summary.sd == 0
    ]
    best = max((row.summaries["map50"].largest for row in report.rows if row.summaries["map50"]), default=None)
    if best is not None and best < LEARNED_MAP50:
        notes.append(
            f"No run reached an mAP50 of {LEARNED_MAP50}: models that have hardly learned anything cannot be compared. "
            "Try more epochs, or other hyperparameters."
        )
    return notes


# --- files ----------------------------------------------------------------------------------


def as_dict(report: Report) -> dict[str, Any]:
    """The report for JSON: fractions, milliseconds, and None for missing values."""
    models = {}
    for row in report.rows:
        models[row.model.name] = {
            **({"engine": row.model.engine} if row.model.engine else {}),
            "parameters": row.model.parameters,
            "gflops": round(row.model.gflops, 4),
            "latency_ms": asdict(row.latency) if row.latency else None,
            "metrics": {metric: _with_values(row, metric) for metric in METRICS},
            "differences": {metric: _difference_dict(found) for metric, found in row.differences.items()},
        }
    return {
        "baseline": report.baseline.model.name,
        "seeds": list(report.seeds),
        "confidence": report.confidence,
        "comparisons": report.comparisons,
        "level": report.level,
        "figures_from": report.scored,
        **({"design": asdict(report.design)} if report.design else {}),
        "models": models,
    }


def _with_values(row: Row, metric: str) -> dict[str, Any] | None:
    summary = row.summaries[metric]
    if summary is None:
        return None
    return {**asdict(summary), "values": {str(seed): v for seed, v in row.model.figures[metric].items()}}


def _difference_dict(difference: Difference | None) -> dict[str, Any] | None:
    return {**asdict(difference), "verdict": difference.verdict} if difference else None


def as_text(report: Report, title: str, notes: Sequence[str]) -> str:
    """The report for the console."""
    tables = map(aligned, (model_table(report), difference_table(report)))
    return "\n\n".join([title, *tables, "\n".join(notes)])


def as_markdown(report: Report, title: str, notes: Sequence[str]) -> str:
    """The report as a Markdown file."""
    tables = map(markdown, (model_table(report), difference_table(report)))
    return "\n\n".join([f"# {title}", *tables, "\n".join(f"- {note}" for note in notes)]) + "\n"


def as_csv(report: Report) -> str:
    """The report as CSV: a row for each model and metric."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ["model", "metric", "n", "mean", "sd", "min", "max", "difference", "low", "high", "level", "pairs"]
        + ["verdict", "parameters", "gflops", "latency_ms", "latency_quartile1_ms", "latency_quartile3_ms"]
        + ["figures_from"]
    )
    for row in report.rows:
        latency = row.latency
        cost = [row.model.parameters, _number(row.model.gflops)]
        cost += [_number(v) for v in (latency.median, latency.quartile1, latency.quartile3)] if latency else [""] * 3
        for metric, label in METRICS.items():
            writer.writerow([row.model.name, label, *_csv_figures(row, metric), *cost, report.scored])
    return stream.getvalue()


def _csv_figures(row: Row, metric: str) -> list[Any]:
    summary, difference = row.summaries[metric], row.differences.get(metric)
    figures: list[Any] = [0, "", "", "", ""]
    if summary is not None:
        figures = [summary.n, *map(_number, (summary.mean, summary.sd, summary.smallest, summary.largest))]
    if row.is_baseline:
        return [*figures, "", "", "", "", "", "baseline"]
    if difference is None:
        return [*figures, "", "", "", "", 0, "no pair of figures"]
    numbers = map(_number, (difference.mean, difference.low, difference.high, difference.confidence))
    return [*figures, *numbers, difference.n, difference.verdict]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
