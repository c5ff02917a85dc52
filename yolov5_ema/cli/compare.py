"""``yolov5-ema compare``: train models with one recipe and several seeds, and test whether they differ."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import math
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolov5_ema.cli._yolov5 import add_init, check_init, load_plugins
from yolov5_ema.cli.command import Command
from yolov5_ema.errors import UserError
from yolov5_ema.files import write_whole
from yolov5_ema.settings import exporting
from yolov5_ema.texts import aligned, counted, listed
from yolov5_ema.upstream.flags import given_flags, refuse_shortened

if TYPE_CHECKING:
    from yolov5_ema.comparing.design import Design
    from yolov5_ema.comparing.plan import Plan
    from yolov5_ema.comparing.report import Report
    from yolov5_ema.comparing.runs import Record, Run

_EPILOG = """\
All other flags go to YOLOv5's train, for every training: --epochs, --img, --batch-size, --hyp, --device, --cache,
--workers, --noval … Trainings start from scratch unless --weights names a checkpoint.

Models of ultralytics can be compared too, also with those of YOLOv5. Flags that its train has under another name are
translated; its own arguments, such as lr0=0.02, are given as it writes them. If models of both are compared, a flag
must be known to both, and every best.pt is scored by COCO's protocol.

How many seeds? --plan says how many a difference of a given size needs, from the runs that are finished, and how long
they take. --until-width W trains the first --seeds (5 or more is wise), and then as many as their spread asks for, so
that the interval of each difference in mAP50-95 is at most W wide.

--jobs 2 trains two models at a time, each with half of the processor's cores.

After an interruption, run the same command again to continue; you can add models and seeds to it. Results:
PROJECT/NAME/comparison.json, .csv, .md and .png. Exit code 1 if a training failed. More: docs/compare.md

examples:
  yolov5-ema compare --data my.yaml --cfgs yolov5s.yaml yolov5s-ema.yaml --epochs 100 --img 640 --name ema
  yolov5-ema compare --data my.yaml --cfgs a.yaml b.yaml c.yaml --baseline b --seeds 5 --epochs 50
  yolov5-ema compare --data my.yaml --cfgs yolov5n-ema.yaml yolo26n-ema.yaml --epochs 100 --img 640 --name both
  yolov5-ema compare --data my.yaml --cfgs yolov5s.yaml yolov5s-ema.yaml --epochs 100 --img 640 --name ema --plan
  yolov5-ema compare --data my.yaml --cfgs a.yaml b.yaml --seeds 5 --until-width 0.01 --hours 12 --epochs 50
