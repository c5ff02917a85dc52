"""``yolov5-ema evaluate``: evaluate detections by the protocols of YOLOv5, COCO and VisDrone, side by side."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from yolov5_ema.cli._detections import (
    Request,
    add_source,
    check_source,
    compared_with,
    detect_split,
    judged_images,
    rules_of,
    words_of_val,
)
from yolov5_ema.cli._engines import name_of
from yolov5_ema.cli.command import (
    Command,
    add_json_or_file,
    add_run_folder,
    add_switch_off,
    check_at_least_one,
    is_bare_json,
    results_alone,
)
from yolov5_ema.data.image_names import named_once
from yolov5_ema.detecting.runtime_names import FLOAT32, OPENVINO
from yolov5_ema.errors import ConfigError, UserError
from yolov5_ema.files import check_outputs, write_whole
from yolov5_ema.runs import run_folder
from yolov5_ema.texts import counted

if TYPE_CHECKING:
    from yolov5_ema.data.dataset import Dataset
    from yolov5_ema.evaluation.confusion import ConfusionMatrix
    from yolov5_ema.evaluation.judged import LabelledImages
    from yolov5_ema.evaluation.records import Predictions
    from yolov5_ema.evaluation.results import Result
    from yolov5_ema.evaluation.truths import TruthSet

    # the ground truth and the detections of each image by protocol, and the rules of protocols that changed
    _Compared = tuple[dict[str, TruthSet], dict[str, dict[str, Predictions]], dict[str, str]]

PROTOCOLS = ("yolov5", "ultralytics", "coco", "visdrone")
YOLOV5, ULTRALYTICS = PROTOCOLS[:2]
MAX_DET = 500
"""Detections per image that VisDrone's protocol uses. YOLOv5's and COCO's use at most 300 and 100 of them."""

_EPILOG = """\
predictions, if you do not use --weights:
  a COCO results JSON (as written by YOLOv5's --save-json), or a folder with one text file for each image in the
  format of VisDrone (left,top,width,height,score,category,-1,-1) or YOLO (as written by --save-txt --save-conf)

ground truth:
  --data        yolov5 uses the labels. coco and visdrone use the annotations that the data YAML names under
                visdrone_annotations or coco_annotations ('yolov5-ema data visdrone' and 'data coco' write them);
                without these, they use the labels too
  --annotations a folder of VisDrone's text files, or an instances JSON, without a data YAML

With --weights, all other flags go to YOLOv5's own val: --img, --batch-size, --conf-thres, --iou-thres, --device,
--half, --augment, --single-cls …; --slice and --overlap work as in 'yolov5-ema val'. Models of ultralytics are run with
its val, with these flags.

examples:
  yolov5-ema evaluate --data visdrone.yaml --weights best.pt --img 1280
  yolov5-ema evaluate --data visdrone.yaml --predictions runs/val/exp/best_predictions.json
  yolov5-ema evaluate --protocol visdrone --annotations DIR --image-sizes FILE.json --predictions DIR --json OUT.json
"""


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    """Evaluate, print the tables, and save JSON, CSV and plots."""
    _check(args, rest)
    if args.no_save and args.weights:
        raise UserError("--no-save works only with --predictions; with --weights, val writes into a run folder")
    with results_alone(is_bare_json(args)) as output:
        if args.no_save:
            _evaluate(args, rest, None, output)
            return 0
        with run_folder(args.project, args.name, args.exist_ok, parts=["val"]) as folder:
            _evaluate(args, rest, folder, output)
        print(f"Results saved to {folder}")
    return 0


