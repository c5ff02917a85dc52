"""The flag ``--engine``, and the arguments of ultralytics for the commands that are YOLOv5's scripts by default."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from yolov5_ema.cli._collector import paused
from yolov5_ema.cli._yolov5 import load_plugins
from yolov5_ema.cli.command import Flags
from yolov5_ema.scripts.yolo_flags import LINES, weights_in, words_of

if TYPE_CHECKING:
    from yolov5_ema.upstream.locate import Engine

YOLOV5, ULTRALYTICS = "yolov5", "ultralytics"
ENGINES = (YOLOV5, ULTRALYTICS)

_MODES = {"detect": "predict"}


def add_engine(flags: Flags, help: str = "") -> None:
    """Add ``--engine``."""
    flags.add_argument(
        "--engine",
        choices=ENGINES,
        help=help or "run YOLOv5 or the package ultralytics (default: what the files that you name are for)",
    )


def add_engine_of_script(flags: Flags) -> None:
    """Add ``--engine`` to a command that runs a script of YOLOv5, or a mode of ultralytics."""
    add_engine(
        flags,
        "run YOLOv5's script with its flags, or ultralytics with its arguments (model=yolo11n-ema.yaml data=coco8.yaml "
        "…); default: ultralytics if there is a model=, or --weights of ultralytics (detect and val)",
    )


@paused()
def start_engine_of(weights: Sequence[str | Path], said: str | None = None) -> Engine:
    """The engine of weights files, with the blocks known to it and the plugins imported; see `engine_for`.

    Raises:
        UserError: a plugin cannot be imported, the engine is not installed, or the files belong to different ones.
    """
    load_plugins()
    from yolov5_ema.detecting.loading import engine_for

    return engine_for(weights, said)


def is_ultralytics(engine: Engine) -> bool:
    """Whether an engine is the package ultralytics."""
    return engine.kind == ULTRALYTICS


def name_of(engine: Engine) -> str:
    """``yolov5`` or ``ultralytics``, which is also the name of the protocol of its ``val``."""
    return ULTRALYTICS if is_ultralytics(engine) else YOLOV5


@paused()
def start_ultralytics() -> Engine:
    """The package ultralytics with the adapter installed, and the plugins imported."""
    load_plugins()
    from yolov5_ema.engine import ultralytics_adapter

    return ultralytics_adapter.install()


def words_for_ultralytics(script: str, args: argparse.Namespace, rest: Sequence[str]) -> list[str] | None:
    """A command line of ``train``, ``val``, ``detect`` or ``export`` as arguments of ultralytics.

    It is one for ultralytics if ``--engine`` says so, if there is a ``model=``, or if ``--weights`` of ``val`` or
    ``detect`` names a file of ultralytics.

    Args:
        script: the name of the command.
        args: the command's own flags, with ``--engine``.
        rest: the other arguments; with ``--weights``, flags of YOLOv5.

    Returns:
        The arguments; None if the line is one for YOLOv5.

    Raises:
        UserError: ultralytics has no counterpart of a flag.
    """
    weights = weights_in(rest) if script in LINES else []
    said = args.engine
    if said is None and any(word.startswith("model=") for word in rest):
        said = ULTRALYTICS
    if said is None and weights:
        from yolov5_ema.checkpoints.recognition import engine_of_weights

        said = ULTRALYTICS if any(engine_of_weights(Path(file)) == ULTRALYTICS for file in weights) else None
    if said != ULTRALYTICS:
        return None
    return words_of(script, rest) if weights else list(rest)


def run_mode(script: str, words: Sequence[str], windows: tuple[int, float] | None = None) -> int:
    """Run ``train``, ``val``, ``detect`` or ``export`` as a mode of ultralytics; returns the exit code.

    Args:
        script: the name of the command.
        words: the arguments for ultralytics.
        windows: size and overlap of the windows to detect in as well; None for none.
    """
    engine = start_ultralytics()
    from yolov5_ema.scripts.sliced import sliced_inference
    from yolov5_ema.scripts.yolo import run_yolo

    with contextlib.nullcontext() if windows is None else sliced_inference(engine, script, *windows):
        return run_yolo([_MODES.get(script, script), *words])