"""


def _run(args: argparse.Namespace, flags: list[str]) -> int:
    """Train, score and compare. Returns 1 if a training failed or is missing."""
    _check(args)
    with exporting(init=args.init) if args.init else contextlib.nullcontext():
        return _compared(args, flags)


def _compared(args: argparse.Namespace, flags: list[str]) -> int:
    from yolov5_ema.comparing.needs import EFFECTS, needs, seeds_begun, with_seeds
    from yolov5_ema.comparing.plan import YOLOV5, engines_of, prepare, save_recipe
    from yolov5_ema.comparing.runs import locked

    load_plugins()
    cfgs, flags = _apart(args.cfgs, flags)
    engines = engines_of(cfgs)
    if YOLOV5 in engines:
        given = given_flags(engines[YOLOV5], "train", flags)
        refuse_shortened(given, COMMAND.parser())
        check_init(args.init, given["weights"].value if "weights" in given else "")
    elif args.init:
        raise UserError("--init works only with models of YOLOv5, not with those of ultralytics")
    plan = prepare(
        engines,
        folder=args.project / args.name,
        data=args.data,
        cfgs=cfgs,
        baseline=args.baseline,
        seeds=args.seeds,
        flags=flags,
        task=args.task,
        last=args.last,
    )
    if (args.no_train or args.plan) and not plan.folder.is_dir():
        raise UserError(f"{'--plan' if args.plan else '--no-train'}: there is no comparison in {plan.folder}")
    if args.plan:
        table, lines = needs(plan, args.effect or EFFECTS, args.jobs)
        print("\n".join([aligned(table), "", *lines]))
        return 0
    print(_announcement(plan), flush=True)
    started_s = time.monotonic()
    with locked(plan.folder) as lock:
        save_recipe(plan)
        design = _design(plan, args.until_width)
        if design:
            plan = with_seeds(plan, seeds_begun(plan, design.pilot))
        records = _carry_out(plan, lock, args.jobs) if not args.no_train else _recorded(plan)
        if design and not args.no_train:
            deadline_s = started_s + 3600 * args.hours if args.hours else math.inf
            plan, records = _until_narrow(plan, design, records, lock, args.jobs, deadline_s)
        return _conclude(plan, records, args, design)


def _apart(cfgs: Sequence[str], flags: Sequence[str]) -> tuple[list[str], list[str]]:
    """The model YAMLs, and the flags; an argument of ultralytics behind the YAMLs (``lr0=0.02``) is no YAML."""
    files = [word for word in cfgs if "=" not in word or Path(word).exists()]
    return files, [*flags, *(word for word in cfgs if word not in files)]


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="data YAML")
    parser.add_argument(
        "--cfgs",
        nargs="+",
        required=True,
        metavar="CFG",
        help="model YAMLs of YOLOv5 or ultralytics, or names of shipped ones",
    )
    parser.add_argument(
        "--baseline", metavar="CFG", help="model that the others are compared with (default: the first)"
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="trainings per model (default: 3)")
    parser.add_argument(
        "--project",
        type=Path,
        default=Path("runs/compare"),
        help="folder that holds comparisons (default: runs/compare)",
    )
    parser.add_argument("--name", default="exp", help="folder of this comparison in --project (default: exp)")
    parser.add_argument(
        "--task",
        choices=("auto", "val", "test"),
        default="auto",
        help="split to report (default: test if the data set has one, because best.pt is chosen on val)",
    )
    parser.add_argument(
        "--last",
        type=int,
        metavar="K",
        help="take as figures of a training the mean over its last K epochs on val, not those of best.pt",
    )
    parser.add_argument(
        "--latency-rounds",
        type=int,
        default=30,
        metavar="N",
        help="rounds of measuring latency; 0: none (default: 30)",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="trainings at the same time, each with its share of the processor's cores (default: 1)",
    )
    add_init(parser)
    parser.add_argument("--no-train", action="store_true", help="only report the trainings that are finished")
    number = parser.add_argument_group("the number of seeds")
    number.add_argument(
        "--plan",
        action="store_true",
        help="train nothing; say how many seeds a difference needs to be shown, and how long they take",
    )
    number.add_argument(
        "--effect",
        type=float,
        nargs="+",
        metavar="X",
        help="with --plan: differences from 0 to 1 (default: 0.005 0.01 0.02)",
    )
    number.add_argument(
        "--until-width",
        type=float,
        metavar="W",
        help="add seeds until the interval of each difference in mAP50-95 is at most W wide, such as 0.01",
    )
    number.add_argument(
        "--hours",
        type=float,
        metavar="H",
        help="with --until-width: after the first --seeds, begin no seed that would end later than H hours from now",
    )


def _check(args: argparse.Namespace) -> None:
    if args.jobs < 1:
        raise UserError(f"--jobs must be at least 1, not {args.jobs}")
    if args.latency_rounds < 0 or args.latency_rounds == 1:
        raise UserError(f"--latency-rounds must be 0 or at least 2, not {args.latency_rounds}")
    if Path(args.name).name != args.name or args.name in ("", ".."):
        raise UserError(f"--name must be the name of a folder, not {args.name!r}; use --project for its parent")

    for flag, value, needed in (("effect", args.effect, args.plan), ("hours", args.hours, args.until_width)):
        if value is not None and not needed:
            raise UserError(f"--{flag} needs {'--plan' if flag == 'effect' else '--until-width'}")
    for effect in args.effect or ():
        if not 0 < effect < 1:
            raise UserError(f"--effect must be a difference between 0 and 1, not {effect:g}")
    if args.until_width is not None and not 0 < args.until_width < 1:
        raise UserError(f"--until-width must be between 0 and 1, not {args.until_width:g}")
    if args.hours is not None and not args.hours > 0:
        raise UserError(f"--hours must be above 0, not {args.hours:g}")
    if args.plan and args.until_width is not None:
        raise UserError("--plan trains nothing, and --until-width trains; leave one out")


def _announcement(plan: Plan) -> str:
    engines = listed(plan.engines)
    lines = [
        f"{len(plan.cfgs)} models x {counted(len(plan.seeds), 'seed')}, {counted(plan.common.epochs, 'epoch')} at "
        f"{plan.common.imgsz} pixels, with {engines}, in {plan.folder}",
        f"baseline {plan.baseline}; figures from {plan.scored} on the {plan.task} split{_by_protocol(plan)}",
    ]
    if len(plan.seeds) < 2:
        lines.append("One seed shows no spread: there will be no intervals and no verdicts (--seeds 3 or more).")
    return "\n".join(lines)


def _by_protocol(plan: Plan) -> str:
    """What follows in a line that says where the figures come from, unless they are YOLOv5's own."""
    from yolov5_ema.comparing.plan import YOLOV5

    return "" if plan.protocol == YOLOV5 else f", by the protocol {plan.protocol}"


