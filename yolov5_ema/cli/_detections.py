"""Detections for a split of a data set, for the commands that run YOLOv5's ``val`` to get them."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolov5_ema.cli._engines import ULTRALYTICS, YOLOV5, add_engine, is_ultralytics, start_engine_of
from yolov5_ema.cli._slicing import take_flags
from yolov5_ema.cli.command import Flags, add_runtime
from yolov5_ema.data.detections import Detections
from yolov5_ema.detecting.runtime_names import AUTO, FLOAT32, HALF, INT8, OPENVINO, TORCH
from yolov5_ema.errors import UserError
from yolov5_ema.scripts.yolo_flags import options_of
from yolov5_ema.texts import counted
from yolov5_ema.upstream.flags import Given, given_flags, refuse_shortened, refuse_unknown, script_parser
from yolov5_ema.upstream.locate import Engine

if TYPE_CHECKING:
    import torch

    from yolov5_ema.data.dataset import Dataset
    from yolov5_ema.detecting.protocol import Detector, Forward
    from yolov5_ema.evaluation.judged import LabelledImages, Rules
    from yolov5_ema.evaluation.records import Predictions
    from yolov5_ema.evaluation.truths import TruthSet
    from yolov5_ema.scripts.collecting import Collected


@dataclass(frozen=True)
class Request:
    """What ``val`` is to be run on.

    Attributes:
        weights: the files of the detectors.
        data: the data YAML, as the user typed it.
        task: the split.
        max_det: the most detections per image.
        flags: flags for ``val``, and ``--slice`` and ``--overlap``.
        engine: ``yolov5`` or ``ultralytics``, if the user chose one.
        runtime: what runs the model, see `choosing.set_runtime`.
        int8: quantize the model.
        parser: the parser of the command that the user typed.
    """

    weights: Sequence[str]
    data: str
    task: str
    max_det: int
    flags: Sequence[str] = ()
    engine: str | None = None
    runtime: str | None = None
    int8: bool = False
    parser: argparse.ArgumentParser = field(default_factory=argparse.ArgumentParser)

    def opened(self) -> tuple[Engine, Dataset]:
        """The YOLOv5 in use, with the shim installed, and the data set.

        Raises:
            UserError: the data YAML cannot be used, one of the command's own flags is abbreviated, or ``val`` does not
                know a flag.
        """
        from yolov5_ema.upstream.data_yaml import open_dataset

        engine = start_engine_of(self.weights, self.engine)
        if is_ultralytics(engine):
            self.options()
        else:
            refuse_shortened(self.given(engine), self.parser)
            refuse_unknown(engine, "val", take_flags(self.flags)[1], self.parser.prog)
        return engine, open_dataset(self.data, engine)

    def given(self, engine: Engine) -> dict[str, Given]:
        """The flags for YOLOv5's ``val``; see `given_flags`."""
        return given_flags(engine, "val", self.flags)

    def options(self) -> dict[str, Any]:
        """The flags as options of ultralytics' ``val``.

        Raises:
            UserError: ultralytics has no such option, or cannot detect with several models at once.
        """
        if len(self.weights) > 1:
            raise UserError("--weights: ultralytics detects with one model at a time")
        return options_of("val", take_flags(self.flags)[1])

    def device(self, engine: Engine) -> torch.device:
        """The device that ``val`` uses."""
        from yolov5_ema.detecting.loading import device_of

        if is_ultralytics(engine):
            return device_of(engine, str(self.options().get("device", "")))
        given = self.given(engine).get("device")
        return device_of(engine, (given and given.value) or "")

    def half_flag(self, engine: Engine) -> str:
        """The flag for half precision, if it was given."""
        if is_ultralytics(engine):
            return "--half" if "half" in self.options() else ""
        given = self.given(engine).get("half")
        return given.typed if given else ""

    def precision(self, engine: Engine) -> str:
        """The precision of another runtime than torch, see `runtime_names`."""
        return INT8 if self.int8 else HALF if self.runtime == OPENVINO and self.half_flag(engine) else FLOAT32

    def is_single_class(self, engine: Engine) -> bool:
        """Whether all classes are merged into one."""
        return "single_cls" in (self.options() if is_ultralytics(engine) else self.given(engine))


@contextlib.contextmanager
def words_of_val(*, hidden: bool) -> Iterator[None]:
    """Show or hide what ``val`` prints of itself; its progress and its warnings are shown."""
    from yolov5_ema.cfgs.dry_run import quiet

    with contextlib.ExitStack() as stack:
        if hidden:
            stack.enter_context(quiet())
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        yield


