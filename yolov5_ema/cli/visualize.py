"""``yolov5-ema visualize``: show what the attention blocks of detectors or classifiers do to images."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolov5_ema.class_names import class_numbers
from yolov5_ema.cli._engines import start_engine_of
from yolov5_ema.cli._yolov5 import load_plugins
from yolov5_ema.cli.command import (
    Command,
    add_device,
    add_image_size,
    add_run_folder,
    add_thresholds,
    check_at_least_one,
    check_shares,
)
from yolov5_ema.detecting.sources import find_images
from yolov5_ema.errors import UserError
from yolov5_ema.files import free_names, replacement, write_whole
from yolov5_ema.runs import run_folder
from yolov5_ema.texts import aligned, counted, first_line, first_of

if TYPE_CHECKING:
    import numpy as np

    from yolov5_ema.explain.layers import Layer
    from yolov5_ema.explain.looks import Subject
    from yolov5_ema.explain.page import Entry
    from yolov5_ema.explain.picture import Column

_SHOWN = 20

_EPILOG = """\
Writes one PNG for each image, and index.html with all of them. Several checkpoints are shown side by side: all
detectors, or all classifiers of 'yolov5-ema classify'. A checkpoint without blocks shows Grad-CAM where the others have
a block; if none has a block, at the inputs of Detect, or after the last stage of a classifier. Needs captum:
pip install 'yolov5-ema[explain]'.

Exit code: 0; 1 if some images could not be used in full (they are listed); 2 for a user's mistake, or if no image can
be read (no folder is created then).

examples:
  yolov5-ema visualize --weights best.pt --source images
  yolov5-ema visualize --weights plain/best.pt ema/best.pt --source a.jpg b.jpg --img 320
  yolov5-ema visualize --weights best.pt --source set/images/val --labels --max-images 50
  yolov5-ema visualize --weights runs/classify/exp/weights/best.pt --source cat.jpg --blocks 'layer4*'

