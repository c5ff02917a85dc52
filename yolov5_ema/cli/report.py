"""``yolov5-ema report``: make one HTML page about trainings, evaluations and comparisons."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolov5_ema.cli._detections import (
    Request,
    compared_with,
    detect_split,
    judged_images,
    rules_of,
    words_of_val,
)
from yolov5_ema.cli._engines import name_of, start_engine_of
from yolov5_ema.cli._yolov5 import load_plugins
from yolov5_ema.cli.command import (
    Command,
    add_device,
    add_force,
    add_image_size,
    add_output,
    check_image_size,
)
from yolov5_ema.errors import UserError
from yolov5_ema.files import check_outputs, write_whole
from yolov5_ema.texts import first_line

if TYPE_CHECKING:
    from yolov5_ema.data.dataset import Dataset
    from yolov5_ema.reporting.measuring import Measured
    from yolov5_ema.reporting.runs import Run, Source
    from yolov5_ema.upstream.locate import Engine

_EPILOG = """\
RUN is the folder of a training of YOLOv5 or ultralytics (or its weights/best.pt), of 'yolov5-ema classify train',
'evaluate' or 'compare', or of val; or a model alone: a .pt, or one exported to ONNX, OpenVINO or TorchScript. Trainings
of one model with several seeds are grouped, and compared in pairs with the same seed.

Without flags, nothing is run: the page shows what is in the run's own files and what an earlier report kept. Tables by
class, curves and sample detections need an evaluation of best.pt: --evaluate uses the data set that the run's options
name, --data the one that you name. Some of its images are included in the page. The result is kept in
RUN/report-val.json. For a comparison, only the first seed of each model is evaluated. More: docs/report.md

examples:
  yolov5-ema report runs/train/exp
  yolov5-ema report runs/train/exp --evaluate
  yolov5-ema report runs/train/exp runs/train/exp2 -o both.html --data data.yaml