# --- the number of seeds --------------------------------------------------------------------


def _design(plan: Plan, width: float | None) -> Design | None:
    from yolov5_ema.comparing import design
    from yolov5_ema.comparing.needs import seeds_begun

    if width is None:
        return design.kept(plan.folder)
    return design.begun(plan.folder, width, seeds_begun(plan, 0))


def _until_narrow(
    plan: Plan, design: Design, records: dict[Run, Record], lock: int | None, jobs: int, deadline_s: float
) -> tuple[Plan, dict[Run, Record]]:
    """Add seeds until the design has as many as it needs, or the time is over."""
    from yolov5_ema.comparing.design import METRIC
    from yolov5_ema.comparing.needs import duration, figures_of, seconds_per_seed, with_seeds

    first = {run: record for run, record in records.items() if run.seed < design.pilot}
    needed = design.seeds(figures_of(plan, first, METRIC), plan.baseline)
    seed_s = seconds_per_seed(records) / min(jobs, len(plan.cfgs))
    done = len(plan.seeds)
    print(
        f"An interval of mAP50-95 that is {design.width:g} wide needs {needed} seeds, by the spread over the first "
        f"{design.pilot}; the {max(needed - done, 0)} that are left take about {duration(seed_s * (needed - done))}",
        flush=True,
    )
    for seeds in range(done + 1, needed + 1):
        if time.monotonic() + seed_s > deadline_s:
            print(f"--hours is over after {seeds - 1} of {needed} seeds: the intervals are wider", flush=True)
            break
        plan = with_seeds(plan, seeds)
        records = _carry_out(plan, lock, jobs)
    return plan, records


# --- the trainings --------------------------------------------------------------------------


def _recorded(plan: Plan) -> dict[Run, Record]:
    from yolov5_ema.comparing import runs

    return {run: runs.record_of(run) for run in runs.runs_of(plan)}


def _carry_out(plan: Plan, lock: int | None, jobs: int) -> dict[Run, Record]:
    from yolov5_ema.comparing import runs

    records = _recorded(plan)
    todo = [run for run, record in records.items() if record.status != runs.FINISHED]
    progress = _Progress(todo, plan.common.epochs)
    if len(todo) < len(records):
        print(f"{len(records) - len(todo)} of {len(records)} runs are finished already", flush=True)
    runner = runs.Runner(plan, lock, progress.show, jobs)

    def one(run: Run) -> None:
        if runner.is_stopped:
            return
        progress.start(run, runs.epochs_done(run))
        try:
            records[run] = runner.carry_out(run)
        except runs.Stopped:
            return
        except BaseException:
            runner.stop()
            raise
        progress.end(run, _ended(run, records[run]))

    with ThreadPoolExecutor(jobs) as pool:
        begun = [pool.submit(one, run) for run in todo]
        try:
            for future in wait(begun, return_when=FIRST_EXCEPTION).done:
                future.result()
        except KeyboardInterrupt:
            runner.stop()
            print("\nRun the same command again to continue.", file=sys.stderr)
            raise
    return records


def _ended(run: Run, record: Record) -> str:
    from yolov5_ema.comparing import runs

    if record.status == runs.FINISHED and record.figures:
        return f"{run}: mAP50 {record.figures['map50']:.4f}, mAP50-95 {record.figures['map50_95']:.4f}"
    tail = "\n".join(f"    {line}" for line in runs.log_tail(run).splitlines())
    return f"{run}: FAILED: {record.reason}\n  {run.log} ends with\n{tail}"


@dataclass
class _Shown:
    """A run at work, as its line on the console shows it."""

    place: str
    epochs_at_start: int
    epochs: int


