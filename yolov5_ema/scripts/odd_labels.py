"""Making YOLOv5's ``val`` keep images that have a malformed label row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from yolov5_ema.data.dataset import Dataset
from yolov5_ema.data.image_size import reason_left_out
from yolov5_ema.upstream.loaders import loader_module
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.patching import Patches

_NOTES = ("hash", "version", "msgs", "results")


def has_odd_images(dataset: Dataset, split: str) -> bool:
    """Whether YOLOv5 may skip one of the images of a split because of its labels."""
    return any(dataset.labels(image).named for image in dataset.images(split))


@contextmanager
def odd_images_kept(engine: Engine, dataset: Dataset) -> Iterator[None]:
    """Inside the ``with`` block, data sets keep images with malformed label rows, with the rows that can be used.

    The label caches that YOLOv5 writes do not change.

    Args:
        engine: the YOLOv5, with the shim installed.
        dataset: the data set that the labels belong to.
    """
    module: Any = engine.module(loader_module(engine))
    with Patches() as patches:
        patches.wrap(module.LoadImagesAndLabels, "cache_labels", _with_odd_images, module, dataset)
        patches.wrap(module.np, "load", _without_caches)
        yield


def _without_caches(load: Callable[..., Any], file: Any, *args: Any, **kwargs: Any) -> Any:
    """`np.load` that finds no label cache, so that the label files themselves are read."""
    if Path(str(file)).suffix == ".cache":
        raise FileNotFoundError(str(file))
    return load(file, *args, **kwargs)


def _with_odd_images(
    cache_labels: Callable[..., dict[str, Any]], module: Any, dataset: Dataset, self: Any, *args: Any, **kwargs: Any
) -> dict[str, Any]:
    found = cache_labels(self, *args, **kwargs)
    files = getattr(self, "im_files", None) or self.img_files
    entries = {file: found.get(file) or _entry(file, module, dataset) for file in files}
    kept = {file: entry for file, entry in entries.items() if entry is not None}
    return {**kept, **{note: found[note] for note in _NOTES if note in found}}


def _entry(file: str, module: Any, dataset: Dataset) -> list[Any] | None:
    """Labels, size and polygons of an image, as YOLOv5 stores them; None if the image itself is unusable."""
    image = Path(file)
    if reason_left_out(image):
        return None
    with Image.open(image) as opened:
        size = module.exif_size(opened)
    return [dataset.labels(image).values.astype(np.float32), size, []]
