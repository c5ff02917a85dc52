"""Which runtime runs a checkpoint: torch, or another one that runs an export of it and gives the same.

What another runtime gives is compared with torch for the first image of every shape; the speed is measured once on a
machine, and kept beside the export.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yolov5_ema.checkpoints.exported_models import form_of
from yolov5_ema.detecting.exporting import beside, exported, find_exported, key_of, read_beside, write_beside
from yolov5_ema.detecting.protocol import Detector, Forward, TooThinError, TorchDetector
from yolov5_ema.detecting.quantizing import MOST_IMAGES, quantize
from yolov5_ema.detecting.runtime_names import (
    AUTO,
    FEWEST_IMAGES,
    FLOAT32,
    HALF,
    INT8,
    ONNX,
    OPENVINO,
    TENSORRT,
    TORCH,
    WORTH_EXPORTING,
)
from yolov5_ema.detecting.runtimes import PACKAGES, How, Runtime, half_of_openvino, is_installed, loaded
from yolov5_ema.errors import UserError
from yolov5_ema.kernels.native import processor
from yolov5_ema.reading import parse_json
from yolov5_ema.texts import listed
from yolov5_ema.upstream.locate import Engine

_LOGGER = logging.getLogger(__name__)

# of confidences; and of a box as a share of its size and place: less than a tenth of a pixel
_TOLERANCE = 1e-4
# of boxes, and of confidences; in eight bits, those of a trained yolov5n-ema differ by up to 0.015, and by more than
# 0.25 as OpenVINO computes them with open shapes
_FAR = 0.15
_ROUNDS = 3
_OF_PRECISION = {HALF: (OPENVINO,), INT8: (ONNX, OPENVINO)}


@torch.no_grad()
def set_runtime(
    detector: Detector,
    engine: Engine,
    asked: str | None,
    images: int,
    samples: Iterable[np.ndarray],
    precision: str = FLOAT32,
) -> str:
    """Let a runtime run a detector.

    ``auto`` is the fastest one that is installed and agrees with torch. It is torch for few images, because the others
    take seconds to start, and where a model's export fails.

    Args:
        detector: the detector; an exported model keeps its runtime.
        engine: the YOLO that it belongs to.
        asked: one of `runtime_names.RUNTIMES`, or ``auto``; None: torch for a checkpoint.
        images: the number of images that it will detect in.
        samples: some of them, uint8 of shape (H, W, 3) in BGR; read only as far as they are needed.
        precision: of the runtime that was asked for, see `runtime_names`. What one of less than float32 gives is
            compared loosely.

    Returns:
        The name of the runtime as above, or ``torchscript``.

    Raises:
        UserError: the runtime that was asked for cannot run the detector here, or gives something else than torch.
    """
    if not isinstance(detector, TorchDetector):
        if precision != FLOAT32:
            raise UserError(f"--{precision}: {detector.file} is exported already; give the checkpoint it was made from")
        return _own_runtime(detector.file, asked)
    if precision != FLOAT32 and asked not in _OF_PRECISION[precision]:
        raise UserError(f"--{precision} on a CPU needs --runtime {' or '.join(_OF_PRECISION[precision])}")
    if asked is None or asked == TORCH:
        return TORCH
    module: Any = detector.module
    first = next(module.parameters())
    if asked == AUTO:
        return _automatic(detector, engine, first, images, samples)
    obstacle = _obstacle(asked, first.device)
    if first.dtype != torch.float32 or (precision != FLOAT32 and first.device.type != "cpu"):
        obstacle = "on a GPU, a lower precision is only possible with --runtime torch --half"
    if obstacle:
        raise UserError(f"--runtime {asked}: {obstacle}")
    file = exported(detector, key_of(detector, engine))
    if precision == FLOAT32:
        runtime = _runtime(file, asked, first.device)
        _replace_model(detector, _Checked(runtime, detector.forward, asked, _difference))
        _LOGGER.info("yolov5-ema: %s runs the model", asked)
    else:
        runtime = _of_low_precision(file, asked, precision, _prepared(detector, samples))
        _replace_model(detector, _Checked(runtime, detector.forward, f"{asked} --{precision}", _far_difference))
        _LOGGER.info("yolov5-ema: %s runs the model in %s", asked, precision)
    return asked


def _prepared(detector: TorchDetector, samples: Iterable[np.ndarray]) -> Iterator[torch.Tensor]:
    """Each image as a batch for the model; images that are too narrow for it are left out."""
    for pixels in samples:
        with contextlib.suppress(TooThinError):
            yield detector.batch([detector.prepare(pixels)])


def _of_low_precision(file: Path, name: str, precision: str, batches: Iterator[torch.Tensor]) -> Runtime:
    how = How(torch.device("cpu"), torch.get_num_threads(), half_of_openvino() if precision == HALF else "f32")
    if precision == HALF:
        return loaded(file, how, {}, name)
    quantized = quantize(file, (batch.numpy() for batch in islice(batches, MOST_IMAGES)))
    try:
        return loaded(quantized, how, {}, name)
    finally:
        shutil.rmtree(quantized.parent, ignore_errors=True)


def _own_runtime(file: Path, asked: str | None) -> str:
    own = form_of(file) or "torchscript"
    if asked not in (None, AUTO, own):
        raise UserError(f"--runtime {asked}: {file} is exported already, for {own}; leave --runtime out")
    return own


def _obstacle(name: str, device: torch.device) -> str:
    """Why a runtime cannot run here; an empty text if it can."""
    package = "onnxruntime" if name == TENSORRT else PACKAGES[name]
    if not is_installed(package):
        return f"it needs the package {package}: pip install {package}"
    if name == OPENVINO:
        return "" if device.type == "cpu" else "OpenVINO runs on the CPU here: add --device cpu"
    needed = {TENSORRT: "TensorrtExecutionProvider", ONNX: "CUDAExecutionProvider"}[name]
    if name == TENSORRT and device.type != "cuda":
        return "TensorRT needs a GPU of NVIDIA"
    import onnxruntime

    if device.type == "cuda" and needed not in onnxruntime.get_available_providers():
        return f"on a GPU it needs an onnxruntime with {needed}: pip install onnxruntime-gpu"
    return ""


def _runtime(file: Path, name: str, device: torch.device) -> Runtime:
    providers = ("TensorrtExecutionProvider",) if name == TENSORRT else ()
    streams = torch.get_num_threads() if device.type == "cpu" else 1
    form = OPENVINO if name == OPENVINO else ONNX
    return loaded(file, How(device, streams, providers=providers), {}, form)


def _replace_model(detector: Detector, forward: Forward) -> None:
    detector.forward = forward
    if detector.device.type == "cpu" and len(detector.copies(2)) == 1:
        # one batch at a time: each thread has an image, and another when it has finished the first
        detector.usual_batch = 2 * torch.get_num_threads()


class _Checked:
    """A runtime in the place of torch; the first images of every shape also go through torch, and are compared.

    A model whose export only holds for the shape that it was exported with is so found out.
    """

    def __init__(
        self,
        runtime: Runtime,
        torch_forward: Forward,
        name: str,
        difference: Callable[[torch.Tensor, torch.Tensor], str],
        *,
        is_strict: bool = True,
    ) -> None:
        self._runtime = runtime
        self._torch_forward = torch_forward
        self._name = name
        self._difference = difference
        self._is_strict = is_strict
        self._agrees: dict[tuple[int, ...], bool] = {}
        # torch's model belongs to one thread at a time
        self._lock = threading.Lock()

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        shape = tuple(batch.shape[2:])
        with self._lock:
            if shape not in self._agrees:
                self._agrees[shape] = self._compared(batch)
            if not self._agrees[shape]:
                return self._torch_forward(batch)
        return _run(self._runtime, batch)

    def _compared(self, batch: torch.Tensor) -> bool:
        # on a CPU each image runs by itself
        some = batch[:1] if batch.device.type == "cpu" else batch
        difference = self._difference(_run(self._runtime, some), self._torch_forward(some))
        if not difference:
            return True
        size = f"{batch.shape[3]} x {batch.shape[2]} pixels"
        if self._is_strict:
            raise UserError(f"--runtime {self._name} gives something else than torch for {size}: {difference}")
        if all(self._agrees.values()):
            _LOGGER.warning(
                "yolov5-ema: warning: torch runs images of %s: %s gives something else: %s",
                size,
                self._name,
                difference,
            )
        return False


def _run(runtime: Runtime, batch: torch.Tensor) -> torch.Tensor:
    return runtime.run(batch.cpu().numpy()).to(batch.device)


def _difference(found: torch.Tensor, expected: torch.Tensor) -> str:
    """How a runtime's output differs from torch's; an empty text if it does not, except for rounding."""
    expected = expected.float()
    if found.shape != expected.shape:
        return f"an output of {tuple(found.shape)} instead of {tuple(expected.shape)}"
    if torch.allclose(found, expected, _TOLERANCE, _TOLERANCE):
        return ""
    return f"values differ by up to {(found - expected).abs().max().item():.2g}"


def _far_difference(found: torch.Tensor, expected: torch.Tensor) -> str:
    """How the output of a lower precision differs from torch's by more than rounding can explain."""
    expected = expected.float()
    if found.shape != expected.shape:
        return f"an output of {tuple(found.shape)} instead of {tuple(expected.shape)}"
    # of a box relative to its place and size, of a confidence not: there are many more small ones than large ones
    difference = (found - expected).abs() / expected.abs().clamp(min=1)
    is_box = expected.abs() > 1
    # each by itself: of 80 classes, a box is four of 85 values
    kinds = {"boxes": difference[is_box], "confidences": difference[~is_box]}
    means = {kind: values.mean().item() for kind, values in kinds.items() if len(values)}
    far = (f"values of {kind} differ by {mean:.0%} on average" for kind, mean in means.items() if not mean <= _FAR)
    return next(far, "")


