"""Export to ONNX without ``onnxscript``; and ``torch.has_cuda``, with which v6.0 checks for a GPU."""

from __future__ import annotations

import functools
import inspect

import torch

from yolov5_ema.engine.quirks.base import Quirk, SourceModule, by_absence
from yolov5_ema.upstream.patching import ModuleView, Patches
from yolov5_ema.upstream.source_code import keyword


def _onnx_needed(module: SourceModule) -> str | None:
    exports = module.code.calls("torch.onnx.export")
    if all(keyword(call, "dynamo") is not None for call in exports):
        return None
    dynamo = inspect.signature(torch.onnx.export).parameters.get("dynamo")
    if dynamo is None or not dynamo.default:
        return None
    return f"torch {torch.__version__} exports through onnxscript by default"


def _onnx_settled(module: SourceModule) -> bool:
    """Upstream's newest exports with the package ultralytics, which chooses the exporter itself."""
    return bool(module.code.calls("torch.onnx.export")) or module.code.imports("ultralytics", "torch2onnx")


def _onnx_apply(module: SourceModule, patches: Patches) -> None:
    # YOLOv5 asks for opset 12 or 13 and dynamic_axes; only this exporter follows both
    export = functools.partial(torch.onnx.export, dynamo=False)
    patches.view(module.module, "torch", onnx=ModuleView(torch.onnx, export=export))


ONNX_EXPORTER = Quirk(
    name="onnx-exporter",
    symptom="ONNX: export failure: No module named 'onnxscript'; or another opset than --opset says",
    versions="6.0 to 7.0.14",
    needed=_onnx_needed,
    settled=_onnx_settled,
    apply=_onnx_apply,
)


TORCH_HAS_CUDA = Quirk(
    name="torch-has-cuda",
    symptom="detect on an ONNX file asks for onnxruntime-gpu on a machine without a GPU",
    versions="PyPI 6.0.7",
    needed=lambda module: "torch.has_cuda" in module.code.names,
    reason="torch.has_cuda is deprecated, and true for every CUDA build, with or without a GPU",
    settled=by_absence,
    apply=lambda module, patches: patches.view(module.module, "torch", has_cuda=torch.cuda.is_available()),
)
