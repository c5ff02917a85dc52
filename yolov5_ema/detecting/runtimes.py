"""The libraries that run exported models: onnxruntime, OpenVINO, and torch for TorchScript.

Each takes one image and returns the first output of the model.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from yolov5_ema.checkpoints.exported_models import check_exported, form_of, load_torchscript
from yolov5_ema.errors import UserError
from yolov5_ema.texts import first_line

_PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino"}


class Runtime(Protocol):
    """A loaded exported model.

    Attributes:
        shape: the shape of its input, (N, 3, H, W); None for a dimension that it leaves open.
    """

    shape: tuple[int | None, ...]

    def run(self, batch: np.ndarray) -> torch.Tensor:
        """The model's first output, float32 on the CPU, for a batch of float32 with values from 0 to 1."""


def loaded(file: Path, device: torch.device, metadata: Mapping[str, Any]) -> Runtime:
    """Load an exported model; its content is checked before.

    Args:
        file: an ONNX file, a TorchScript file, or OpenVINO's folder or ``.xml``.
        device: where the model runs; OpenVINO runs on the CPU.
        metadata: what the file says of itself.

    Raises:
        UserError: the library is not installed, or cannot load the file.
        CheckpointError: the file holds what no exported detector needs.
    """
    form = form_of(file) or ""
    if form in _PACKAGES and importlib.util.find_spec(_PACKAGES[form]) is None:
        raise UserError(f"{file} needs the package {_PACKAGES[form]}: pip install {_PACKAGES[form]}")
    try:
        return _RUNTIMES[form](file, device, metadata)
    except UserError:
        raise
    except Exception as error:
        # the libraries have their own kinds of errors for a file that they cannot read
        raise UserError(f"{file} cannot be loaded: {first_line(error)}") from error


class _Onnx:
    def __init__(self, file: Path, device: torch.device, metadata: Mapping[str, Any]) -> None:
        import onnxruntime

        check_exported(file, "onnx")
        wanted = ["CUDAExecutionProvider"] if device.type == "cuda" else []
        there = onnxruntime.get_available_providers()
        self._session = onnxruntime.InferenceSession(
            str(file), providers=[*(name for name in wanted if name in there), "CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0]
        self.shape = tuple(side if isinstance(side, int) else None for side in self._input.shape)

    def run(self, batch: np.ndarray) -> torch.Tensor:
        half = self._input.type == "tensor(float16)"
        output = self._session.run(None, {self._input.name: batch.astype(np.float16) if half else batch})[0]
        return torch.from_numpy(np.asarray(output, dtype=np.float32))


class _OpenVino:
    def __init__(self, file: Path, device: torch.device, metadata: Mapping[str, Any]) -> None:
        import openvino

        check_exported(file, "xml")
        graph = file if file.suffix == ".xml" else next(iter(sorted(file.glob("*.xml"))), None)
        if graph is None:
            raise UserError(f"{file} holds no .xml of OpenVINO")
        # exact numbers, as those of the other formats; OpenVINO would compute in bfloat16 on some CPUs
        self._compiled = openvino.Core().compile_model(str(graph), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        shape = self._compiled.input(0).get_partial_shape()
        self.shape = tuple(None if side.is_dynamic else int(side.get_length()) for side in shape)

    def run(self, batch: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.array(self._compiled(batch)[0], dtype=np.float32))


class _TorchScript:
    def __init__(self, file: Path, device: torch.device, metadata: Mapping[str, Any]) -> None:
        self._device = device
        self._model = load_torchscript(file, map_location=device).eval()
        shape: Any = metadata.get("shape")
        is_said = isinstance(shape, list) and len(shape) == 4
        self.shape = tuple(int(side) for side in shape) if is_said else (None,) * 4
        self._half = next(iter(self._model.parameters()), torch.zeros(0)).dtype == torch.float16

    @torch.no_grad()
    def run(self, batch: np.ndarray) -> torch.Tensor:
        x = torch.from_numpy(batch).to(self._device)
        output = self._model(x.half() if self._half else x)
        while isinstance(output, (list, tuple)):
            output = output[0]
        return torch.as_tensor(output, dtype=torch.float32).cpu()


_RUNTIMES: dict[str, Any] = {"onnx": _Onnx, "openvino": _OpenVino, "torchscript": _TorchScript}