# --- the fastest -----------------------------------------------------------------------------


def _automatic(
    detector: TorchDetector, engine: Engine, first: torch.nn.Parameter, images: int, samples: Iterable[np.ndarray]
) -> str:
    others = [name for name in (OPENVINO, ONNX) if not _obstacle(name, first.device)]
    if not others or images < FEWEST_IMAGES or first.dtype != torch.float32:
        return TORCH
    key = key_of(detector, engine)
    if images < WORTH_EXPORTING and find_exported(key) is None:
        return TORCH
    image = next(_prepared(detector, samples), None)
    if image is None:
        return TORCH
    batch = image.repeat(torch.get_num_threads(), 1, 1, 1)
    own = detector.forward
    try:
        file = exported(detector, key)
        opened = functools.cache(lambda name: _runtime(file, name, first.device))
        verdict = beside(key, f"{_machine(first.device)}.json")
        seconds = _known(verdict, others) or _measured(verdict, others, opened, own, batch)
        name = min((name for name, taken in seconds.items() if taken is not None), key=lambda name: seconds[name] or 0)
        if name != TORCH:
            _replace_model(detector, _Checked(opened(name), own, name, _difference, is_strict=False))
    except UserError as error:
        _LOGGER.warning("yolov5-ema: warning: torch runs the model: %s", error)
        return TORCH
    shown = listed(f"{other} {taken * 1e3:.0f} ms" for other, taken in seconds.items() if taken is not None)
    _LOGGER.info("yolov5-ema: %s runs the model (for an image: %s)", name, shown)
    return name


