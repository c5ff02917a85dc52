"""What worker processes that start from nothing need: YOLOv5 importable before they unpickle any of it.

A spawned worker (Windows, macOS; Python 3.14 everywhere) gets YOLOv5's functions and datasets as
references to be imported. Here these references lead through this module, which installs the shim first.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import yolov5_ema

ORIGINALS: dict[tuple[str, str], Callable[..., Any]] = {}


def call(root: str, module: str, name: str, *args: Any) -> Any:
    """Call a function of YOLOv5's, given by names, in whatever process this is."""
    _join(root, module)
    return ORIGINALS[module, name](*args)


def rebuild(root: str, module: str, name: str) -> Any:
    """An empty object of a class of YOLOv5's; unpickling fills it."""
    cls = getattr(_join(root, module), name)
    return cls.__new__(cls)


def _join(root: str, module: str) -> Any:
    yolov5_ema.install(root)
    return importlib.import_module(module)