class _Progress:
    """A line on the console with a run, its epoch and the estimated time until all runs are done."""

    _QUIET_S = 60.0
    """Seconds between two lines of a run if the output is not a terminal."""

    def __init__(self, todo: Sequence[Run], epochs: int) -> None:
        self.count = len(todo)
        self._epochs = epochs
        self._begun = self._trained = 0
        self._at_work: dict[Run, _Shown] = {}
        self._shown_s: dict[Run, float] = {}
        self._started_s = time.monotonic()
        self._is_terminal = sys.stdout.isatty()
        self._lock = threading.Lock()

    def start(self, run: Run, epochs_done: int) -> None:
        with self._lock:
            self._begun += 1
            done = min(epochs_done, self._epochs)
            shown = self._at_work[run] = _Shown(f"[{self._begun}/{self.count}] ", done, done)
            self._shown_s[run] = time.monotonic()
            begun = f"training from epoch {epochs_done}" if epochs_done else "training"
            if not self._is_terminal:
                print(f"{shown.place}{run}: {'scoring' if done == self._epochs else begun}", flush=True)

    def show(self, run: Run, epochs_done: int) -> None:
        with self._lock:
            shown, now_s = self._at_work[run], time.monotonic()
            # There are fewer epochs than before if the training had to start over.
            shown.epochs_at_start = min(epochs_done, shown.epochs_at_start)
            shown.epochs = epochs_done
            if self._is_terminal or now_s - self._shown_s[run] >= self._QUIET_S:
                self._shown_s[run] = now_s
                line = f"{shown.place}{run}: epoch {epochs_done}/{self._epochs}{self._left(now_s)}"
                self._print(line, end="" if self._is_terminal else "\n")

    def end(self, run: Run, words: str) -> None:
        with self._lock:
            shown = self._at_work.pop(run)
            self._trained += shown.epochs - shown.epochs_at_start
            self._print(f"{shown.place}{words}", end="\n")

    def _print(self, line: str, end: str) -> None:
        print(f"\r\033[K{line}" if self._is_terminal else line, end=end, flush=True)

    def _left(self, now_s: float) -> str:
        at_work = self._at_work.values()
        done = self._trained + sum(shown.epochs - shown.epochs_at_start for shown in at_work)
        if done == 0:
            return ""
        epochs = sum(self._epochs - shown.epochs for shown in at_work) + (self.count - self._begun) * self._epochs
        left_s = (now_s - self._started_s) / done * epochs
        return f", about {datetime.timedelta(seconds=round(left_s))} left"


# --- the outcome ----------------------------------------------------------------------------


def _conclude(plan: Plan, records: Mapping[Run, Record], args: argparse.Namespace, design: Design | None) -> int:
    from yolov5_ema.comparing import report as reports
    from yolov5_ema.comparing.picture import draw
    from yolov5_ema.comparing.plan import write_json
    from yolov5_ema.comparing.runs import FINISHED, provenance

    # Before the latency measurement, which itself adds to the load of the machine.
    where = provenance(plan)
    models = _models(plan, records, args.latency_rounds)
    report = reports.build_report(models, plan.baseline, plan.seeds, design=design, scored=plan.scored)
    notes = [*reports.method_notes(report), *_notes(plan, records, report, where)]
    content = {
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **where,
        "recipe": dict(plan.recipe),
        **reports.as_dict(report),
        "notes": notes,
        "runs": [{"cfg": run.cfg, "seed": run.seed, **asdict(record)} for run, record in records.items()],
    }
    write_json(plan.folder / "comparison.json", content)
    title = _title(plan)
    write_whole(plan.folder / "comparison.csv", reports.as_csv(report))
    write_whole(plan.folder / "comparison.md", reports.as_markdown(report, title, notes))
    draw(report, plan.folder / "comparison.png", title)
    print(f"\n{reports.as_text(report, title, notes)}\n\n{plan.folder / 'comparison'}.json, .csv, .md and .png")
    return 0 if all(record.status == FINISHED for record in records.values()) else 1


