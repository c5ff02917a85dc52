"""ultralytics' predict and val on overlapping windows of large images, without editing the package.

Its predictor and its validator detect in an image as usual. For an image that is larger than a window, the subclasses
here also let them detect in each window, scaled like an image of its own. `merged_views` then combines the boxes, so
that everything that follows (pictures, files, figures) uses the merged ones. This works for every format and every
detection head, with or without non-maximum suppression.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from yolov5_ema.data.slicing import Window, windows
from yolov5_ema.errors import UserError
from yolov5_ema.scripts.window_views import BATCH, merged_views, native_pixels
from yolov5_ema.scripts.yolo_val import is_stretched, placement, rows_of
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.patching import Patches


@contextmanager
def sliced_yolo(engine: Engine, size: int, overlap: float) -> Iterator[None]:
    """See `yolov5_ema.scripts.sliced.sliced_inference`; for models that are loaded or used in the ``with`` block."""
    with Patches() as patches:
        patches.wrap(engine.module("engine.model").Model, "_smart_load", _loaded, _Slicing(engine, size, overlap))
        yield


@dataclass(frozen=True)
class _Slicing:
    engine: Engine
    size: int
    overlap: float

    def windows(self, shape: Sequence[int]) -> list[Window]:
        """The windows of an image with this height and width."""
        return windows(int(shape[1]), int(shape[0]), self.size, self.overlap)


def _loaded(load: Callable[..., Any], slicing: _Slicing, model: Any, key: str) -> Any:
    """The class of a part of a model: ``predictor``, ``validator`` or another."""
    base = load(model, key)
    sliced = {"predictor": _predictor, "validator": _validator}.get(key)
    if sliced is None:
        return base
    if model.task != "detect":
        file = model.ckpt_path or model.model_name
        raise UserError(f"--slice: {file} is a model for the task {model.task}; only detectors are sliced")
    return sliced(base, slicing)


def _predictor(base: Any, slicing: _Slicing) -> Any:
    class Predictor(base):
        def postprocess(self, preds: Any, img: Any, orig_imgs: Any, *args: Any, **kwargs: Any) -> Any:
            results = super().postprocess(preds, img, orig_imgs, *args, **kwargs)
            for result in results:
                cut = slicing.windows(result.orig_shape)
                if len(cut) == 1:
                    continue
                found = []
                for some in _batches(cut, self.model, len(img)):
                    found += self._in_windows(result.orig_img, some)
                options = {"agnostic": self.args.agnostic_nms, "max_det": self.args.max_det}
                result.update(boxes=merged_views(result.boxes.data, found, cut, result.orig_shape, **options))
            return results

        def _in_windows(self, pixels: np.ndarray, some: Sequence[Window]) -> list[torch.Tensor]:
            """What is found in each window, (n, 6), in pixels of the image."""
            crops = [pixels[top:bottom, left:right] for left, top, right, bottom in some]
            images = self.preprocess(crops)
            with Patches() as patches:
                patches.set(self, "batch", ([""] * len(crops), crops, [""] * len(crops)))
                results = super().postprocess(self.model(images, augment=self.args.augment), images, crops)
            return [_moved(result.boxes.data, window) for result, window in zip(results, some)]

    Predictor.__name__ = base.__name__
    return Predictor


def _validator(base: Any, slicing: _Slicing) -> Any:
    scale_boxes = slicing.engine.module("utils.ops").scale_boxes

    class Validator(base):
        def init_metrics(self, model: Any) -> None:
            self._model = model
            super().init_metrics(model)

        def preprocess(self, batch: Any) -> Any:
            self._batch = super().preprocess(batch)
            return self._batch

        def postprocess(self, preds: Any) -> Any:
            found = super().postprocess(preds)
            return [self._merged(index, pred) for index, pred in enumerate(found)]

        def _merged(self, index: int, pred: Any) -> Any:
            shape = self._batch["ori_shape"][index]
            cut = slicing.windows(shape)
            if len(cut) == 1:
                return pred
            pixels = native_pixels(self._batch["im_file"][index])
            found = []
            for some in _batches(cut, self._model, len(self._batch["img"])):
                found += self._in_windows(pixels, some)
            rows = rows_of(pred)
            gain, pad = map(rows.new_tensor, placement(self._batch, index, stretched=is_stretched(self)))
            options = {"agnostic": self.args.single_cls or self.args.agnostic_nms, "max_det": self.args.max_det}
            whole = torch.cat([(rows[:, :4] - pad) / gain, rows[:, 4:]], dim=1)
            best = merged_views(whole, found, cut, shape, **options)
            return _like(pred, torch.cat([best[:, :4] * gain + pad, best[:, 4:]], dim=1))

        def _in_windows(self, pixels: np.ndarray, some: Sequence[Window]) -> list[torch.Tensor]:
            """What is found in each window, (n, 6), in pixels of the image."""
            crops = [pixels[top:bottom, left:right] for left, top, right, bottom in some]
            boxed = np.stack([self._letterbox(image=crop) for crop in crops]).transpose(0, 3, 1, 2)[:, ::-1]
            like = self._batch["img"]
            images = torch.from_numpy(np.ascontiguousarray(boxed)).to(like.device).to(like.dtype) / 255
            preds = super().postprocess(self._model(images, augment=self.args.augment))
            found = []
            for pred, crop, window in zip(preds, crops, some):
                rows = rows_of(pred)
                rows[:, :4] = self._in_crop(rows[:, :4], images.shape[2:], crop.shape)
                found.append(_moved(rows, window))
            return found

        @property
        def _letterbox(self) -> Any:
            """What scales and pads a window: as little as possible, if the model takes any size."""
            stretched, fixed = is_stretched(self), _has_fixed_size(self._model)
            size, stride = tuple(self._batch["img"].shape[2:]), int(self._model.stride)
            if not stretched and not fixed:
                check_imgsz = slicing.engine.module("utils.checks").check_imgsz
                size = tuple(check_imgsz(self.args.imgsz, stride=stride, min_dim=2))
            # by position: the third parameter, whether images are stretched, was renamed
            letterbox = slicing.engine.module("data.augment").LetterBox
            return letterbox(size, not stretched and not fixed, stretched, True, True, stride)

        def _in_crop(self, boxes: torch.Tensor, boxed: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
            """Boxes in pixels of the model's input, as pixels of a window, cut off at its border."""
            if not is_stretched(self):
                return scale_boxes(boxed, boxes, shape)
            (height, width), (tall, wide) = shape[:2], boxed
            most = boxes.new_tensor([width, height] * 2)
            return (boxes * most / boxes.new_tensor([wide, tall] * 2)).clamp(min=0).minimum(most)

    Validator.__name__ = base.__name__
    return Validator


