"""The libraries that run exported models: onnxruntime, OpenVINO, and torch for TorchScript.

Each takes a batch of images and returns the first output of the model.
"""

from __future__ import annotations

import importlib.util
import threading
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import numpy as np
import torch

from yolov5_ema.checkpoints.exported_models import check_exported, form_of, load_torchscript
from yolov5_ema.errors import UserError
from yolov5_ema.texts import first_line
from yolov5_ema.upstream.openvino_core import openvino_core

PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino"}
"""The package that runs each format; that of TorchScript is torch."""

_FREQUENT = 100
_MOST_SHAPES = 8


class Runtime(Protocol):
    """A loaded exported model; several threads may call it at once.

    Attributes:
        shape: the shape of its input, (N, 3, H, W); None for a dimension that it leaves open.
    """

    shape: tuple[int | None, ...]

    def run(self, batch: np.ndarray) -> torch.Tensor:
        """The model's first output, float32 on the CPU, for a batch of float32 with values from 0 to 1."""


@dataclass(frozen=True)
class How:
    """How an exported model is run.

    Attributes:
        device: where it runs; OpenVINO runs on the CPU.
        streams: how many images of a batch run at the same time on a CPU, each with its share of torch's threads. A
            batch takes less time so than with all threads in one image, and an image gives the same result in any
            batch.
        precision: the type that OpenVINO computes in, where the processor can: ``f32``, ``bf16`` …
        providers: what onnxruntime runs on if it can, before CUDA.
    """

    device: torch.device
    streams: int = 1
    precision: str = "f32"
    providers: tuple[str, ...] = ()


def loaded(file: Path, how: How, metadata: Mapping[str, Any], form: str | None = None) -> Runtime:
    """Load an exported model; its content is checked before.

    Args:
        file: an ONNX file, a TorchScript file, or OpenVINO's folder or ``.xml``.
        how: how it is run.
        metadata: what the file says of itself.
        form: ``openvino`` lets OpenVINO run an ONNX file; None: what the file is made for.

    Raises:
        UserError: the library is not installed, or cannot load the file.
        CheckpointError: the file holds what no exported detector needs.
    """
    form = form or form_of(file) or ""
    if form in PACKAGES and not is_installed(PACKAGES[form]):
        raise UserError(f"{file} needs the package {PACKAGES[form]}: pip install {PACKAGES[form]}")
    try:
        return _RUNTIMES[form](file, how, metadata)
    except UserError:
        raise
    except Exception as error:
        # the libraries have their own kinds of errors for a file that they cannot read
        raise UserError(f"{file} cannot be loaded: {first_line(error)}") from error


def is_installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def half_of_openvino() -> str:
    """The half precision that OpenVINO takes by itself on this processor: ``bf16`` or ``f16``.

    Raises:
        UserError: the processor has none.
    """
    able = openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    found = [name for ability, name in (("BF16", "bf16"), ("FP16", "f16")) if ability in able]
    if not found:
        raise UserError("--half: this processor computes in no half precision; leave --half out")
    return found[0]


def _pool_of(how: How) -> ThreadPoolExecutor | None:
    return ThreadPoolExecutor(how.streams) if how.streams > 1 else None


class _Onnx:
    def __init__(self, file: Path, how: How, metadata: Mapping[str, Any]) -> None:
        import onnxruntime

        check_exported(file, "onnx")
        is_cuda = how.device.type == "cuda"
        wanted = [*how.providers, "CUDAExecutionProvider"] if is_cuda else []
        there = onnxruntime.get_available_providers()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = max(1, torch.get_num_threads() // how.streams)
        # threads that spin while they wait take the processor from those that decode and suppress
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            str(file), options, providers=[*(name for name in wanted if name in there), "CPUExecutionProvider"]
        )
        self._pool = None if is_cuda else _pool_of(how)
        self._input = self._session.get_inputs()[0]
        self.shape = tuple(side if isinstance(side, int) else None for side in self._input.shape)

    def run(self, batch: np.ndarray) -> torch.Tensor:
        if self._pool is None or len(batch) == 1:
            return torch.from_numpy(self._output(batch))
        return torch.from_numpy(np.concatenate(list(self._pool.map(self._output, np.split(batch, len(batch))))))

    def _output(self, batch: np.ndarray) -> np.ndarray:
        half = self._input.type == "tensor(float16)"
        output = self._session.run(None, {self._input.name: batch.astype(np.float16) if half else batch})[0]
        return np.asarray(output, dtype=np.float32)


