"""Export, and inference with what it wrote: ONNX without ``onnxscript``, today's OpenVINO, ``torch.has_cuda``."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
import re
from pathlib import Path
from typing import Any

import torch

from yolov5_ema.engine.patching import ModuleView, Patches
from yolov5_ema.engine.quirks.base import Quirk, SourceModule


def _onnx_needed(module: SourceModule) -> str | None:
    if "torch.onnx.export(" not in module.source or re.search(r"\bdynamo\s*=", module.source):
        return None
    dynamo = inspect.signature(torch.onnx.export).parameters.get("dynamo")
    if dynamo is None or not dynamo.default:
        return None
    return f"torch {torch.__version__} exports through onnxscript unless told otherwise"


def _onnx_apply(module: SourceModule, patches: Patches) -> None:
    # YOLOv5 asks for opset 12 or 13 and dynamic_axes, both of which only this exporter keeps
    export = functools.partial(torch.onnx.export, dynamo=False)
    patches.view(module.module, "torch", onnx=ModuleView(torch.onnx, export=export))


ONNX_EXPORTER = Quirk(
    name="onnx-exporter",
    symptom="ONNX: export failure: No module named 'onnxscript'; or another opset than --opset says",
    versions="6.0 to 7.0.14",
    needed=_onnx_needed,
    apply=_onnx_apply,
)


def _openvino_needed(module: SourceModule) -> str | None:
    if not re.search(r"^def export_openvino\(file, metadata, half, prefix=", module.source, re.MULTILINE):
        return None
    if "openvino.inference_engine" not in module.source or importlib.util.find_spec("openvino") is None:
        return None
    if importlib.util.find_spec("openvino.inference_engine") is not None:
        return None
    return "this openvino has no inference_engine and no command mo"


def _openvino_apply(module: SourceModule, patches: Patches) -> None:
    def export_openvino(
        file: Path, metadata: dict[str, Any], half: bool, prefix: str = module.module.colorstr("OpenVINO:")
    ) -> tuple[str, None]:
        import openvino

        folder = Path(str(file).replace(".pt", "_openvino_model"))
        converted = openvino.convert_model(file.with_suffix(".onnx"))
        folder.mkdir(parents=True, exist_ok=True)
        openvino.save_model(converted, folder / file.with_suffix(".xml").name, compress_to_fp16=half)
        module.module.yaml_save(folder / file.with_suffix(".yaml").name, metadata)
        return f"{folder}{os.sep}", None

    patches.set(module.module, "export_openvino", module.module.try_export(export_openvino))


OPENVINO_CONVERTER = Quirk(
    name="openvino-converter",
    symptom="OpenVINO: export failure: No module named 'openvino.inference_engine'",
    versions="7.0",
    needed=_openvino_needed,
    apply=_openvino_apply,
)


def _has_cuda_needed(module: SourceModule) -> str | None:
    if "torch.has_cuda" not in module.source:
        return None
    return "torch.has_cuda is deprecated, and true of every CUDA build, GPU or not"


def _has_cuda_apply(module: SourceModule, patches: Patches) -> None:
    patches.view(module.module, "torch", has_cuda=torch.cuda.is_available())


TORCH_HAS_CUDA = Quirk(
    name="torch-has-cuda",
    symptom="detect on an ONNX file asks for onnxruntime-gpu on a machine without a GPU",
    versions="6.0",
    needed=_has_cuda_needed,
    apply=_has_cuda_apply,
)