def _batches(cut: Sequence[Window], model: Any, images: int) -> Iterator[Sequence[Window]]:
    """The windows in parts that the model can take at once."""
    count = images if _has_fixed_size(model) else max(BATCH, images)
    for start in range(0, len(cut), count):
        yield cut[start : start + count]


def _has_fixed_size(model: Any) -> bool:
    """Whether the model, in ultralytics' ``AutoBackend``, was exported for one size of images."""
    is_pt = model.pt if hasattr(model, "pt") else model.format == "pt"
    return not is_pt and not getattr(model, "dynamic", False)


def _moved(rows: torch.Tensor, window: Window) -> torch.Tensor:
    """Detections in pixels of a window, (n, 6 or more), as (n, 6) in pixels of the image."""
    left, top, _, _ = window
    return rows[:, :6].float() + rows.new_tensor([left, top, left, top, 0, 0], dtype=torch.float32)


def _like(pred: Any, rows: torch.Tensor) -> Any:
    """Detections, (n, 6), in the form in which the release has them; see `rows_of`."""
    if not isinstance(pred, dict):
        return rows
    found = {"bboxes": rows[:, :4], "conf": rows[:, 4], "cls": rows[:, 5]}
    return {**{key: value.new_zeros((len(rows), *value.shape[1:])) for key, value in pred.items()}, **found}
