"""The detections from which YOLOv5's ``val`` computes its metrics."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from yolov5_ema.data.detections import Detections
from yolov5_ema.data.workers import all_cores
from yolov5_ema.errors import UserError
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.patching import Patches


@dataclass
class Collected:
    """What one run of ``val`` found.

    Attributes:
        images: the images that ``val`` evaluated, by the paths that it uses; images that it skipped are missing.
        detections: the detections by image, only for images with detections; see `of`.
        raw: the same before boxes were cut off at the border of the image, where ``val`` compares them so.
        figures: P, R, mAP50 and mAP50-95 as ``val`` computed them from these detections.
    """

    images: list[Path] = field(default_factory=list)
    detections: dict[Path, Detections] = field(default_factory=dict)
    raw: dict[Path, Detections] = field(default_factory=dict)
    figures: tuple[float, ...] = ()

    def of(self, image: Path) -> Detections:
        """Return the detections in one of ``images``."""
        return self.detections.get(image, Detections())


@contextmanager
def collected_detections(engine: Engine, max_det: int) -> Iterator[Collected]:
    """Let ``val`` keep up to ``max_det`` detections for each image and draw no plots, and collect what it finds.

    Args:
        engine: the YOLOv5, with the shim installed; run its ``val`` once inside the ``with`` block.
        max_det: the most detections for one image. The limit of v6.0 is 300, and v6.0 has no flag for it.

    Yields:
        An object that is filled when ``val`` has finished.
    """
    val: Any = engine.module("val")
    found = Collected()
    suppress = val.non_max_suppression
    if "max_det" not in inspect.signature(val.run).parameters:
        suppress = functools.partial(suppress, max_det=max_det)

    def around(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(run).bind(*args, **kwargs)
        given.apply_defaults()
        given.arguments.update(callbacks=_callbacks(val, found), plots=False)
        if "max_det" in given.arguments:
            given.arguments["max_det"] = max_det
        result = run(*given.args, **given.kwargs)
        found.figures = tuple(float(figure) for figure in result[0][:4])
        return result

    with Patches() as patches:
        patches.set(val, "non_max_suppression", image_by_image(suppress))
        patches.wrap(val, "create_dataloader", _noting_images, found)
        patches.wrap(val, "run", around)
        yield found


def image_by_image(suppress: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """Wrap YOLOv5's non-maximum suppression so that it is called for one image at a time, on CPUs in several threads.

    For a batch, YOLOv5 skips the images that come after its time limit (10 s in v6.0, less later) and prints only a
    warning. On a slow machine, objects that were found would then count as missed.
    """

    @functools.wraps(suppress)
    def wrapper(prediction: Any, *args: Any, labels: Any = (), **kwargs: Any) -> list[Any]:
        # (n, rows, 5 + classes)
        rows = prediction[0] if isinstance(prediction, (list, tuple)) else prediction
        is_inference, has_gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

        def alone(index: int) -> Any:
            own = [labels[index]] if len(labels) else ()
            # each thread has modes of its own
            with torch.inference_mode(is_inference), torch.set_grad_enabled(has_gradients):
                return suppress(rows[index : index + 1], *args, labels=own, **kwargs)[0]

        with ThreadPoolExecutor(all_cores() if rows.device.type == "cpu" else 1) as pool:
            return list(pool.map(alone, range(len(rows))))

    return wrapper


def _noting_images(create_dataloader: Callable[..., Any], found: Collected, *args: Any, **kwargs: Any) -> Any:
    loader, dataset = create_dataloader(*args, **kwargs)
    files = getattr(dataset, "im_files", None) or dataset.img_files  # img_files before v6.1
    found.images = [Path(file) for file in files]
    return loader, dataset


def _callbacks(val: Any, found: Collected) -> Any:
    def keep(pred: Any, native: Any, path: Path, *_: Any) -> None:
        if path in found.detections:
            raise UserError(f"{path} is evaluated twice")
        found.detections[Path(path)] = Detections.of_rows(native.detach().cpu().float().numpy().copy())

    callbacks = val.Callbacks()
    # v6.0 keeps one table of callbacks for the whole process: those of an earlier run would be called too
    callbacks._callbacks = {hook: [] for hook in callbacks._callbacks}
    callbacks.register_action("on_val_image_end", name="yolov5_ema", callback=keep)
    return callbacks
