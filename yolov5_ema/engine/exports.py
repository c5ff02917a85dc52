"""What YOLOv5's export leaves open: formats that cannot be, and failures that it only prints."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import time
from collections.abc import Iterator
from pathlib import Path

from yolov5_ema.blocks import registry
from yolov5_ema.engine import checkpoints
from yolov5_ema.engine.locate import Engine
from yolov5_ema.errors import UserError

_TENSORFLOW = {"saved_model", "pb", "tflite", "edgetpu", "tfjs"}
_SUFFIXES = {"torchscript": (".torchscript", ".torchscript.pt"), "onnx": (".onnx",), "coreml": (".mlmodel",)}


def refuse_what_cannot_be(opt: argparse.Namespace, engine: Engine) -> None:
    """Refuse TensorFlow formats of a model with attention blocks before anything is built.

    YOLOv5's ``models/tf.py`` rebuilds a model row by row in Keras and knows its own modules only.

    Raises:
        UserError: names the formats and the blocks.
    """
    wanted = sorted(_TENSORFLOW & {str(x).lower() for x in opt.include})
    if not wanted:
        return
    weights = opt.weights[0] if isinstance(opt.weights, list) else opt.weights
    importlib.import_module(engine.module_name("models.yolo"))
    checkpoint = checkpoints.load_checkpoint(weights, "cpu", engine=engine)
    model = checkpoint.get("ema") or checkpoint["model"]
    blocks = {registry.get_block(name) for name in registry.list_blocks()}
    found = sorted({type(m).__name__ for m in model.modules() if type(m) in blocks})
    if found:
        raise UserError(
            f"--include {' '.join(wanted)}: YOLOv5 rebuilds the model in TensorFlow with a parser of its own, which "
            f"does not know {', '.join(found)}. Export onnx and convert that file instead."
        )


@contextlib.contextmanager
def all_written(opt: argparse.Namespace, script: str) -> Iterator[None]:
    """After an export: fail if a file that was asked for is not there, which YOLOv5 only prints.

    Raises:
        UserError: names the formats that failed.
    """
    started_s = time.time()
    yield
    if script.split(".")[-1] != "export":
        return
    weights = Path(str(opt.weights[0] if isinstance(opt.weights, list) else opt.weights))
    missing = [name for name in map(str.lower, opt.include) if not _is_written(weights, name, started_s)]
    if missing:
        raise UserError(f"export failed for {', '.join(missing)}; the messages above say why")


def _is_written(weights: Path, name: str, started_s: float) -> bool:
    files = [weights.with_suffix(suffix) for suffix in _SUFFIXES.get(name, ())]
    # file systems may keep times to the second only
    return not files or any(f.is_file() and f.stat().st_mtime >= started_s - 2 for f in files)
