"""A stale or unreadable ``labels.cache``, on which the PyPI package 6.0.7 fails instead of reading the labels again."""

from __future__ import annotations

import ast
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from yolov5_ema.engine.quirks.base import Quirk, SourceModule
from yolov5_ema.upstream.source_code import dotted

_DATASET = "LoadImagesAndLabels"
_UNREADABLE = (pickle.UnpicklingError, EOFError, ImportError, KeyError, ValueError, AttributeError)


def _cache_file(dataset: Any) -> Path | None:
    """Where a `LoadImagesAndLabels` that failed in its constructor looked for its cache; None if it had not yet."""
    labels = getattr(dataset, "label_files", None)
    if not labels:
        return None
    paths = dataset.path if isinstance(dataset.path, list) else [dataset.path]
    last = Path(paths[-1])
    return (last if last.is_file() else Path(labels[0]).parent).with_suffix(".cache")


def _is_stale(error: Exception) -> bool:
    # the two asserts that check the cache have no message; every other assert there has one
    return isinstance(error, _UNREADABLE) or (isinstance(error, AssertionError) and not str(error))


def _rescanning(init: Callable[..., None], self: Any, *args: Any, **kwargs: Any) -> None:
    try:
        init(self, *args, **kwargs)
    except Exception as error:
        cache = _cache_file(self)
        if not _is_stale(error) or cache is None or not cache.is_file():
            raise
        cache.unlink()
        init(self, *args, **kwargs)


def _needed(module: SourceModule) -> str | None:
    dataset = module.code.part(_DATASET)
    handlers = dataset.all(ast.ExceptHandler) if dataset is not None else []
    if any(handler.type is not None and dotted(handler.type) == "FileNotFoundError" for handler in handlers):
        return "labels are read again only if their cache is missing, not if it is stale"
    return None


STALE_LABEL_CACHE = Quirk(
    name="stale-label-cache",
    symptom="AssertionError without a message after images or labels changed, or between train and val",
    versions="PyPI 6.0.7",
    needed=_needed,
    settled=lambda module: module.code.defines(_DATASET),
    apply=lambda module, patches: patches.wrap(getattr(module.module, _DATASET), "__init__", _rescanning),
)