"""


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    """Write the page."""
    _check(args)
    from yolov5_ema.reporting import page
    from yolov5_ema.reporting.comparing import grouped, of_comparison, of_runs
    from yolov5_ema.reporting.cost import costs_of
    from yolov5_ema.reporting.parts import Material
    from yolov5_ema.reporting.runs import Comparison, make_names_unique, read_source

    load_plugins()
    sources = [read_source(run) for run in args.runs]
    make_names_unique(sources)
    output = _output(args, sources)
    _check_baseline(args.baseline, sources)
    measured, reasons = _measured(args, sources)
    compared = [of_comparison(source) for source in sources if isinstance(source, Comparison)]
    for runs in _by_task(sources):
        baseline = args.baseline if args.baseline in grouped(runs) else None
        found = of_runs(runs, measured, baseline)
        compared += [found] if found is not None else []
    material = Material(
        sources=sources,
        compared=compared,
        measured=measured,
        not_measured=reasons,
        title=args.title,
        **_origin(args.device),
    )
    material.costs = costs_of(material.runs)
    write_whole(output, page.render(material), parents=True)
    print(f"{output} ({output.stat().st_size / 1024:,.0f} KiB)")
    return 0


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, or a model")
    add_output(
        parser, "page to write (default: RUN/report.html, next to a model MODEL-report.html; for several, report.html)"
    )
    add_force(parser, "overwrite a file that is not a report")
    parser.add_argument("--title", default="", help="title of the page (default: the names of the runs)")
    parser.add_argument(
        "--baseline", metavar="MODEL", help="model that the others are compared with (default: the first)"
    )
    how = parser.add_argument_group("evaluating best.pt of detectors")
    how.add_argument(
        "--evaluate",
        action="store_true",
        help="evaluate, even if a result is kept; on the data set of the training, unless --data is given",
    )
    how.add_argument("--no-evaluate", action="store_true", help="evaluate nothing (the default)")
    how.add_argument("--data", metavar="YAML", help="evaluate on this data set, unless a result for it is kept")
    how.add_argument("--task", choices=("val", "test"), default="val", help="split (default: val)")
    add_image_size(how, "pixels (default: that of the training)", default=None)
    add_device(how)
    how.add_argument("--samples", type=int, default=6, metavar="N", help="sample images in the page (default: 6)")


def _check(args: argparse.Namespace) -> None:
    if args.evaluate and args.no_evaluate:
        raise UserError("--evaluate and --no-evaluate cannot be used together; leave one out")
    if args.no_evaluate and args.data:
        raise UserError("--data asks for an evaluation; it cannot be used with --no-evaluate")
    check_image_size(args.imgsz, least=32)
    if args.imgsz is not None and not _is_asked(args):
        raise UserError("--imgsz says how to evaluate; it needs --evaluate or --data")
    if not 0 <= args.samples <= 24:
        raise UserError(f"--samples must be 0 to 24, not {args.samples}: the images are stored inside the page")


def _by_task(sources: Sequence[Source]) -> list[list[Run]]:
    """The trainings given as RUN, not those of comparisons: first the detectors, then the classifiers."""
    from yolov5_ema.reporting.runs import CLASSIFY, DETECT, Run

    single = [source for source in sources if isinstance(source, Run)]
    return [[run for run in single if run.task == task] for task in (DETECT, CLASSIFY)]


def _check_baseline(baseline: str | None, sources: Sequence[Source]) -> None:
    """Raise a UserError, before anything is evaluated, if no training has this model."""
    from yolov5_ema.reporting.comparing import grouped

    models = [model for runs in _by_task(sources) for model in grouped(runs)]
    if baseline is not None and baseline not in models:
        listed = ", ".join(models) or "there are only those of a comparison, which has its own baseline"
        raise UserError(f"--baseline {baseline} is not one of the models: {listed}")


def _output(args: argparse.Namespace, sources: Sequence[Source]) -> Path:
    """The file to write. An existing report is replaced; any other file is refused, except with ``--force``."""
    from yolov5_ema.reporting.page import GENERATOR

    output: Path = args.output or (_page_of(sources[0]) if len(sources) == 1 else Path("report.html"))
    is_ours = False
    if output.is_file():
        with output.open("rb") as stream:
            is_ours = f'name="generator" content="{GENERATOR} '.encode() in stream.read(4096)
    check_outputs([output], force=args.force or is_ours, parents=True)
    return output


def _page_of(source: Source) -> Path:
    from yolov5_ema.reporting.runs import Run

    return source.beside("report.html") if isinstance(source, Run) else source.folder / "report.html"


# --- evaluating -----------------------------------------------------------------------------


def _measured(args: argparse.Namespace, sources: Sequence[Source]) -> tuple[dict[str, Measured], dict[str, str]]:
    """The evaluations of detectors, by the names of their runs, and the reason why others have none."""
    from yolov5_ema.reporting.runs import DETECT, Comparison, Run

    measured: dict[str, Measured] = {}
    reasons: dict[str, str] = {}
    wanted: list[tuple[Run, str]] = []
    for source in sources:
        if isinstance(source, Run):
            wanted.append((source, args.task))
        if isinstance(source, Comparison):
            first = min((run.seed or 0 for run in source.runs), default=0)
            wanted += [(run, source.content["recipe"]["task"]) for run in source.runs if run.seed == first]
    for run, split in wanted:
        if run.task != DETECT and run.inspection is None and not run.is_alone:
            continue  # a classifier of this package, with figures of its own
        try:
            measured[run.name] = _one(args, run, split)
        except UserError as error:
            if _is_asked(args):
                raise
            reasons[run.name] = first_line(error)
    return measured, reasons


def _is_asked(args: argparse.Namespace) -> bool:
    return bool(args.evaluate or args.data)


def _one(args: argparse.Namespace, run: Run, split: str) -> Measured:
    """Evaluate best.pt of one run if the user asked for it, else use what an earlier report kept.

    Raises:
        UserError: it cannot be evaluated, or nothing is kept and no evaluation was asked for.
    """
    from yolov5_ema.reporting import measuring
    from yolov5_ema.reporting.cost import image_size
    from yolov5_ema.upstream.data_yaml import open_dataset

    if run.weights is None:
        raise UserError("there is no weights/best.pt")
    if not _is_asked(args):
        return _kept(run, split)
    engine = start_engine_of([run.weights])
    dataset = open_dataset(args.data or str(measuring.data_of(run, engine)), engine)
    data = dataset.file
    imgsz = _size_of(run.weights, args.imgsz or image_size(run.options), dataset, engine)
    release = rules_of(engine)[name_of(engine)]
    settings = measuring.settings_of(run.weights, data, split=split, imgsz=imgsz, samples=args.samples, release=release)
    # A kept evaluation that cannot be read is made again.
    with contextlib.suppress(UserError):
        kept = None if args.evaluate else measuring.kept(run, split, settings)
        if kept is not None:
            return kept
    found = _evaluated(run, data, settings, args.device, is_typed=bool(args.data))
    try:
        write_whole(measuring.kept_file(run, split), measuring.as_json(found))
    # For example in a folder of another user: write the page anyway.
    except UserError as error:
        print(f"the evaluation is not kept for the next report: {error}", file=sys.stderr)
    return found


def _kept(run: Run, split: str) -> Measured:
    from yolov5_ema.reporting import measuring

    found = measuring.kept(run, split)
    if found is not None:
        return found
    named = run.options.get("data")
    file = run.model_file
    how = f"--data evaluates {file} on a data set"
    if isinstance(named, str) and named:
        how = f"--evaluate evaluates {file} on the data set of its training ({named[:200]}), --data on another"
    raise UserError(
        f"no evaluation was asked for; {how}; the page then shows figures by class, curves and sample images"
    )


def _size_of(weights: Path, imgsz: int, dataset: Dataset, engine: Engine) -> int:
    """The image size to evaluate with: an exported model may work with its own size only."""
    from yolov5_ema.checkpoints.exported_models import form_of
    from yolov5_ema.detecting.loading import load_detector
    from yolov5_ema.detecting.protocol import LoadOptions

    if form_of(weights) is None:
        return imgsz
    return max(load_detector(weights, LoadOptions(imgsz=(imgsz, imgsz), names=dataset.names), engine=engine).imgsz)


def _evaluated(run: Run, data: Path, settings: Mapping[str, Any], device: str, is_typed: bool) -> Measured:
    from yolov5_ema.evaluation.judged import Rules
    from yolov5_ema.evaluation.yolov5 import MAX_DET
    from yolov5_ema.reporting.measuring import folders_of, measure

    batch_size = run.options.get("batch_size", run.options.get("batch"))
    batch_size = min(batch_size, 32) if type(batch_size) is int and batch_size > 0 else 16
    flags = ["--imgsz", str(settings["imgsz"]), "--batch-size", str(batch_size)]
    flags += ["--device", device] if device else []
    is_single = bool(run.options.get("single_cls"))
    flags += ["--single-cls"] if is_single else []
    split = settings["split"]
    request = Request([str(run.weights)], str(data), split, MAX_DET, flags)
    print(f"Evaluating {run.weights} on {split} of {data}", flush=True)
    # val prints its table and the path of a folder that is deleted afterwards; only its progress, on stderr, is shown.
    with tempfile.TemporaryDirectory() as folder, words_of_val(hidden=True):
        engine, dataset = request.opened()
        found = detect_split(request, engine, dataset, Path(folder))
    judged = judged_images(dataset, split, Rules(judged=found.images))
    protocol = name_of(engine)
    truths, predictions = compared_with(found, judged, dataset, split, [protocol], is_single)
    # If the data set was named by a file of the run, not by the user, show only images from its own folders.
    places = None if is_typed else folders_of(dataset, split)
    return measure(
        dataset,
        truths[protocol],
        predictions[protocol],
        release=settings["rules"],
        settings=settings,
        pictures_from=places,
        files=judged.files,
    )


def _origin(device: str) -> dict[str, Any]:
    from yolov5_ema.comparing import machine
    from yolov5_ema.errors import EngineNotFoundError
    from yolov5_ema.upstream.locate import locate
    from yolov5_ema.upstream.ultralytics import at_hand

    try:
        software = machine.software(locate())
    except EngineNotFoundError:
        software = {}
    ultralytics = at_hand()
    software |= {"ultralytics": ultralytics.version} if ultralytics is not None else {}
    return {"software": software, "machine": machine.machine(machine.torch_device(device))}


COMMAND = Command(
    "report",
    "make one self-contained HTML page about trainings, evaluations and comparisons",
    _run,
    _add_flags,
    description="Make one self-contained HTML page about one or more runs.",
    epilog=_EPILOG,
)