Seconds = dict[str, float | None]
"""For each runtime the seconds for an image; None if it does not give what torch gives."""


def _known(verdict: Path, others: Sequence[str]) -> Seconds | None:
    """What was measured before for these runtimes on this machine."""
    try:
        found = parse_json(read_beside(verdict).encode())
    except ValueError:
        return None
    if not isinstance(found, dict) or set(found) != {TORCH, *others} or not isinstance(found[TORCH], float):
        return None
    return found if all(taken is None or isinstance(taken, float) for taken in found.values()) else None


def _measured(
    verdict: Path, others: Sequence[str], opened: Callable[[str], Runtime], own: Forward, batch: torch.Tensor
) -> Seconds:
    seconds: Seconds = {TORCH: _seconds(own, batch)}
    expected = own(batch)
    for name in others:
        runtime = opened(name)
        run = functools.partial(_run, runtime)
        difference = _difference(run(batch), expected)
        if difference:
            _LOGGER.warning("yolov5-ema: warning: %s gives something else than torch: %s", name, difference)
        seconds[name] = None if difference else _seconds(run, batch)
    write_beside(verdict, json.dumps(seconds).encode())
    return seconds


def _seconds(forward: Forward, batch: torch.Tensor) -> float:
    """The least time for an image of a batch, after one round to warm up: other processes only add to it."""
    taken = []
    for _ in range(1 + _ROUNDS):
        started = time.perf_counter()
        forward(batch)
        taken.append(time.perf_counter() - started)
    return min(taken[1:]) / len(batch)


def _machine(device: torch.device) -> str:
    """A hash of what the speed of runtimes depends on."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES.values() if is_installed(name)]
    parts = [processor().decode(errors="replace"), gpu, str(torch.get_num_threads()), *versions]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]
