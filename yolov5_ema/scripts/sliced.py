"""YOLOv5's detect and val on overlapping windows of large images, without editing either script.

The script works as before: it letterboxes an image, calls the model, runs non-maximum suppression and scales the boxes
back. After each call of the model on the image, this module also calls the model on windows of the native image. It
converts their raw predictions to coordinates of the letterboxed image, and adds them to those of the image. So every
flag of the script keeps its meaning.

YOLOv5's own suppression runs separately on the predictions of the image and of each window. `merge` combines the
results. Boxes of the same window have already been compared, and both stay. Boxes of different windows show the same
object if they overlap well, or if at least half of the worse view lies in the better one. Views are ordered by rank,
then by confidence. The best rank is an object that is whole in a window, then one that the whole image shows smaller
than a window does, then one that a window cuts.

sahi's own postprocessing is not used: its greedy merging joins any two boxes of a class if half of one lies in the
other. In a crowd, this removes people who stand in front of others. docs/slicing.md has the figures.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.hooks import RemovableHandle

from yolov5_ema.data.slicing import Window, check_window, windows
from yolov5_ema.errors import UserError
from yolov5_ema.scripts.window_views import (
    BATCH,
    Origin,
    from_letterbox,
    merged,
    native_pixels,
    suppressed_by_rank,
    to_letterbox,
    to_native,
)
from yolov5_ema.scripts.yolo_sliced import sliced_yolo
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.patching import ModuleView, Patches
from yolov5_ema.upstream.ultralytics import NAME as ULTRALYTICS

SCRIPTS = ("detect", "val")

Predict = Callable[[torch.Tensor], torch.Tensor]
"""From images (n, 3, H, W) from 0 to 1 to raw predictions (n, rows, 5 + classes), with boxes x, y, w, h in pixels."""


@contextmanager
def sliced_inference(engine: Engine, script: str, size: int = 640, overlap: float = 0.2) -> Iterator[None]:
    """Within a ``with`` block, let a script of YOLOv5, or a mode of ultralytics, also predict on windows of its images.

    Results for images that are not larger than a window do not change.

    Args:
        engine: the YOLOv5 with the shim installed, or ultralytics with the adapter installed.
        script: ``detect`` or ``val``; call its ``run`` inside the block, or ``predict`` or ``val`` of a model of
            ultralytics.
        size: width and height of a window in native pixels; each window is scaled to the script's image size.
        overlap: share of a window, from 0 to below 1, that the next one repeats.

    Raises:
        UserError: the size or overlap gives no windows, or the script cannot be sliced; raised by ``run`` if the format
            of the weights cannot be used with slices.

    Example:
        >>> with sliced_inference(engine, "val", size=640, overlap=0.2):  # doctest: +SKIP
        ...     val.run(data="data.yaml", weights="best.pt", imgsz=640)
    """
    check_window(size, overlap, "--slice")
    if script not in SCRIPTS:
        raise UserError(f"--slice: {script} of {engine} cannot be sliced; {' and '.join(SCRIPTS)} can")
    if engine.kind == ULTRALYTICS:
        with sliced_yolo(engine, size, overlap):
            yield
        return
    module = engine.module(script)
    with Patches() as patches:
        _Slicer(engine, size, overlap).attach(module, patches)
        yield


@dataclass
class Frame:
    """A native image that the script is about to predict on.

    Attributes:
        shape: height and width in pixels.
        pixels: a function that reads the image, (height, width, 3) in BGR.
        ratio_pad: what val passes to ``scale_coords``; None in detect, where ``scale_coords`` computes it from the
            shapes.
    """

    shape: tuple[int, int]
    pixels: Callable[[], np.ndarray]
    ratio_pad: tuple[tuple[float, float], tuple[float, float]] | None = None

    def gain_and_pad(self, height: int, width: int) -> tuple[float, float, float]:
        """The factor from native to letterboxed pixels, and the left and top border in pixels."""
        if self.ratio_pad is not None:
            (gain, _), (left, top) = self.ratio_pad
            return float(gain), float(left), float(top)
        gain = min(height / self.shape[0], width / self.shape[1])
        return gain, (width - self.shape[1] * gain) / 2, (height - self.shape[0] * gain) / 2


class Fixed(NamedTuple):
    """What a model takes in one way only: the height and width of images, and their number.

    TorchScript is traced for one shape; ONNX, OpenVINO and others also for one number.
    """

    shape: bool
    number: bool


class _Slicer:
    """The state of one run of a script: the current images, and the source of each row of the last prediction."""

    def __init__(self, engine: Engine, size: int, overlap: float) -> None:
        self._engine = engine
        self._size = size
        self._overlap = overlap
        self._letterbox: Any = None
        self._hooks: list[RemovableHandle] = []
        self._forget()

    def _forget(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()
        self._frames: list[Frame] = []
        self._origins: list[Origin] | None = None
        self._conf_thres = 0.0
        self._imgsz: Any = 640
        self._stride = 32
        self._inside = False

    def attach(self, module: ModuleType, patches: Patches) -> None:
        """Wrap what a script module calls: its run, loaders, models and suppression."""
        augmentations = self._engine.module("utils.augmentations")
        self._letterbox = augmentations.letterbox
        patches.wrap(module, "run", self._run, module)
        patches.wrap(module, "non_max_suppression", self._suppression)
        for name in ("LoadImages", "LoadStreams", "LoadScreenshots"):
            if hasattr(module, name):
                patches.set(module, name, self._watched_source(getattr(module, name)))
        if hasattr(module, "create_dataloader"):
            patches.wrap(module, "create_dataloader", self._watched_loader)
        for name in ("attempt_load", "DetectMultiBackend"):
            if hasattr(module, name):
                patches.set(module, name, self._watched_model(getattr(module, name)))

    # --- the run ---

    def _run(self, run: Callable[..., Any], module: ModuleType, *args: Any, **kwargs: Any) -> Any:
        self._forget()
        given = inspect.signature(run).bind(*args, **kwargs)
        given.apply_defaults()
        options = given.arguments
        self._conf_thres = float(options["conf_thres"])
        if not hasattr(module, "DetectMultiBackend"):
            _refuse_other_formats(options, self._engine)
        if options.get("model") is not None:  # the caller passes a model, as training does
            self._watch_model(options["model"])
        if options.get("dataloader") is not None:
            options["dataloader"] = _WatchedLoader(options["dataloader"], self._note_batch)
        try:
            with Patches() as inner:
                if _is_onnx(options) and not hasattr(module, "DetectMultiBackend"):
                    self._watch_onnxruntime(inner)
                return run(*given.args, **given.kwargs)
        finally:
            self._forget()

    # --- the images ---

    def _watched_source(self, base: type) -> type:
        slicer = self

        class Watched(base):
            def __next__(self) -> Any:
                item = super().__next__()
                slicer._imgsz, slicer._stride = self.img_size, self.stride
                natives = item[2] if isinstance(item[2], list) else [item[2]]
                slicer._frames = [Frame(x.shape[:2], lambda x=x: x) for x in natives]  # type: ignore[misc]
                return item

        Watched.__name__ = base.__name__
        return Watched

    def _watched_loader(self, create_dataloader: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        loader, dataset = create_dataloader(*args, **kwargs)
        self._imgsz, self._stride = dataset.img_size, dataset.stride
        return _WatchedLoader(loader, self._note_batch), dataset

    def _note_batch(self, loader: Any, batch: Sequence[Any]) -> None:
        self._imgsz, self._stride = loader.dataset.img_size, loader.dataset.stride
        paths, shapes = batch[2], batch[3]
        self._frames = [
            Frame(shape, lambda path=path: native_pixels(path), ratio_pad)  # type: ignore[misc]
            for path, (shape, ratio_pad) in zip(paths, shapes)
        ]

    # --- the model ---

    def _watched_model(self, load: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return self._watch_model(load(*args, **kwargs))

        return wrapper

    def _watch_model(self, model: torch.nn.Module) -> torch.nn.Module:
        self._hooks.append(model.register_forward_hook(self._after_forward, with_kwargs=True))
        return model

    def _after_forward(self, model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Add the rows of the windows to the model's prediction for the whole images."""
        if self._inside or not self._frames:
            return None
        images, *rest = args
        options = {**kwargs, "visualize": False} if kwargs.get("visualize") else kwargs

        def predict(batch: torch.Tensor) -> torch.Tensor:
            return _first(model(batch, *rest, **options))

        is_pt = getattr(model, "pt", True)
        fixed = Fixed(shape=not is_pt, number=not is_pt and not getattr(model, "jit", False))
        rows = self._with_windows(_first(output), images, predict, fixed)
        return None if rows is None else _with_first(output, rows)

    def _watch_onnxruntime(self, patches: Patches) -> None:
        """Watch onnxruntime: v6.0's detect imports it inside a function and makes the session itself."""
        import onnxruntime

        slicer = self

        class Session:
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                self._session = onnxruntime.InferenceSession(*args, **kwargs)

            def __getattr__(self, name: str) -> Any:
                return getattr(self._session, name)

            def run(self, names: Any, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
                output = self._session.run(names, inputs)
                ((key, images),) = inputs.items()

                def predict(batch: torch.Tensor) -> torch.Tensor:
                    return torch.from_numpy(self._session.run(names, {key: batch.numpy()})[0])

                whole = torch.from_numpy(output[0])
                rows = slicer._with_windows(whole, torch.from_numpy(images), predict, Fixed(shape=True, number=True))
                return output if rows is None else [rows.numpy(), *output[1:]]

        patches.set_item(sys.modules, "onnxruntime", ModuleView(onnxruntime, InferenceSession=Session))

    # --- windows ---

    def _with_windows(
        self, whole: torch.Tensor, images: torch.Tensor, predict: Predict, fixed: Fixed
    ) -> torch.Tensor | None:
        """Return the prediction with the rows of the windows added; None if no image is larger than a window.

        Args:
            whole: prediction for the letterboxed images, (n, rows, 5 + classes).
            images: the letterboxed images, (n, 3, H, W).
            predict: calls the model.
            fixed: what the windows must share with these images.
        """
        self._origins = None
        cuts = [windows(f.shape[1], f.shape[0], self._size, self._overlap) for f in self._frames]
        if all(len(cut) == 1 for cut in cuts):
            return None
        if len(self._frames) != len(images):
            raise UserError(
                f"--slice: the model is called on {len(images)} of {len(self._frames)} streams at a time; "
                "give only one --source"
            )
        self._inside = True
        try:
            found = [
                self._rows_of(frame, cut, own, images, predict, fixed)
                for frame, cut, own in zip(self._frames, cuts, whole)
            ]
        finally:
            self._inside = False
        self._origins = [origin for _, origin in found]
        return torch.nn.utils.rnn.pad_sequence([rows for rows, _ in found], batch_first=True)

    def _rows_of(
        self,
        frame: Frame,
        cut: Sequence[Window],
        own: torch.Tensor,
        images: torch.Tensor,
        predict: Predict,
        fixed: Fixed,
    ) -> tuple[torch.Tensor, Origin]:
        """The rows of one image and of its windows, in pixels of the letterboxed image."""
        whole = own[own[:, 4] > self._conf_thres].float()
        gain_and_pad = frame.gain_and_pad(*images.shape[2:])
        natives = list(self._windows_of(frame, cut, images, predict, fixed)) if len(cut) > 1 else []
        origin = Origin.of(from_letterbox(whole, gain_and_pad), natives, cut, frame.shape)
        return torch.cat([whole, *(to_letterbox(native, gain_and_pad) for native in natives)]), origin

    def _windows_of(
        self, frame: Frame, cut: Sequence[Window], images: torch.Tensor, predict: Predict, fixed: Fixed
    ) -> Iterator[torch.Tensor]:
        """The rows of each window, (rows, 5 + classes) with x1, y1, x2, y2 in native pixels."""
        pixels = frame.pixels()
        batch_size = len(images) if fixed.number else max(BATCH, len(images))
        for start in range(0, len(cut), batch_size):
            some = cut[start : start + batch_size]
            boxed = [self._letterboxed(pixels, window, images, fixed) for window in some]
            stack = np.stack([image for image, _, _ in boxed])
            if fixed.number and len(stack) < batch_size:
                stack = np.concatenate([stack, np.zeros_like(stack[:1]).repeat(batch_size - len(stack), 0)])
            batch = torch.from_numpy(stack).to(images.device).to(images.dtype) / 255
            for window, (_, ratio, pad), rows in zip(some, boxed, predict(batch)):
                kept = rows[rows[:, 4] > self._conf_thres].float()
                yield to_native(kept, window, ratio, pad)

    def _letterboxed(
        self, pixels: np.ndarray, window: Window, images: torch.Tensor, fixed: Fixed
    ) -> tuple[np.ndarray, float, tuple[float, float]]:
        """A window as input of the model, (3, H, W) in RGB, with its scale factor and its borders in pixels."""
        left, top, right, bottom = window
        target = tuple(images.shape[2:]) if fixed.shape else self._imgsz
        image, ratio, pad = self._letterbox(
            pixels[top:bottom, left:right], target, stride=self._stride, auto=not fixed.shape
        )
        return np.ascontiguousarray(image.transpose(2, 0, 1)[::-1]), float(ratio[0]), pad

    # --- suppression ---

    def _suppression(self, suppress: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._origins is None:
            return suppress(*args, **kwargs)
        given = inspect.signature(suppress).bind(*args, **kwargs)
        given.apply_defaults()
        options = dict(given.arguments)
        prediction = _first(options.pop("prediction"))
        prediction = prediction.flatten(0, -3)  # v6.0 stacks once more with ONNX
        labels = options.pop("labels") or [[]] * len(prediction)
        return [
            _suppressed(suppress, rows, origin, own, options)
            for rows, origin, own in zip(prediction, self._origins, labels)
        ]


def _suppressed(
    suppress: Callable[..., Any], rows: torch.Tensor, origin: Origin, labels: Any, options: dict[str, Any]
) -> torch.Tensor:
    """Run YOLOv5's suppression for each source and rank of one image, and return all boxes, merged, (n, 6)."""
    rows = rows[: len(origin.source)]
    views = []
    for number in range(int(origin.source.max()) + 1 if len(origin.source) else 1):
        chosen = origin.source == number
        given = labels if number == 0 else ()
        views.append(suppressed_by_rank(rows[chosen], origin.rank[chosen], partial(suppress, **options), given))
    return merged(views, agnostic=bool(options["agnostic"]), max_det=options["max_det"])


class _WatchedLoader:
    """A data loader that reports each batch before it passes the batch on."""

    def __init__(self, loader: Any, note: Callable[[Any, Sequence[Any]], None]) -> None:
        self._loader = loader
        self._note = note

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            self._note(self._loader, batch)
            yield batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def _first(output: Any) -> torch.Tensor:
    """The inference output of a model that may also return training outputs."""
    while isinstance(output, (list, tuple)):
        output = output[0]
    return output


def _with_first(output: Any, rows: torch.Tensor) -> Any:
    """The same output structure with another inference output."""
    if not isinstance(output, (list, tuple)):
        return rows
    return type(output)([_with_first(output[0], rows), *output[1:]])


def _weights_name(options: dict[str, Any]) -> str:
    weights = options.get("weights")
    return str(weights[0] if isinstance(weights, (list, tuple)) and weights else weights or "")


def _is_onnx(options: dict[str, Any]) -> bool:
    return Path(_weights_name(options)).suffix.lower() == ".onnx"


def _refuse_other_formats(options: dict[str, Any], engine: Engine) -> None:
    """Refuse formats that v6.0 runs with its own code, which cannot be watched."""
    name = _weights_name(options)
    if options.get("dnn"):
        raise UserError(f"--slice: detect of {engine} cannot be sliced with --dnn; remove --dnn")
    if not options.get("model") and ("torchscript" in name or Path(name).suffix.lower() not in (".pt", ".onnx")):
        raise UserError(f"--slice: {engine} cannot slice with {name}; use the .pt or the .onnx file")