class _OpenVino:
    def __init__(self, file: Path, how: How, metadata: Mapping[str, Any]) -> None:
        form = "onnx" if file.suffix.lower() == ".onnx" else "xml"
        check_exported(file, form)
        graph = file if file.is_file() else next(iter(sorted(file.glob("*.xml"))), None)
        if graph is None:
            raise UserError(f"{file} holds no .xml of OpenVINO")
        self._core = openvino_core()
        self._model = self._core.read_model(str(graph))
        self._options = {
            # exact numbers, as those of the other formats; OpenVINO would compute in bfloat16 on some CPUs
            "INFERENCE_PRECISION_HINT": how.precision,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": how.streams,
        }
        self._pool = _pool_of(how)
        self._lock = threading.Lock()
        self._seen: Counter[tuple[int, ...]] = Counter()
        self._compiled: dict[tuple[int, ...] | None, Any] = {}
        self._idle: dict[tuple[int, ...] | None, SimpleQueue[Any]] = {}
        # compiled with open shapes, a model in eight bits gives wrong values (OpenVINO 2026.4)
        self._is_quantized = any(operation.get_type_name() == "FakeQuantize" for operation in self._model.get_ops())
        shape = self._model.input(0).get_partial_shape()
        self.shape = tuple(None if side.is_dynamic else int(side.get_length()) for side in shape)

    def run(self, batch: np.ndarray) -> torch.Tensor:
        images = np.split(batch, len(batch))
        outputs = map(self._output, images) if self._pool is None else self._pool.map(self._output, images)
        return torch.from_numpy(np.concatenate(list(outputs)))

    def _output(self, image: np.ndarray) -> np.ndarray:
        with self._lock:
            key = self._key_of(image.shape)
            if key not in self._compiled:
                self._compile(key)
            compiled, idle = self._compiled[key], self._idle[key]
        try:
            request = idle.get_nowait()
        except Empty:
            request = compiled.create_infer_request()
        output = np.array(request.infer({0: image})[0], dtype=np.float32)
        idle.put(request)
        return output

    def _key_of(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """Which of the compiled models takes an image of a shape; None is the one that takes all.

        One that is compiled for a single shape is a fifth faster, but to compile it takes as long as hundreds of images
        gain. So the first shape and any that is frequent get their own; in eight bits, all do.
        """
        if self._is_quantized and None in self.shape:
            return shape
        self._seen[shape] += 1
        is_own = None in self.shape and (len(self._seen) == 1 or self._seen[shape] > _FREQUENT)
        return shape if shape in self._compiled or (is_own and len(self._compiled) < _MOST_SHAPES) else None

    def _compile(self, key: tuple[int, ...] | None) -> None:
        model = self._model.clone()
        if key is not None:
            model.reshape(list(key))
        if len(self._compiled) > _MOST_SHAPES:
            oldest = next(iter(self._compiled))
            del self._compiled[oldest], self._idle[oldest]
        self._compiled[key], self._idle[key] = self._core.compile_model(model, "CPU", self._options), SimpleQueue()


class _TorchScript:
    def __init__(self, file: Path, how: How, metadata: Mapping[str, Any]) -> None:
        self._device = how.device
        self._model = load_torchscript(file, map_location=how.device).eval()
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
