"""What the finished runs of a comparison say about the seeds, and the time, that differences need."""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from yolov5_ema.comparing.intervals import bonferroni_confidence, paired_difference
from yolov5_ema.comparing.plan import Plan
from yolov5_ema.comparing.power import seeds_for_effect, spread_of
from yolov5_ema.comparing.report import METRICS, percent
from yolov5_ema.comparing.runs import Record, Run, record_of, runs_of
from yolov5_ema.errors import UserError

EFFECTS = (0.005, 0.01, 0.02)
"""Differences in mAP, from 0 to 1."""


def with_seeds(plan: Plan, seeds: int) -> Plan:
    """The same plan with another number of seeds."""
    return replace(plan, seeds=tuple(range(seeds)))


def seeds_begun(plan: Plan, least: int = 0) -> int:
    """The number of seeds that the plan has, or of which a run was begun; at least ``least``."""
    count = max(len(plan.seeds), least)
    while any(Run(name, count, plan.folder / name / f"seed{count}").record_file.is_file() for name in plan.cfgs):
        count += 1
    return count


def figures_of(plan: Plan, records: Mapping[Run, Record], metric: str) -> dict[str, dict[int, float]]:
    """The results in a metric by model and seed."""
    found: dict[str, dict[int, float]] = {name: {} for name in plan.cfgs}
    for run, record in records.items():
        if record.figures:
            found[run.cfg][run.seed] = record.figures[metric]
    return found


def seconds_per_seed(records: Mapping[Run, Record]) -> float:
    """How long the trainings of one seed take: the sum of the models' medians over their finished runs."""
    seconds: dict[str, list[float]] = {}
    for run, record in records.items():
        if record.figures:
            seconds.setdefault(run.cfg, []).append(sum(attempt.get("seconds", 0.0) for attempt in record.attempts))
    return sum(map(statistics.median, seconds.values()))


def duration(seconds: float) -> str:
    """Seconds as hours, minutes and seconds.

    Example:
        >>> duration(3725.4)
        '1:02:05'
    """
    return str(datetime.timedelta(seconds=round(max(seconds, 0.0))))


def needs(plan: Plan, effects: Sequence[float], jobs: int = 1) -> tuple[list[list[str]], list[str]]:
    """How many seeds are needed to show differences of given sizes with a probability of 80 %.

    Args:
        plan: the comparison.
        effects: the differences.
        jobs: the number of trainings at the same time, which the finished ones had too.

    Returns:
        A table with its header: the spread of the paired differences and the seeds, for each model and metric; and
        sentences that explain it and say how long the seeds take.

    Raises:
        UserError: a model has fewer than two finished seeds, or an effect needs too many.
    """
    plan = with_seeds(plan, seeds_begun(plan))
    records = {run: record_of(run) for run in runs_of(plan)}
    level = bonferroni_confidence(0.95, len(plan.cfgs) - 1)
    table = [["model", "metric", "pairs", "sd (95 % interval)", *(f"seeds for {effect:g}" for effect in effects)]]
    needed: list[list[int]] = []
    for metric, label in METRICS.items():
        figures = figures_of(plan, records, metric)
        for name in (name for name in plan.cfgs if name != plan.baseline):
            found = paired_difference(figures[name], figures[plan.baseline])
            if found is None or found.sd is None:
                raise UserError(
                    f"--plan needs two finished seeds of {name} and of {plan.baseline}; train with --seeds 5 first"
                )
            spread = spread_of(found.sd, found.n)
            needed.append([seeds_for_effect(effect, found.sd, level) for effect in effects])
            shown = f"{spread.sd:.4f} ({spread.low:.4f} to {spread.high:.4f})"
            table.append([name, label, str(found.n), shown, *map(str, needed[-1])])
    lines = [
        "With that many seeds, a difference of that size is shown with a probability of 80 %, if the sd is right "
        f"(interval of {percent(level)} for each model)."
    ]
    finished = min(int(row[2]) for row in table[1:])
    seed_s = seconds_per_seed(records) / min(jobs, len(plan.cfgs))
    for effect, seeds in zip(effects, map(max, zip(*needed))):
        left = max(seeds - finished, 0)
        lines.append(f"{effect:g} in every row: {seeds} seeds, {left} more, about {duration(seed_s * left)}")
    return table, lines