def _models(plan: Plan, records: Mapping[Run, Record], rounds: int) -> list[Any]:
    from yolov5_ema.comparing import machine
    from yolov5_ema.comparing.latency import measure_latency
    from yolov5_ema.comparing.report import METRICS, Model
    from yolov5_ema.comparing.runs import FINISHED

    cfgs, trainers = plan.cfgs, plan.trainers
    infos = {name: trainers[name].info(name, cfg, plan.nc) for name, cfg in cfgs.items()}
    times: dict[str, list[float]] = {}
    if rounds:
        device = machine.torch_device(plan.common.device)
        imgsz = max(info.imgsz for info in infos.values())
        built = {name: trainers[name].model(name, cfg, plan.nc) for name, cfg in cfgs.items()}
        times = measure_latency(built, imgsz=imgsz, device=device, rounds=rounds)
    models = []
    for name, info in infos.items():
        done = {r.seed: c.figures for r, c in records.items() if r.cfg == name and c.status == FINISHED}
        figures = {metric: {seed: found[metric] for seed, found in done.items() if found} for metric in METRICS}
        engine = trainers[name].name if plan.is_mixed else ""
        models.append(Model(name, info.parameters, info.gflops, times.get(name, []), figures, engine))
    return models


def _title(plan: Plan) -> str:
    common, data = plan.common, plan.recipe["data"]
    return (
        f"{Path(data['file']).stem}: {listed(plan.cfgs)}; {counted(common.epochs, 'epoch')} at {common.imgsz} pixels, "
        f"{counted(len(plan.seeds), 'seed')}, figures on the {plan.task} split "
        f"({counted(data[plan.task]['images'], 'image')})"
        f"{f', {plan.scored}' if plan.last else ''}{_by_protocol(plan)}"
    )


def _notes(plan: Plan, records: Mapping[Run, Record], report: Report, where: Mapping[str, Any]) -> list[str]:
    from yolov5_ema.comparing.notes import notes_on_engines
    from yolov5_ema.comparing.runs import FINISHED

    notes = notes_on_engines(plan)
    if plan.last:
        notes.append(
            f"Figures: {plan.scored}, by the val that each training runs after an epoch, not best.pt. The number was "
            "fixed before the first training and no epoch was chosen by its result, so they are not optimistic."
        )
    elif plan.common.noval:
        notes.append("best.pt is from the last epoch (--noval): it was not chosen on val.")
    elif plan.task == "val":
        notes.append("best.pt was chosen on the split that is reported (val): all figures are optimistic.")
    else:
        notes.append("best.pt was chosen on val; the figures are from test.")
    if any(row.latency for row in report.rows):
        machine = where["machine"]
        notes.append(
            f"Latency: one image, forward pass in float32 with BatchNorm folded, on {machine['device']} with "
            f"{machine['threads']} CPU threads, the models in turn; load of the machine before: {machine['load']}."
        )
    for run, record in records.items():
        if record.status != FINISHED:
            notes.append(f"MISSING: {run}: {record.reason or record.status or 'not trained yet'}")
        if record.resumed_at:
            epochs = ", ".join(map(str, record.resumed_at))
            notes.append(
                f"{run} was resumed at epoch {epochs}: "
                "from there on, its images come in a different order than those of the runs it is paired with."
            )
    return [*notes, *_notes_on_starts(plan, records)]


def _notes_on_starts(plan: Plan, records: Mapping[Run, Record]) -> list[str]:
    """How layers that are missing from --weights start, if it matters."""
    has_identities = plan.recipe["options"].get("init") == "identity"
    how = (
        "attention blocks of YOLOv5's models that are missing from the checkpoint change nothing at first (--init "
        "identity); all other layers that are missing from it start with fresh weights."
        if has_identities
        else "layers that are missing from the checkpoint, such as an inserted block, start with fresh weights."
    )
    shares = {run.cfg: record.transferred for run, record in records.items() if record.transferred}
    if len({tuple(share) for share in shares.values()}) > 1:
        copied = ", ".join(f"{name} {done} of {of}" for name, (done, of) in shares.items())
        return [f"--weights gave the models different starts (weights copied: {copied}): {how}"]
    return [f"--weights: {how}"] if has_identities else []


COMMAND = Command(
    "compare",
    "train models with one recipe and several seeds, and test whether they differ",
    _run,
    _add_flags,
    usage="%(prog)s --data DATA --cfgs A.yaml B.yaml … [--seeds N] [flags of compare] [flags of YOLOv5's train] "
    "[key=value of ultralytics]",
    description="Train several models with the same recipe and seeds, score each best.pt, and report "
    "with confidence intervals whether they differ.",
    epilog=_EPILOG,
    passes_to="train",
)
