"""``yolov5-ema demo``: all steps from images to an ONNX file, on a small data set that the demo draws.

Each step prints and runs a command that a user would type.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from yolov5_ema.cli.command import Command, add_device, add_image_size, add_output, check_at_least_one
from yolov5_ema.errors import UserError
from yolov5_ema.runs import RunFolder
from yolov5_ema.texts import counted

if TYPE_CHECKING:
    import numpy as np

CFG = "yolov5n-ema.yaml"
HYP = "hyp.demo.yaml"
TRAIN_IMAGES, VAL_IMAGES, TEST_IMAGES = 240, 48, 16
EPOCHS = 18
IMGSZ = 256
BATCH_SIZE = 8
LEAST_MAP50 = 0.5
"""The demo fails if the detector's mAP50 is below this."""


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    """Run the demo. Returns 1 if the detector learned too little; raises a `UserError` if a step failed."""
    _check(args)
    started_s = time.monotonic()

    from yolov5_ema.data.demo import generate

    print(f"Drawing {TRAIN_IMAGES + VAL_IMAGES + TEST_IMAGES} images of {args.imgsz} pixels", flush=True)
    data = generate(
        args.output / f"set-{args.imgsz}-seed{args.seed}",
        seed=args.seed,
        train=TRAIN_IMAGES,
        val=VAL_IMAGES,
        test=TEST_IMAGES,
        imgsz=args.imgsz,
    )
    run = RunFolder.fresh(args.output).path
    scores = _train_and_use(args, data, run)
    agreement = compare_onnx(
        run / "train/weights/best.onnx",
        images=data.parent / "images/test",
        labels=run / "detect/labels",
    )
    print(_summary(run, data, scores, agreement, time.monotonic() - started_s), flush=True)
    if scores.map50 >= LEAST_MAP50:
        return 0
    print(
        f"yolov5-ema demo: FAILED: mAP50 is {scores.map50:.3f}, below {LEAST_MAP50}: "
        f"the detector learned too little in {counted(args.epochs, 'epoch')} (the demo's own setting is {EPOCHS})",
        file=sys.stderr,
    )
    return 1


def _add_flags(parser: argparse.ArgumentParser) -> None:
    add_output(
        parser,
        "folder for the data set and for a folder per run (default: runs/demo)",
        old=["--dir"],
        metavar="DIR",
        default=Path("runs/demo"),
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of the data set (default: 0)")
    parser.add_argument(
        "--epochs",
        type=int,
        default=EPOCHS,
        help=f"training epochs; fewer are too few (default: {EPOCHS})",
    )
    add_image_size(parser, f"side of the images, a multiple of 32 pixels (default: {IMGSZ})", default=IMGSZ)
    add_device(parser, "cpu, or the number of a GPU (default: cpu)", default="cpu")


def _check(args: argparse.Namespace) -> None:
    """Check at the start what would otherwise fail after minutes of training."""
    if args.imgsz < 64 or args.imgsz % 32:
        raise UserError(f"--imgsz must be a multiple of 32, at least 64, not {args.imgsz}")
    check_at_least_one(args, "epochs")
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"the demo needs {' and '.join(missing)}: pip install 'yolov5-ema[export]'")


# --- the steps ------------------------------------------------------------------------------


class Scores(NamedTuple):
    """The mAP of `val` over all classes."""

    map50: float
    map50_95: float


def _train_and_use(args: argparse.Namespace, data: Path, run: Path) -> Scores:
    """Train, validate, detect and export, each with its own command."""
    dataset, best = str(data), str(run / "train/weights/best.pt")
    unseen = str(data.parent / "images/test")
    size = ["--img", str(args.imgsz)]
    place = ["--device", args.device, "--project", str(run), "--name"]
    recipe = ["--hyp", HYP, "--epochs", str(args.epochs), "--batch-size", str(BATCH_SIZE)]
    # The model's anchors suit this data set. Validating after each epoch would take time and is not needed.
    haste = ["--noautoanchor", "--noval", "--cache", "--workers", "2"]
    model = ["--cfg", CFG, "--weights", ""]
    _step("train", ["--data", dataset, *model, *recipe, *haste, *size, *place, "train"])
    printed = _step("val", ["--data", dataset, "--weights", best, *size, *place, "val"])
    # Labels would hide objects this small; the colour shows the class.
    show = ["--save-txt", "--save-conf", "--line-thickness", "1", "--hide-labels"]
    _step("detect", ["--source", unseen, "--weights", best, *show, *size, *place, "detect"])
    _step("export", ["--weights", best, "--include", "onnx", *size])
    return read_scores(printed)


def _step(command: str, flags: list[str]) -> str:
    """Run one of our commands, print it and its output while it runs, and return the output."""
    print(f"\n$ {_program()} {shlex.join([command, *flags])}", flush=True)
    line = [sys.executable, "-m", "yolov5_ema", command, *flags]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    printed = b""
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment) as process:
        assert process.stdout is not None
        while chunk := process.stdout.read1():  # type: ignore[attr-defined]
            printed += chunk
            sys.stdout.buffer.write(chunk)
            sys.stdout.flush()
    if process.returncode:
        raise UserError(f"demo: {command} ended with exit code {process.returncode}; see its output above")
    return printed.decode(errors="replace")


def _program() -> str:
    """How a user runs this installation: ``yolov5-ema`` if the shell finds it, else ``python -m yolov5_ema``."""
    python = Path(sys.executable)
    script = shutil.which("yolov5-ema")
    if script and Path(script).parent == python.parent:
        return "yolov5-ema"
    if Path.cwd() in python.parents:
        python = python.relative_to(Path.cwd())
    return f"{shlex.quote(str(python))} -m yolov5_ema"