def _add_flags(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what is evaluated")
    add_source(what)
    what.add_argument("--data", metavar="YAML", help="data YAML: a path, or the name of a shipped one")
    what.add_argument("--task", default="val", choices=("train", "val", "test"), help="split (default: val)")
    what.add_argument("--annotations", type=Path, metavar="PLACE", help="instead of --data: only the ground truth")
    what.add_argument(
        "--image-sizes",
        type=Path,
        metavar="FILE",
        help="JSON with image sizes in pixels: {name: {width: …, height: …}}",
    )
    what.add_argument(
        "--missing-as-empty",
        action="store_true",
        help="images missing from the predictions have no detections",
    )
    what.add_argument(
        "--category-ids",
        default="auto",
        choices=("auto", "coco", "index", "one-based"),
        help="meaning of category_id in a results JSON: the ground truth's ids, classes counted from 0, or classes "
        "counted from 1 (default: coco if it fits, else index)",
    )
    what.add_argument(
        "--keep-odd",
        action="store_true",
        help="also evaluate images with odd label rows, by their other rows; YOLOv5's val leaves these images out",
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "--protocol",
        nargs="+",
        choices=PROTOCOLS,
        help="(default: coco, visdrone, and that of the YOLO of --weights, else yolov5)",
    )
    how.add_argument(
        "--max-det",
        type=int,
        default=MAX_DET,
        help=f"most detections per image with --weights (default: {MAX_DET}); some protocols use fewer",
    )
    how.add_argument(
        "--coco-max-dets",
        type=int,
        nargs="+",
        default=[1, 10, 100],
        metavar="N",
        help="detections per image of COCO's recalls (default: 1 10 100)",
    )
    how.add_argument(
        "--mean",
        default="images",
        choices=("images", "classes"),
        help="visdrone weights each class by the number of images that contain it; 'classes' also shows the plain mean "
        "over classes (default: images)",
    )
    how.add_argument("--by-size", action="store_true", help="also for tiny, small, medium and large objects")
    out = parser.add_argument_group("the output")
    add_json_or_file(out)
    out.add_argument("--csv", type=Path, metavar="FILE", help="also write the figures to this file")
    add_run_folder(out, "runs/evaluate")
    add_switch_off(out, "--no-plots", "do not save plots", old="--noplots")
    add_switch_off(out, "--no-save", "no run folder: only print, and write --json and --csv", old="--nosave")


def _check(args: argparse.Namespace, rest: Sequence[str]) -> None:
    check_source(args, rest)
    if bool(args.data) == bool(args.annotations):
        raise UserError("give the ground truth with either --data or --annotations")
    if args.weights and not args.data:
        raise UserError("--weights needs --data: YOLOv5's val finds the images through a data YAML")
    check_at_least_one(args, "max_det")
    if args.image_sizes and not args.annotations:
        raise UserError("--image-sizes works only with --annotations; with --data, the sizes are read from the images")
    check_outputs([Path(file) for file in (args.json, args.csv) if file], force=True, parents=True)


def _evaluate(args: argparse.Namespace, rest: Sequence[str], folder: Path | None, output: TextIO) -> None:
    from yolov5_ema.evaluation import report

    if args.weights:
        assert folder is not None
        truths, predictions, rules = _by_weights(args, rest, folder)
    else:
        truths, predictions, rules = _by_predictions(args)
    results, matrix = _computed(args, truths, predictions, rules)
    figures = report.as_json(results)
    print(figures if is_bare_json(args) else _tables(args, truths, predictions, results), file=output)
    exact = _in_float32(args, rest) if args.weights else None
    if exact is not None:
        print(report.difference_table(results, exact))
    for name, text, wanted in (
        ("evaluation.json", figures, Path(args.json) if args.json else None),
        ("evaluation.csv", report.as_csv(results), args.csv),
    ):
        for file in filter(None, (wanted, folder and folder / name)):
            write_whole(file, text, parents=True)
    if folder is not None and not args.no_plots:
        from yolov5_ema.evaluation import plots

        plots.save_pr_curves(results, folder / "PR_curves.png")
        plots.save_confusion_matrix(matrix, folder / "confusion_matrix.png")


# --- ground truth and detections -------------------------------------------------------------


def _by_predictions(args: argparse.Namespace) -> _Compared:
    from yolov5_ema.evaluation import predictions, sources
    from yolov5_ema.upstream.data_yaml import engine_at_hand, open_dataset

    args.protocol = args.protocol or [YOLOV5, "coco", "visdrone"]
    engine = engine_at_hand()
    if args.annotations:
        truths = sources.annotation_truths(args.annotations, args.image_sizes, None, PROTOCOLS)
    else:
        dataset = open_dataset(args.data, engine)
        named_once(dataset.images(args.task), "Predictions go by that name")
        truths = sources.dataset_truths(dataset, args.task, PROTOCOLS, _judged(args, dataset))
    found = predictions.read_predictions(
        args.predictions,
        # labels have no category ids
        truths["coco"],
        missing_as_empty=args.missing_as_empty,
        category_ids=args.category_ids,
    )
    chosen = {protocol: truths[protocol] for protocol in args.protocol}
    return chosen, dict.fromkeys(args.protocol, found), rules_of(engine)


def _request(args: argparse.Namespace, rest: Sequence[str]) -> Request:
    return Request(
        args.weights, args.data, args.task, args.max_det, rest, args.engine, args.runtime, args.int8, COMMAND.parser()
    )


def _in_float32(args: argparse.Namespace, rest: Sequence[str]) -> list[Result] | None:
    """The results of the same evaluation in float32, if another runtime than torch ran it in a lower precision."""
    if not args.int8 and args.runtime != OPENVINO:
        return None
    request = _request(args, rest)
    engine, _ = request.opened()
    if request.precision(engine) == FLOAT32:
        return None
    half = request.half_flag(engine)
    plain = argparse.Namespace(**{**vars(args), "int8": False})
    with tempfile.TemporaryDirectory() as folder:
        compared = _by_weights(plain, [flag for flag in rest if flag != half], Path(folder))
    return _computed(plain, *compared)[0]


def _by_weights(args: argparse.Namespace, rest: Sequence[str], folder: Path) -> _Compared:
    request = _request(args, rest)
    engine, dataset = request.opened()
    args.protocol = args.protocol or [name_of(engine), "coco", "visdrone"]
    _check_truths(args, dataset)
    with words_of_val(hidden=args.quiet):
        found = detect_split(request, engine, dataset, folder, keep_odd=args.keep_odd)
    judged = _judged(args, dataset, found.images)
    compared = compared_with(found, judged, dataset, args.task, args.protocol, request.is_single_class(engine))
    return *compared, rules_of(engine)


def _check_truths(args: argparse.Namespace, dataset: Dataset) -> None:
    """Read the ground truth before detecting, so that mistakes in it are reported early.

    Images that are missing are no mistake if YOLOv5 will download them.
    """
    from yolov5_ema.evaluation import sources
    from yolov5_ema.evaluation.judged import Rules, labelled_images

    try:
        dataset.images(args.task)
    except ConfigError:
        if dataset.content.get("download"):
            return
        raise
    sources.dataset_truths(dataset, args.task, args.protocol, labelled_images(dataset, args.task, Rules(args.keep_odd)))


def _judged(args: argparse.Namespace, dataset: Dataset, by_val: Sequence[Path] | None = None) -> LabelledImages:
    from yolov5_ema.evaluation.judged import Rules

    hint = "" if args.keep_odd else "\n  --keep-odd also evaluates images with odd label rows, by their other rows"
    return judged_images(dataset, args.task, Rules(args.keep_odd, by_val), hint)


# --- figures ---------------------------------------------------------------------------------


def _computed(
    args: argparse.Namespace,
    truths: Mapping[str, TruthSet],
    predictions: Mapping[str, Mapping[str, Predictions]],
    rules: Mapping[str, str],
) -> tuple[list[Result], ConfusionMatrix]:
    from yolov5_ema.evaluation.confusion import ConfusionMatrix

    results = []
    for protocol, truth in truths.items():
        metric = _protocol(protocol, args, truth.names, rules)
        for image, entry in truth.truths.items():
            metric.update(entry, predictions[protocol][image])
        results.append(metric.compute())
    last = args.protocol[-1]
    matrix = ConfusionMatrix(truths[last].names)
    for image, entry in truths[last].truths.items():
        matrix.update(entry, predictions[last][image])
    return results, matrix


def _protocol(name: str, args: argparse.Namespace, names: Sequence[str], rules: Mapping[str, str]) -> Any:
    from yolov5_ema.evaluation.coco import CocoProtocol
    from yolov5_ema.evaluation.ultralytics import UltralyticsProtocol
    from yolov5_ema.evaluation.visdrone import VisDroneProtocol
    from yolov5_ema.evaluation.yolov5 import Yolov5Protocol

    if name == YOLOV5:
        return Yolov5Protocol(names, rules[name])
    if name == ULTRALYTICS:
        return UltralyticsProtocol(names, rules[name])
    if name == "coco":
        return CocoProtocol(names, args.coco_max_dets, args.by_size)
    return VisDroneProtocol(names)


def _tables(
    args: argparse.Namespace,
    truths: Mapping[str, TruthSet],
    predictions: Mapping[str, Mapping[str, Predictions]],
    results: Sequence[Result],
) -> str:
    from yolov5_ema.evaluation import report

    last = args.protocol[-1]
    truth = truths[last]
    objects = sum(len(entry.classes) for entry in truth.truths.values())
    detections = sum(len(predictions[last][image].scores) for image in truth.truths)
    parts = [
        f"{truth.source}: {counted(len(truth.truths), 'image')}, {counted(objects, 'object')}, "
        f"{counted(detections, 'detection')}",
        report.side_by_side(results, args.mean == "classes"),
        report.class_table(results),
    ]
    parts += [report.size_table(result) for result in results if result.by_size]
    return "\n\n".join(["", *parts, ""])


COMMAND = Command(
    "evaluate",
    "evaluate weights or predictions as YOLOv5, ultralytics, COCO and VisDrone do",
    _run,
    _add_flags,
    description="Evaluate detections by the protocols of YOLOv5, ultralytics, COCO and VisDrone, side by side.",
    epilog=_EPILOG,
    passes_to="val",
)
