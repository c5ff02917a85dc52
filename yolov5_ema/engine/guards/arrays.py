"""``np.load(…, allow_pickle=True)`` and ``np.save``: label caches lie in the data set, which may be a stranger's."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np

from yolov5_ema.data.label_caches import NOTES, UnusableCache, read_label_cache
from yolov5_ema.engine.quirks.base import Quirk, SourceModule, by_absence
from yolov5_ema.errors import UserError
from yolov5_ema.files import whole_files
from yolov5_ema.upstream.patching import Patches


def load(file: Any, mmap_mode: Any = None, allow_pickle: bool = False, **options: Any) -> Any:
    """`np.load`, without pickles; a label cache is read without unpickling it.

    Raises:
        FileNotFoundError: there is none.
        UserError: an array that stands for an image is none.
        pickle.UnpicklingError: it is no label cache as YOLOv5 writes them of this data set. Why is printed, and
            YOLOv5 looks at the labels anew.
    """
    if not allow_pickle:
        return _picture(np.load(file, mmap_mode, allow_pickle=False, **options), file)
    held = np.empty((), dtype=object)
    try:
        held[()] = _of_these_images(read_label_cache(file), sys._getframe(1).f_locals.get("self"))
    except (UnusableCache, UserError) as error:
        print(f"WARNING: {file} is not used: {error}. The labels are read anew.", file=sys.stderr)
        raise pickle.UnpicklingError(str(error)) from None
    return held


def _of_these_images(cache: dict[str, Any], dataset: Any) -> dict[str, Any]:
    """A cache that names no other image than the data set does: YOLOv5 goes on with those of the cache."""
    listed = getattr(dataset, "im_files", None) or getattr(dataset, "img_files", None)
    if listed is None:
        return cache
    other = next(iter(cache.keys() - set(listed) - NOTES), None)
    if other is not None:
        raise UnusableCache(f"it names {other[:200]!r}, which is no image of the data set")
    return cache


def _picture(array: Any, file: Any) -> Any:
    """What lies beside an image as ``.npy`` is taken for the image, decoded."""
    is_one = isinstance(array, np.ndarray) and array.dtype == np.uint8 and array.ndim == 3 and array.size
    if not is_one or array.shape[2] != 3:
        raise UserError(f"{file} is no decoded image, uint8 of shape (height, width, 3); remove it")
    return array


def save(file: Any, array: Any, *args: Any, **kwargs: Any) -> None:
    """`np.save`; the file is replaced whole, and a link that stands in its place is not followed."""
    if not isinstance(file, (str, os.PathLike)):
        np.save(file, array, *args, **kwargs)
        return
    place = Path(os.fspath(file))
    if place.suffix != ".npy":
        place = place.with_name(f"{place.name}.npy")
    with whole_files([place]) as (draft,), draft.open("wb") as stream:
        np.save(stream, array, *args, **kwargs)


def _needed(module: SourceModule) -> str | None:
    if {"np.load", "np.save"} & module.code.names and "np" in module.code.own_names:
        return "it loads arrays that lie in the data set, or saves them there"
    return None


def _apply(module: SourceModule, patches: Patches) -> None:
    patches.view(module.module, "np", load=load, save=save)


ARRAYS = Quirk(
    name="arrays",
    symptom="labels/train.cache of a data set runs the code in it; a link beside it is written through",
    versions="all",
    needed=_needed,
    settled=by_absence,
    apply=_apply,
)