def detect_split(
    request: Request, engine: Engine, dataset: Dataset, folder: Path, *, keep_odd: bool = False
) -> Collected:
    """Run the ``val`` of the weights' own YOLO on a split and return what it detects.

    This does not use `Detector.detect`. The protocols ``yolov5`` and ``ultralytics`` report the figures for the
    detections of ``val``, which differ: ``val`` works in batches, pads images differently and can give a box several
    classes. `load_detector` checks the weights first.

    Args:
        request: what to detect.
        engine: the YOLOv5 in use; see `Request.opened`.
        dataset: the data set; see `Request.opened`.
        folder: ``val`` writes into its subfolder ``val``.
        keep_odd: also detect in images with odd label rows, which ``val`` leaves out by default.

    Raises:
        UserError: as in ``yolov5-ema val`` and `load_detector`, or a detector has more classes than the data set.
    """
    from yolov5_ema.checkpoints.exported_models import form_of
    from yolov5_ema.scripts import running as scripts
    from yolov5_ema.scripts.collecting import collected_detections
    from yolov5_ema.scripts.odd_labels import odd_images_kept
    from yolov5_ema.scripts.other_runtime import model_in_val
    from yolov5_ema.scripts.sliced import sliced_inference
    from yolov5_ema.upstream.data_yaml import opening_once

    forward = _checked_model(request, engine, dataset)
    windows, flags = take_flags(request.flags)
    slicing = contextlib.nullcontext() if windows is None else sliced_inference(engine, "val", *windows)
    if is_ultralytics(engine):
        from yolov5_ema.scripts.yolo_val import collected

        weights, options = Path(request.weights[0]), request.options()
        with slicing:
            return collected(engine, weights, dataset, request.task, options, request.max_det, folder, forward)
    if engine.release == (6, 0) and any(form_of(Path(file)) for file in request.weights):
        return _by_detector(request, engine, dataset, keep_odd)
    line = ["--data", str(dataset.file), "--weights", *request.weights, "--task", request.task]
    place = ["--project", str(folder), "--name", "val"]
    with contextlib.ExitStack() as stack:
        stack.enter_context(opening_once(dataset))
        found = stack.enter_context(collected_detections(engine, request.max_det))
        stack.enter_context(model_in_val(engine, forward))
        stack.enter_context(slicing)
        if keep_odd:
            stack.enter_context(odd_images_kept(engine, dataset))
        scripts.run_script(engine, "val", [*line, *place, *flags])
    if not found.images:
        raise UserError(f"val of {engine} did not process any image")
    return found


def _by_detector(request: Request, engine: Engine, dataset: Dataset, keep_odd: bool) -> Collected:
    """The detections of an exported model with v6.0, whose ``val`` runs only checkpoints."""
    from yolov5_ema.detecting.loading import device_of, load_detector
    from yolov5_ema.detecting.protocol import LoadOptions, Thresholds
    from yolov5_ema.detecting.splits import collected
    from yolov5_ema.evaluation.judged import Rules, labelled_images

    windows, flags = take_flags(request.flags)
    if windows is not None or len(request.weights) > 1:
        raise UserError(f"{request.weights[0]}: with YOLOv5 v6.0, an exported model works alone and without --slice")
    parser = script_parser(engine, "val")
    assert parser is not None
    args = parser.parse_args(flags)
    size, device = (args.imgsz, args.imgsz), device_of(engine, args.device)
    how = LoadOptions(device, size, args.half, names=dataset.names, as_val=True)
    detector = load_detector(request.weights[0], how, engine=engine)
    _check_classes(request, engine, dataset, request.weights[0], len(detector.names))
    thresholds = Thresholds(args.conf_thres, args.iou_thres, request.max_det, augment=args.augment)
    files = labelled_images(dataset, request.task, Rules(keep_odd)).files.values()
    return collected(detector, files, thresholds, single_class=args.single_cls)


def rules_of(engine: Engine | None) -> dict[str, str]:
    """The rules of the protocols that changed between releases: those of the YOLO in use, else the newest."""
    from yolov5_ema.evaluation import ultralytics, yolov5

    rules = {YOLOV5: yolov5.RELEASES[-1], ULTRALYTICS: ultralytics.RULES[-1]}
    if engine is None:
        return rules
    if is_ultralytics(engine):
        from yolov5_ema.scripts.yolo_val import rules_of as rules_of_ultralytics

        return {**rules, ULTRALYTICS: rules_of_ultralytics(engine)}
    return {**rules, YOLOV5: yolov5.rules_of(engine.release)}


def judged_images(dataset: Dataset, split: str, rules: Rules, hint: str = "") -> LabelledImages:
    """The images of a split to evaluate. Prints which are left out, and which are kept that YOLOv5's val leaves out."""
    from yolov5_ema.evaluation.judged import labelled_images, words_of, words_of_kept

    judged = labelled_images(dataset, split, rules)
    total = len(dataset.images(split))
    if judged.left_out:
        print(f"yolov5-ema: {words_of(judged.left_out, total)}{hint}", file=sys.stderr)
    if judged.kept:
        print(f"yolov5-ema: {words_of_kept(judged.kept, total)}", file=sys.stderr)
    return judged


