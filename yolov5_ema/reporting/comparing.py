"""Several trainings side by side, grouped by model, with intervals over seeds if there are several seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from yolov5_ema.comparing.intervals import (
    NO_INTERVAL,
    Difference,
    Summary,
    bonferroni_confidence,
    paired_difference,
    summarize,
)
from yolov5_ema.comparing.report import percent
from yolov5_ema.errors import UserError
from yolov5_ema.reporting.measuring import Measured
from yolov5_ema.reporting.runs import CLASSIFY, DETECT, Comparison, Run
from yolov5_ema.reporting.tables import NOTHING
from yolov5_ema.texts import counted

CONFIDENCE = 0.95
METRICS = {DETECT: ("mAP50", "mAP50-95"), CLASSIFY: ("top-1", "top-5")}

# Options that differ between any two trainings, or that say where a training ran and not how.
_NO_RECIPE = {
    *("name", "project", "save_dir", "exist_ok", "resume", "device", "workers", "local_rank", "seed", "cfg"),
    *("entity", "upload_dataset", "bbox_interval", "artifact_alias", "cache", "bucket", "model", "block"),
    *("block_options", "output", "hyp", "devices", "nodes"),
}


@dataclass(frozen=True)
class Row:
    """A model's row in a comparison: for each metric its results, or None if figures are missing."""

    model: str
    is_baseline: bool
    seeds: Sequence[int | None]
    summaries: Mapping[str, Summary | None]
    differences: Mapping[str, Difference | None]
    latency: Mapping[str, float] | None = None
    parameters: int | None = None
    gflops: float | None = None


@dataclass(frozen=True)
class Compared:
    """A comparison of models.

    Attributes:
        title: the title of the comparison.
        metrics: names of the metrics, in the order of the columns.
        rows: one row for each model, the baseline first.
        level: confidence level of the intervals of differences, 0 to 1.
        notes: where the figures come from, and what they can show.
        has_pairs: whether there are pairs of runs, so that differences could be computed.
    """

    title: str
    metrics: Sequence[str]
    rows: Sequence[Row]
    level: float
    notes: Sequence[str] = ()
    has_pairs: bool = True
    runs: Sequence[Run] = field(default_factory=list)

    @property
    def verdicts(self) -> list[str]:
        """One sentence for each metric of each model, except the baseline."""
        baseline = self.rows[0].model
        return [
            f"{row.model} against {baseline}, {metric}: {_sentence(row.differences.get(metric))}"
            for row in self.rows[1:]
            for metric in self.metrics
        ]


def _sentence(difference: Difference | None) -> str:
    if difference is None:
        return "no pair of figures."
    if difference.low is None or difference.high is None:
        return f"{difference.mean:+.4f} with one seed, which shows no spread: no interval and no verdict."
    interval = f"{percent(difference.confidence)} interval {difference.low:+.4f} to {difference.high:+.4f}"
    return f"{difference.mean:+.4f} ({interval}, {counted(difference.n, 'seed')}): {difference.verdict}."


# --- of a comparison.json -------------------------------------------------------------------


def of_comparison(comparison: Comparison) -> Compared:
    """The figures of a ``comparison.json``, without computing them again."""
    content = comparison.content
    names = {"map50": "mAP50", "map50_95": "mAP50-95"}
    baseline = content["baseline"]
    order = [baseline, *(name for name in content["models"] if name != baseline)]
    rows = []
    for name in order:
        model = content["models"][name]
        found = {label: model["metrics"][key] for key, label in names.items()}
        differences = {label: model["differences"].get(key) for key, label in names.items()}
        seeds = next((sorted(map(int, entry["values"])) for entry in found.values() if entry), [])
        rows.append(
            Row(
                model=name,
                is_baseline=name == baseline,
                seeds=seeds,
                summaries={label: entry and _taken(Summary, entry) for label, entry in found.items()},
                differences={label: entry and _taken(Difference, entry) for label, entry in differences.items()},
                latency=model.get("latency_ms"),
                parameters=model["parameters"],
                gflops=model["gflops"],
            )
        )
    title = f"Comparison {comparison.name}"
    return Compared(title, list(names.values()), rows, content["level"], content["notes"], runs=comparison.runs)


def _taken(kind: Any, entry: Mapping[str, Any]) -> Any:
    """Create a dataclass from the fields of the same names in a JSON object."""
    return kind(**{name: entry[name] for name in kind.__dataclass_fields__})


# --- of single runs -------------------------------------------------------------------------


def of_runs(runs: Sequence[Run], measured: Mapping[str, Measured], baseline: str | None = None) -> Compared | None:
    """Compare trainings of one task, grouped by model and paired by seed.

    Args:
        runs: the trainings, all of one task.
        measured: the evaluations, by the names of the runs.
        baseline: the model that the others are compared with; None: the model of the first run.

    Returns:
        The comparison, or None for fewer than two trainings.

    Raises:
        UserError: no run has the baseline's model.
    """
    if len(runs) < 2:
        return None
    groups = grouped(runs)
    first = baseline or next(iter(groups))
    if first not in groups:
        raise UserError(f"--baseline {first} is not one of the models: {', '.join(groups)}")
    metrics = METRICS[runs[0].task]
    figures, origin = _figures(runs, measured)
    repeated = [name for name, members in groups.items() if _has_twice([run.seed for run in members])]
    unknown = [run.name for run in runs if run.seed is None]
    is_single = all(len(members) == 1 for members in groups.values())
    can_pair = not repeated and (not unknown or is_single)
    level = bonferroni_confidence(CONFIDENCE, max(len(groups) - 1, 1))
    rows = []
    for name in (first, *(name for name in groups if name != first)):
        by_metric = {metric: _by_seed(groups[name], figures[metric], is_single) for metric in metrics}
        reference = {metric: _by_seed(groups[first], figures[metric], is_single) for metric in metrics}
        values = {metric: [figures[metric][r.name] for r in groups[name]] for metric in metrics}
        known = {metric: [v for v in found if v is not None] for metric, found in values.items()}
        rows.append(
            Row(
                model=name,
                is_baseline=name == first,
                seeds=[run.seed for run in groups[name]],
                summaries={m: summarize(known[m], CONFIDENCE) if known[m] else None for m in metrics},
                differences={
                    m: paired_difference(by_metric[m], reference[m], level) if can_pair else None for m in metrics
                }
                if name != first
                else {},
            )
        )
    notes = [origin, *_notes(rows, repeated, [] if is_single else unknown, level)]
    title = "Runs side by side" if len(groups) > 1 else "One model over seeds"
    return Compared(title, metrics, rows, level, notes, can_pair, runs)