More: docs/visualize.md
"""


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    """Draw the pictures and the page. Returns 1 if some images could not be used in full."""
    _check(args)
    from yolov5_ema.explain.gradcam import check_captum
    from yolov5_ema.explain.layers import choose

    check_captum()
    load_plugins()
    images = _images(args)
    subjects = _subjects(args)
    layers = choose([subject.candidates for subject in subjects], args.blocks)
    return _Run(args, subjects, layers, images).carry_out()


def _add_flags(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what")
    what.add_argument("--weights", nargs="+", type=Path, required=True, metavar="FILE", help="checkpoints (.pt)")
    what.add_argument(
        "--source",
        nargs="+",
        required=True,
        metavar="PLACE",
        help="images, folders (including subfolders), quoted globs, or a .txt file with one path per line",
    )
    what.add_argument("--max-images", type=int, metavar="N", help="use only the first N images (default: all)")
    what.add_argument(
        "--blocks",
        nargs="+",
        default=[],
        metavar="NAME",
        help="blocks to show: rows (7), modules (layer4.2.se), names of blocks (EMA), or globs of these (default: all)",
    )
    what.add_argument(
        *("--classes", "--class"),
        nargs="+",
        default=[],
        metavar="NAME",
        help="classes that Grad-CAM explains, by name or number (default: all that a detector finds; "
        "the class that a classifier predicts)",
    )
    what.add_argument(
        "--local",
        action="store_true",
        help="HiResCAM instead of Grad-CAM: weight each position by its own gradient, not by the mean of its channel; "
        "this separates the objects that a detector finds",
    )
    what.add_argument(
        "--labels",
        action="store_true",
        help="also print how much of each map lies inside the labelled boxes (YOLO labels in labels/ next to images/)",
    )
    how = parser.add_argument_group("how a detector is run, as in detect")
    add_image_size(how)
    add_thresholds(how)
    add_device(parser)
    add_run_folder(parser.add_argument_group("the run folder"), "runs/visualize")


def _check(args: argparse.Namespace) -> None:
    check_shares(args, "conf_thres", "iou_thres")
    check_at_least_one(args, "max_images", "imgsz", "max_det")


def _images(args: argparse.Namespace) -> list[str]:
    found = dict.fromkeys(image for source in args.source for image in find_images(source).images)
    images = list(found)[: args.max_images]
    if len(images) < len(found):
        print(f"the first {len(images):,} of {counted(len(found), 'image')}", file=sys.stderr)
    return images


def _subjects(args: argparse.Namespace) -> list[Subject]:
    """The checkpoints, loaded: all detectors, or all classifiers."""
    from yolov5_ema.classification.checkpoints import is_classifier

    of_classifiers = [file for file in args.weights if is_classifier(file)]
    if not of_classifiers:
        return _detectors(args)
    others = [file for file in args.weights if file not in of_classifiers]
    if others:
        raise UserError(
            f"{of_classifiers[0]} is a classifier and {others[0]} is not: they see different parts of an image; "
            "run visualize once for each kind"
        )
    if args.labels:
        raise UserError("--labels works only with detectors: classifiers have no boxes")
    from yolov5_ema.explain.classifiers import Classifier

    device = _device(args.device)
    return [Classifier(file, args.classes, device) for file in args.weights]


def _detectors(args: argparse.Namespace) -> list[Subject]:
    from yolov5_ema.detecting.loading import device_of
    from yolov5_ema.explain.detectors import Detector, Options

    engine = start_engine_of(args.weights)
    device = device_of(engine, args.device)
    options = Options(args.imgsz, args.conf_thres, args.iou_thres, args.max_det, tuple(args.classes))
    return [Detector(engine, file, options, device) for file in args.weights]


def _device(flag: str) -> Any:
    import torch

    if not flag:
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(f"cuda:{flag}" if flag.isdecimal() else flag)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {flag}: there is no such device ({first_line(error)})") from error
    return device


class _Run:
    """One run: it draws one image after the other into its folder."""

    def __init__(
        self,
        args: argparse.Namespace,
        subjects: Sequence[Subject],
        layers: Sequence[Sequence[Layer]],
        images: Sequence[str],
    ) -> None:
        from yolov5_ema.explain.inside import Tally
        from yolov5_ema.explain.layers import in_order

        self._args = args
        self._subjects = subjects
        self._layers = layers
        self._places = in_order(layers)
        self._images = images
        self._folder: Path | None = None
        self._entries: list[Entry] = []
        self._problems: list[tuple[str, str]] = []
        self._taken: set[str] = set()
        self._tally = Tally()

    def carry_out(self) -> int:
        """Draw all images, write the page, report problems and return the exit code."""
        interrupted = False
        with ExitStack() as stack:
            try:
                for number, image in enumerate(self._images, 1):
                    self._show(number, image, stack)
            # Pictures that are drawn are kept, and the page shows them.
            except KeyboardInterrupt:
                interrupted = True
            if self._folder is None:
                self._refuse(interrupted)
            else:
                self._write_page(self._folder)
        return self._report(interrupted)

    def _show(self, number: int, image: str, stack: ExitStack) -> None:
        from yolov5_ema.data.image_files import read_image
        from yolov5_ema.detecting.protocol import TooThinError

        pixels, problem = read_image(image)
        try:
            columns = [] if pixels is None else self._columns(pixels)
        except TooThinError as error:
            columns, problem = [], str(error)
        if problem is not None:
            self._problems.append((image, problem))
        if not columns:
            return
        words = "; ".join(column.look.words for column in columns)
        print(f"image {number}/{len(self._images)} {image}: {words}", flush=True)
        if self._args.labels:
            self._count(image, columns)
        if self._folder is None:
            args = self._args
            self._folder = stack.enter_context(run_folder(args.project, args.name, args.exist_ok))
        self._entries.append(self._drawn(self._folder, image, columns))

    def _columns(self, pixels: np.ndarray) -> list[Column]:
        from yolov5_ema.explain.looks import maps_of
        from yolov5_ema.explain.picture import Column

        columns = []
        for subject, layers in zip(self._subjects, self._layers):
            look = subject.look(pixels)
            maps = {maps.layer.place: maps for maps in maps_of(subject, look, layers, local=self._args.local)}
            columns.append(Column(str(subject.file), look, maps))
        return columns

    def _count(self, image: str, columns: Sequence[Column]) -> None:
        from yolov5_ema.data.dataset import label_path
        from yolov5_ema.data.yolo_format import read_labels
        from yolov5_ema.explain.inside import mask_of

        file = label_path(Path(image))
        rows = read_labels(file, len(self._subjects[0].names))
        if rows.bad:
            self._problems.append(
                (image, f"{counted(len(rows.bad), 'malformed label line')}, the first: {rows.bad[0]}")
            )
        for subject, column in zip(self._subjects, columns):
            wanted = class_numbers(self._args.classes, subject.names, subject.file)
            boxes = [row[1:] for row in rows.values if not wanted or row[0] in wanted]
            self._tally.add(column.title, list(column.maps.values()), mask_of(boxes, column.look.picture.shape[:2]))

    def _drawn(self, folder: Path, image: str, columns: Sequence[Column]) -> Entry:
        from yolov5_ema.explain.page import Entry
        from yolov5_ema.explain.picture import draw

        picture = draw(columns, self._places)
        name = self._free_name(Path(image).stem)
        with replacement(folder / name) as draft:
            draft.write_bytes(picture.png)
        return Entry.of(image, name, picture.size, columns)

    def _free_name(self, stem: str) -> str:
        """``a.png``, or ``a-2.png`` if that name is taken."""
        # Some file systems ignore the case of names.
        name = next(one for one in free_names(stem, ".png") if one.lower() not in self._taken)
        self._taken.add(name.lower())
        return name

    def _refuse(self, interrupted: bool) -> None:
        if interrupted:
            return
        if len(self._problems) == 1:
            raise UserError("--source {}: {}".format(*self._problems[0]))
        raise UserError(f"none of the {len(self._images):,} images can be used:\n{_lines(self._problems)}")

    def _write_page(self, folder: Path) -> None:
        from yolov5_ema.explain.page import page

        args = self._args
        settings = {"checkpoints": ", ".join(map(str, args.weights))}
        if self._subjects[0].is_detector:
            settings["size, thresholds"] = (
                f"{args.imgsz} pixels, scores above {args.conf_thres:g}, overlap up to {args.iou_thres:g}"
            )
        if args.local:
            settings["Grad-CAM"] = "HiResCAM (--local)"
        if args.classes:
            settings["classes"] = ", ".join(args.classes)
        write_whole(folder / "index.html", page(settings, self._entries, self._problems, self._tally.rows()))

    def _report(self, interrupted: bool) -> int:
        if self._args.labels and self._entries:
            self._print_tally()
        if self._folder is not None:
            print(f"{counted(len(self._entries), 'picture')}; open {self._folder / 'index.html'}")
        if self._problems:
            count = len({image for image, _ in self._problems})
            what = f"{count:,} of {counted(len(self._images), 'image')} could not be used in full"
            print(f"visualize: {what}:\n{_lines(self._problems)}", file=sys.stderr)
        if interrupted:
            print("yolov5-ema: interrupted", file=sys.stderr)
            return 130
        return 1 if self._problems else 0

    def _print_tally(self) -> None:
        rows = self._tally.rows()
        if not rows:
            print("no labelled boxes for these images (looked in labels/ next to images/)", file=sys.stderr)
            return
        print(aligned(rows, left=range(len(rows[0]))))


def _lines(problems: Sequence[tuple[str, str]]) -> str:
    return "\n".join(first_of([f"  {image}: {problem}" for image, problem in problems], _SHOWN, "  and {:,} more"))


COMMAND = Command(
    "visualize",
    "draw gate maps and Grad-CAM of each attention block, as pictures and a page",
    _run,
    _add_flags,
    description="Show what each attention block does to an image: its gate, and Grad-CAM of its output.",
    epilog=_EPILOG,
    closes_all=True,
)
