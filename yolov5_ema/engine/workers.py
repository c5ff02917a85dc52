"""Spawned worker processes: YOLOv5 must be importable before they unpickle any of its objects.

A spawned worker (Windows, macOS; Python 3.14 everywhere) gets YOLOv5's functions and data sets as import paths. The
plugin replaces these paths with functions of this module, which install the shim first.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import yolov5_ema

ORIGINALS: dict[tuple[str, str], Callable[..., Any]] = {}


def call(root: str, module: str, name: str, *args: Any) -> Any:
    """Call a function of YOLOv5 by the name of its module and its own name, in any process."""
    _join(root, module)
    return ORIGINALS[module, name](*args)


def rebuild(root: str, module: str, name: str) -> Any:
    """Make an empty object of one of YOLOv5's classes; unpickling fills it."""
    cls = getattr(_join(root, module), name)
    return cls.__new__(cls)


def _join(root: str, module: str) -> Any:
    yolov5_ema.install(root)
    return importlib.import_module(module)