_ROW_OF_ALL = re.compile(r"^\s*all" + r"\s+(\S+)" * 6 + r"\s*$", re.MULTILINE)


def read_scores(printed: str) -> Scores:
    """mAP50 and mAP50-95 from the row ``all`` of the table that YOLOv5's `val` prints."""
    rows = _ROW_OF_ALL.findall(printed.replace("\r", "\n"))
    if not rows:
        raise UserError("demo: val printed no row of results for all classes; see its output above")
    return Scores(float(rows[-1][4]), float(rows[-1][5]))


# --- the exported model ---------------------------------------------------------------------


class Agreement(NamedTuple):
    """How closely the exported model agrees with the checkpoint."""

    detections: int
    worst: float
    """The largest difference of a confidence."""


def compare_onnx(onnx: Path, images: Path, labels: Path) -> Agreement:
    """Run the exported model in onnxruntime and check that it finds what `detect` found with the checkpoint.

    Args:
        onnx: the exported model; its input size must be the size of the images.
        images: folder of images.
        labels: folder that ``detect --save-txt --save-conf`` wrote for them: rows of class, x, y, width and height as
            shares of the image, confidence.

    Raises:
        UserError: the file is missing, its output has the wrong shape or is not finite, or a detection is missing.
    """
    import numpy as np
    import onnxruntime

    if not onnx.is_file():
        raise UserError(f"demo: export wrote no {onnx}; see its output above")
    session = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    feed, fetch = session.get_inputs()[0].name, session.get_outputs()[0].name
    differences = np.zeros(0)
    for image in sorted(images.glob("*.jpg")):
        picture = _read_picture(image)
        (rows,) = session.run([fetch], {feed: picture})
        if rows.ndim != 3 or len(rows) != 1 or rows.shape[2] < 6 or not np.isfinite(rows).all():
            raise UserError(f"demo: {onnx} gives output of shape {rows.shape}, or values that are not finite")
        detections = _read_detections(labels / f"{image.stem}.txt")
        found = _confidence_differences(rows[0], detections, picture.shape[2:])
        if (found > 0.01).any():
            raise UserError(f"demo: {onnx} does not find what the checkpoint finds in {image.name}")
        differences = np.append(differences, found)
    return Agreement(len(differences), float(differences.max(initial=0)))


def _read_detections(path: Path) -> np.ndarray:
    """Rows of a label file, (n, 6). Without detections `detect` writes no file, and n is 0."""
    import numpy as np

    return np.loadtxt(path, ndmin=2) if path.is_file() else np.zeros((0, 6))


def _read_picture(path: Path) -> np.ndarray:
    """The network's input: (1, 3, H, W) float32 in RGB, 0 to 1."""
    import cv2
    import numpy as np

    picture = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        raise UserError(f"demo: {path} can no longer be read as an image; delete its folder to draw the set again")
    return np.ascontiguousarray(picture[..., ::-1].transpose(2, 0, 1)[None], dtype=np.float32) / 255


def _confidence_differences(rows: np.ndarray, detections: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """For each detection, the difference in confidence to the nearest row of its class at its place.

    Args:
        rows: (n, 5 + classes): x, y, width and height in pixels, objectness, class scores.
        detections: (m, 6): class, x, y, width and height as shares of the image, confidence.
        shape: height and width of the image in pixels.

    Returns:
        Shape (m,); infinity for a detection without such a row.
    """
    import numpy as np

    height, width = shape
    corners = np.array([[1, 0, -0.5, 0], [0, 1, 0, -0.5], [1, 0, 0.5, 0], [0, 1, 0, 0.5]]).T
    limits = np.array([width, height, width, height])
    # detect clips boxes at the border
    boxes = np.clip(rows[:, :4] @ corners, 0, limits)
    scores = rows[:, 4:5] * rows[:, 5:]
    differences = []
    for kind, *box, confidence in detections:
        apart = np.abs(boxes - (np.array(box) * limits) @ corners).max(1)
        # detect rounds to whole pixels
        here = (scores.argmax(1) == kind) & (apart <= 1)
        differences.append(np.abs(scores[here, int(kind)] - confidence).min(initial=np.inf))
    return np.array(differences).reshape(-1)


# --- the summary ----------------------------------------------------------------------------


def _summary(run: Path, data: Path, scores: Scores, agreement: Agreement, seconds: float) -> str:
    best = run / "train/weights/best.pt"
    return f"""
Done in {seconds / 60:.1f} minutes.
  mAP50       {scores.map50:.3f}
  mAP50-95    {scores.map50_95:.3f}
  checkpoint  {best}
  ONNX        {best.with_suffix(".onnx")}
              finds the same {agreement.detections} detections; confidences differ by at most {agreement.worst:.0e}
  detections  {run / "detect"}  (one colour for each class)
  curves      {run / "train/results.png"}, {run / "val"}

Your own data: write a YAML like {data}
(path, train, val, nc, names; a labels/ folder next to images/), then
  {_program()} train --data my.yaml --cfg yolov5s-ema.yaml --weights '' --img 640 --batch-size 16 --epochs 100
  {_program()} val --data my.yaml --weights runs/train/exp/weights/best.pt --img 640
  {_program()} detect --source my_images/ --weights runs/train/exp/weights/best.pt --img 640
  {_program()} export --weights runs/train/exp/weights/best.pt --include onnx --img 640"""


COMMAND = Command(
    "demo",
    "draw a small data set, then train, validate, detect and export; takes minutes on a CPU",
    _run,
    _add_flags,
    description="Draw a small data set of tiny objects, train a nano YOLOv5 with EMA blocks on it, validate, "
    "detect, export to ONNX and run the exported model. Every command is printed, so that you can use it on "
    "your own data.",
)