def compared_with(
    found: Collected, judged: LabelledImages, dataset: Dataset, split: str, protocols: Sequence[str], single_class: bool
) -> tuple[dict[str, TruthSet], dict[str, dict[str, Predictions]]]:
    """The ground truth and the detections of each image, by protocol; with ``single_class``, of one class only."""
    from yolov5_ema.evaluation import sources
    from yolov5_ema.evaluation.records import Predictions

    truths = sources.dataset_truths(dataset, split, protocols, judged)
    if single_class:
        truths = {protocol: sources.single_class(truth) for protocol, truth in truths.items()}
    cut_off = {key: Predictions.of(found.of(file)) for key, file in judged.files.items()}
    by_protocol = dict.fromkeys(protocols, cut_off)
    if "ultralytics" in protocols and found.raw:
        none = Detections()
        by_protocol["ultralytics"] = {k: Predictions.of(found.raw.get(file, none)) for k, file in judged.files.items()}
    return truths, by_protocol


def add_source(flags: Flags) -> None:
    """Add ``--weights`` and ``--predictions``, of which one is needed, and ``--engine``."""
    flags.add_argument("--weights", nargs="+", metavar="FILE", help="detector(s) to run with the val of their YOLO")
    add_engine(flags)
    add_runtime(flags, None)
    flags.add_argument(
        "--predictions",
        type=Path,
        metavar="FILE_OR_FOLDER",
        help="instead of --weights: detections that were saved before",
    )


def check_source(args: argparse.Namespace, rest: Sequence[str]) -> None:
    """Raise a UserError unless one of the flags of `add_source` was given; flags for val need ``--weights``."""
    if bool(args.weights) == bool(args.predictions):
        raise UserError("give either --weights, to run a detector, or --predictions, to read saved detections")
    if (args.runtime or args.int8) and not args.weights:
        raise UserError(f"{f'--runtime {args.runtime}' if args.runtime else '--int8'} needs --weights")
    if rest and not args.weights:
        raise UserError(f"unknown flags: {' '.join(rest)} (YOLOv5's own flags need --weights)")


def _checked_model(request: Request, engine: Engine, dataset: Dataset) -> Forward | None:
    """Refuse weights that ``val`` cannot use; the model to put into ``val``, if not torch's own runs.

    Weights that ``val`` downloads, and formats that only ``val`` can run, are left to ``val``.
    """
    from yolov5_ema.checkpoints.exported_models import form_of
    from yolov5_ema.detecting.loading import is_read, load_detector
    from yolov5_ema.detecting.protocol import LoadOptions

    asked = None if request.runtime == TORCH else request.runtime
    if request.int8 and asked is None:
        raise UserError("--int8 needs --runtime onnx or openvino")
    hindrance = _why_torch(request, engine)
    if asked not in (None, AUTO) and hindrance:
        raise UserError(f"--runtime {asked} does not work with {hindrance}")
    forward = None
    for file in request.weights:
        form = form_of(Path(file))
        if asked not in (None, AUTO, form) and form is not None:
            raise UserError(f"--runtime {asked}: {file} is exported already, for {form}; leave --runtime out")
        if form or not is_read(file, engine) or not Path(file).is_file():
            continue
        detector = load_detector(file, LoadOptions(request.device(engine)), engine=engine)
        _check_classes(request, engine, dataset, file, len(detector.names))
        if asked is not None and not hindrance:
            forward = _other_forward(detector, engine, request, dataset.images(request.task))
    return forward


def _why_torch(request: Request, engine: Engine) -> str:
    """What only torch can do of a request; an empty text if there is nothing."""
    given = request.options() if is_ultralytics(engine) else request.given(engine)
    only = ("augment",) if request.precision(engine) == HALF else ("augment", "half")
    several = "several --weights" if len(request.weights) > 1 else ""
    return several or next((f"--{flag}" for flag in only if flag in given), "")


def _other_forward(detector: Detector, engine: Engine, request: Request, images: Sequence[Path]) -> Forward | None:
    """The detector's model in the runtime that was asked for; None if that is torch."""
    from yolov5_ema.data.image_files import read_image
    from yolov5_ema.detecting.choosing import set_runtime

    readable = (pixels for pixels, _ in map(read_image, images) if pixels is not None)
    name = set_runtime(detector, engine, request.runtime, len(images), readable, request.precision(engine))
    return None if name == TORCH else detector.forward


def _check_classes(request: Request, engine: Engine, dataset: Dataset, file: str, known: int) -> None:
    if known > len(dataset.names) and not request.is_single_class(engine):
        raise UserError(
            f"{file} has {counted(known, 'class')}, but {dataset.file} has only {len(dataset.names)}: they do not "
            "belong together"
        )
