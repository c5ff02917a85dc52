"""Exported models, which `DetectMultiBackend` of v6.1 and later and ``detect`` of v6.0 load in a dozen formats.

`yolov5_ema.checkpoints.exported_models` says what is checked and why.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import torch

from yolov5_ema.checkpoints.exported_models import (
    check_exported,
    check_names_and_stride,
    load_torchscript,
    read_onnx_network,
)
from yolov5_ema.engine.quirks.base import Quirk, SourceModule, by_absence
from yolov5_ema.upstream.patching import ModuleView, Patches

FORMS = (
    *("pt", "jit", "onnx", "xml", "engine", "coreml", "saved_model"),
    *("pb", "tflite", "edgetpu", "tfjs", "paddle", "triton"),
)
"""The formats, in the order in which YOLOv5 checks for them."""

_OF_V60 = {".onnx": "onnx", ".tflite": "tflite", ".pb": "pb", "": "saved_model"}


def _torchscript_apply(module: SourceModule, patches: Patches) -> None:
    patches.view(module.module, "torch", jit=ModuleView(torch.jit, load=load_torchscript))


TORCHSCRIPT = Quirk(
    name="torchscript",
    symptom="a TorchScript file writes files, or starts threads, while it is loaded or run",
    versions="all",
    needed=lambda module: "torch.jit.load" in module.code.names,
    reason="it loads TorchScript, which is a program",
    settled=by_absence,
    apply=_torchscript_apply,
)


def _exported_apply(module: SourceModule, patches: Patches) -> None:
    theirs = module.module
    if hasattr(theirs, "cv2"):
        read = read_onnx_network(cv2.dnn.readNetFromONNX)
        patches.view(theirs, "cv2", dnn=ModuleView(cv2.dnn, readNetFromONNX=read))
    if not hasattr(theirs, "DetectMultiBackend"):
        patches.wrap(theirs, "check_suffix", _checked_suffix)
        return
    backend = theirs.DetectMultiBackend
    downloads = module.engine.module("utils.downloads")
    name = "_model_type" if hasattr(backend, "_model_type") else "model_type"
    patches.set(backend, name, staticmethod(_checked_form(getattr(backend, name), downloads.attempt_download)))
    patches.wrap(backend, "__init__", _checked_result)


def _checked_form(model_type: Callable[..., Any], download: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap YOLOv5's detection of a file's format: check the file as that format."""

    @functools.wraps(model_type)
    def wrapper(file: Any = "path/to/model.pt", *args: Any, **kwargs: Any) -> Any:
        found = model_type(file, *args, **kwargs)
        form = next((name for name, is_it in zip(FORMS, found) if is_it), "")
        if form not in ("pt", "triton", ""):
            if not Path(str(file)).exists():
                download(file)  # YOLOv5 does this next; the check below needs the file now
            check_exported(Path(str(file)), form)
        return found

    return wrapper


def _checked_result(
    init: Callable[..., Any], self: Any, weights: Any = "yolov5s.pt", *args: Any, **kwargs: Any
) -> None:
    init(self, weights, *args, **kwargs)
    check_names_and_stride(self, Path(str(weights[0] if isinstance(weights, list) else weights)))


def _checked_suffix(check_suffix: Callable[..., Any], file: Any, *args: Any, **kwargs: Any) -> Any:
    """Around the check of suffixes: ``detect`` of v6.0 chooses the format by the suffix."""
    result = check_suffix(file, *args, **kwargs)
    check_exported(Path(str(file)), _OF_V60.get(Path(str(file)).suffix.lower(), ""))
    return result


EXPORTED_MODELS = Quirk(
    name="exported-models",
    symptom="names in the metadata of an ONNX file are run as code; a TensorFlow model or a TensorRT engine runs",
    versions="all",
    needed=lambda module: "cv2.dnn.readNetFromONNX" in module.code.names or module.code.defines("DetectMultiBackend"),
    reason="it loads exported models, and evaluates their metadata",
    apply=_exported_apply,
)
