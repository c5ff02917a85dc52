"""Checks around YOLOv5's export: formats that cannot be written, and failures that YOLOv5 only prints."""

from __future__ import annotations

import argparse
import contextlib
import glob
import importlib
import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from yolov5_ema.blocks.registry import block_of
from yolov5_ema.checkpoints import loading as checkpoints
from yolov5_ema.errors import UserError
from yolov5_ema.upstream.locate import Engine

_TENSORFLOW = ("saved_model", "pb", "tflite", "edgetpu", "tfjs")
# the module that a format needs, and what to install for it
_NEEDS = {
    "onnx": {"onnx": "onnx"},
    "openvino": {"onnx": "onnx", "openvino": "openvino"},
    "coreml": {"coremltools": "coremltools"},
    "engine": {"onnx": "onnx", "tensorrt": "tensorrt"},
    "paddle": {"paddle": "paddlepaddle", "x2paddle": "x2paddle"},
    **{name: {"tensorflow": "tensorflow"} for name in _TENSORFLOW},
}
# what each format appends to the name of the weights without .pt, for the files that it writes
_FILES = {
    "torchscript": (".torchscript", ".torchscript.pt"),
    "onnx": (".onnx",),
    "openvino": ("_openvino_model/*.xml",),
    "engine": (".engine",),
    "coreml": (".mlmodel", ".mlpackage"),
    "saved_model": ("_saved_model/*.pb",),
    "pb": (".pb",),
    "tflite": ("-fp16.tflite", "-int8.tflite"),
    "edgetpu": ("*_edgetpu.tflite",),
    "tfjs": ("_web_model/*.json",),
    "paddle": ("_paddle_model/*",),
}


def refuse_impossible_formats(opt: argparse.Namespace, engine: Engine) -> None:
    """Refuse formats that cannot be exported, before anything is built.

    These are: formats that this YOLOv5 does not know (v6.0 skips them silently); TensorFlow formats if the model has
    attention blocks (``models/tf.py`` rebuilds a model row by row in Keras and knows only YOLOv5's own modules); and
    formats whose library or GPU is missing. Lists with commas, such as ``--include onnx,torchscript``, are split, which
    only the PyPI package 7.0.14 does itself.

    Raises:
        UserError: a format cannot be exported; the message names the formats and the reason.
    """
    wanted = opt.include = _wanted(opt)
    known = formats(engine)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise UserError(f"--include {' '.join(unknown)}: {engine} exports {', '.join(known)}")
    tensorflow = [name for name in _TENSORFLOW if name in wanted]
    blocks = _attention_blocks(opt, engine) if tensorflow else []
    if blocks:
        raise UserError(
            f"--include {' '.join(tensorflow)}: YOLOv5 rebuilds the model in TensorFlow with another parser, "
            f"which does not know {', '.join(blocks)}. Export onnx and convert that file instead."
        )
    if "engine" in wanted and (str(opt.device).strip().lower() == "cpu" or not torch.cuda.is_available()):
        raise UserError(
            "--include engine: TensorRT builds an engine only on the GPU that will run it, with --device 0. "
            "Export onnx here, and build the engine from that file on the machine with the GPU."
        )
    for name in wanted:
        _check_libraries(name)


def formats(engine: Engine) -> list[str]:
    """The formats that a YOLOv5 can export to, by the names that ``--include`` takes."""
    export = engine.module("export")
    if hasattr(export, "export_formats"):  # v6.1 and later
        return [name for name in export.export_formats()["Argument"] if name != "-"]
    return [name[len("export_") :] for name in vars(export) if name.startswith("export_")]


def _wanted(opt: argparse.Namespace) -> list[str]:
    return [name for item in opt.include for name in str(item).lower().split(",") if name]


def _attention_blocks(opt: argparse.Namespace, engine: Engine) -> list[str]:
    engine.module("models.yolo")
    checkpoint = checkpoints.load_checkpoint(_weights(opt), "cpu", engine=engine)
    model = checkpoint.get("ema") or checkpoint["model"]
    return sorted(set(filter(None, map(block_of, model.modules()))))


def _check_libraries(name: str) -> None:
    missing = [package for module, package in _NEEDS.get(name, {}).items() if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(f"--include {name} needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def _weights(opt: argparse.Namespace) -> str:
    return str(opt.weights[0] if isinstance(opt.weights, list) else opt.weights)


@contextlib.contextmanager
def all_written(opt: argparse.Namespace, script: str) -> Iterator[None]:
    """After an export, fail if a requested file is missing; YOLOv5 itself only prints such a failure.

    Raises:
        UserError: an export failed; the message names the formats.
    """
    started_s = time.time()
    yield
    if script.split(".")[-1] != "export":
        return
    missing = [name for name in _wanted(opt) if not _is_written(_weights(opt), name, started_s)]
    if missing:
        raise UserError(f"export failed for {', '.join(missing)}; the messages above say why")


def _is_written(weights: str, name: str, started_s: float) -> bool:
    stem = glob.escape(str(Path(weights).with_suffix("")))
    found = [Path(file) for ending in _FILES.get(name, ()) for file in glob.glob(stem + ending)]
    # file systems may store times in whole seconds
    return name not in _FILES or any(file.stat().st_mtime >= started_s - 2 for file in found)