def grouped(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by their model. Models with the same name but different rows get the name of their first run added."""
    known: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        cfg = run.cfg or {}
        rows = repr([cfg.get("backbone"), cfg.get("head")]) if run.task == DETECT else ""
        rows = rows or repr(run.options.get("block_options"))
        known.setdefault((run.model, rows), []).append(run)
    names = [name for name, _ in known]
    return {
        name if names.count(name) == 1 else f"{name} ({members[0].name})": members
        for (name, _), members in known.items()
    }


def recipe_differences(
    runs: Sequence[Run], shown: Callable[[Any], str] = str, *, everything: bool = False
) -> dict[str, list[str]]:
    """Settings that differ between trainings: the value for each run as ``shown`` gives it, or "-" for none.

    The model, the seed, and what says where a training ran are left out, except with ``everything``.
    """
    found = {}
    for kind in ("options", "hyp"):
        held = [getattr(run, kind) for run in runs]
        for name in dict.fromkeys(name for settings in held for name in settings):
            values = [shown(settings[name]) if name in settings else NOTHING for settings in held]
            if len(set(values)) > 1 and (everything or kind == "hyp" or name not in _NO_RECIPE):
                found[name] = values
    return found


def _figures(runs: Sequence[Run], measured: Mapping[str, Measured]) -> tuple[dict[str, dict[str, float | None]], str]:
    """The figures to compare, by metric and run, all from the same source; and a sentence that names the source."""
    metrics = METRICS[runs[0].task]
    found: dict[str, dict[str, float | None]] = {}
    if runs[0].task == CLASSIFY and all(run.metrics for run in runs):
        for metric, key in zip(metrics, ("top1", "top5")):
            found[metric] = {run.name: float(run.metrics[key]) for run in runs}
        return found, "Figures: best.pt of each run, from its metrics.json."
    known = [measured[run.name] for run in runs if run.name in measured]
    alike = {json.dumps([m.settings.get(k) for k in ("data", "split", "imgsz", "rules")]) for m in known}
    if len(known) == len(runs) and len(alike) == 1:
        for metric in metrics:
            found[metric] = {run.name: measured[run.name].metrics[metric] for run in runs}
        chosen = " best.pt was chosen on it: they are optimistic." if known[0].split == "val" else ""
        return found, (f"Figures: best.pt of each run, evaluated for this page on the {known[0].split} split.{chosen}")
    for metric in metrics:
        found[metric] = {run.name: _best_epoch(run, metric) for run in runs}
    return found, (
        "Figures: the best epoch in each run's results.csv. It was chosen on the same split as the figures: "
        "they are optimistic."
    )


def _best_epoch(run: Run, metric: str) -> float | None:
    if run.epochs is None or run.epochs.best is None:
        return None
    values = run.epochs.values(metric)
    return values[run.epochs.best] if values and math.isfinite(values[run.epochs.best]) else None


def _by_seed(runs: Sequence[Run], figures: Mapping[str, float | None], is_single: bool) -> dict[int, float]:
    """Figures by seed. If each model has one run, the seeds are ignored: there is a difference but no interval."""
    found = {}
    for run in runs:
        value, seed = figures[run.name], 0 if is_single else run.seed
        if value is not None and seed is not None:
            found[seed] = value
    return found


def _has_twice(seeds: Sequence[int | None]) -> bool:
    known = [seed for seed in seeds if seed is not None]
    return len(set(known)) < len(known)


def _notes(rows: Sequence[Row], repeated: Sequence[str], unknown: Sequence[str], level: float) -> list[str]:
    notes = []
    if repeated:
        notes.append(
            f"Several runs of a model have the same seed ({', '.join(repeated)}): it is not known which runs form "
            "pairs, so there are no differences. Repeating a training is not a second seed."
        )
    if unknown:
        notes.append(
            f"The seed of these runs is not known: {', '.join(unknown)}. Without pairs of seeds there are no "
            "differences; the intervals are those of each model's mean."
        )
    differences = [found for row in rows[1:] for found in row.differences.values() if found is not None]
    if differences and all(found.verdict == NO_INTERVAL for found in differences):
        notes.append(
            "One seed per model shows no spread: the same model trained with another seed often differs by more. There "
            "is no interval and no verdict."
        )
    elif differences:
        correction = (
            f", Bonferroni-corrected for {len(rows) - 1} models ({percent(level)} each)" if len(rows) > 2 else ""
        )
        notes.append(
            f"Differences are paired by seed; intervals are t intervals over seeds{correction}. They show what other "
            "seeds would give with this data and recipe, not what other images would give."
        )
    return notes
