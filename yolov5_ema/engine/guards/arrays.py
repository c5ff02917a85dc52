"""``np.load(…, allow_pickle=True)`` and ``np.save``: their files lie in the data set, which may come from anybody."""

from __future__ import annotations

import logging
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np

from yolov5_ema.data.label_caches import NOTES, UnusableCache, read_label_cache
from yolov5_ema.engine.quirks.base import Quirk, by_absence
from yolov5_ema.errors import UserError
from yolov5_ema.files import whole_files

_LOGGER = logging.getLogger(__name__)


def load(file: Any, mmap_mode: Any = None, allow_pickle: bool = False, **options: Any) -> Any:
    """`np.load` without pickles; a label cache is read without unpickling it.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: an array that should be a decoded image is not one.
        pickle.UnpicklingError: the file is not a label cache that YOLOv5 wrote for this data set. The reason is
            printed, and YOLOv5 reads the labels again.
    """
    if not allow_pickle:
        return _picture(np.load(file, mmap_mode, allow_pickle=False, **options), file)
    held = np.empty((), dtype=object)
    try:
        held[()] = _of_these_images(read_label_cache(file), sys._getframe(1).f_locals.get("self"))
    except (UnusableCache, UserError) as error:
        _LOGGER.warning("WARNING: %s is not used: %s. The labels are read again.", file, error)
        raise pickle.UnpicklingError(str(error)) from None
    return held


def _of_these_images(cache: dict[str, Any], dataset: Any) -> dict[str, Any]:
    """Refuse a cache that names an image outside of the data set: YOLOv5 would use the cache's list of images."""
    listed = getattr(dataset, "im_files", None) or getattr(dataset, "img_files", None)
    if listed is None:
        return cache
    other = next(iter(cache.keys() - set(listed) - NOTES), None)
    if other is not None:
        raise UnusableCache(f"it names {other[:200]!r}, which is not an image of the data set")
    return cache


def _picture(array: Any, file: Any) -> Any:
    """Check an array: YOLOv5 uses an ``.npy`` file next to an image as the decoded image."""
    is_one = isinstance(array, np.ndarray) and array.dtype == np.uint8 and array.ndim == 3 and array.size
    if not is_one or array.shape[2] != 3:
        raise UserError(f"{file} is not a decoded image, uint8 of shape (height, width, 3); remove it")
    return array


def save(file: Any, array: Any, *args: Any, **kwargs: Any) -> None:
    """`np.save`, but the file is replaced in one step, and a link in its place is not followed."""
    if not isinstance(file, (str, os.PathLike)):
        np.save(file, array, *args, **kwargs)
        return
    place = Path(os.fspath(file))
    if place.suffix != ".npy":
        place = place.with_name(f"{place.name}.npy")
    with whole_files([place]) as (draft,), draft.open("wb") as stream:
        np.save(stream, array, *args, **kwargs)


ARRAYS = Quirk(
    name="arrays",
    symptom="code in a data set's labels/train.cache is run; a link in place of a file there is written through",
    versions="all",
    needed=lambda module: {"np.load", "np.save"} & module.code.names and "np" in module.code.own_names,
    reason="it loads arrays from the data set, or saves them there",
    settled=by_absence,
    apply=lambda module, patches: patches.view(module.module, "np", load=load, save=save),
)
