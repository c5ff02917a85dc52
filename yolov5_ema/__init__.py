"""Attention blocks (EMA, CA, CBAM, SA, ECA, NAM, SE) for YOLOv5 detectors, without editing YOLOv5.

Example:
    >>> import yolov5_ema
    >>> block = yolov5_ema.create_block("EMA", 256, groups=16)
    >>> yolov5_ema.list_blocks("E*")
    ['ECA', 'ELA', 'EMA']
"""

from __future__ import annotations

import importlib
import logging
import multiprocessing
from typing import TYPE_CHECKING, Any

from yolov5_ema._moved import support_old_names
from yolov5_ema.settings import read

__version__ = "0.1.0"

# a program that uses the package decides what it shows of its messages
logging.getLogger(__name__).addHandler(logging.NullHandler())

if TYPE_CHECKING:
    from yolov5_ema.blocks import (  # noqa: F401
        CA,
        CBAM,
        ECA,
        EMA,
        NAM,
        SA,
        SE,
        create_block,
        get_block,
        list_blocks,
        register_block,
    )
    from yolov5_ema.classification import create_classifier  # noqa: F401
    from yolov5_ema.detecting.loading import load  # noqa: F401
    from yolov5_ema.engine.shim import install, installed, is_installed, uninstall  # noqa: F401
    from yolov5_ema.errors import CheckpointError, ConfigError, EngineNotFoundError, UserError  # noqa: F401
    from yolov5_ema.upstream.locate import Engine, locate  # noqa: F401

# where each public name lives; imported on first use, so that `yolov5-ema --help` does not import torch
_PUBLIC = {
    **dict.fromkeys(("CA", "CBAM", "ECA", "EMA", "NAM", "SA", "SE"), "blocks"),
    **dict.fromkeys(("create_block", "get_block", "list_blocks", "register_block"), "blocks"),
    **dict.fromkeys(("install", "installed", "is_installed", "uninstall"), "engine.shim"),
    **dict.fromkeys(("Engine", "locate"), "upstream.locate"),
    **dict.fromkeys(("CheckpointError", "ConfigError", "EngineNotFoundError", "UserError"), "errors"),
    "create_classifier": "classification",
    "load": "detecting.loading",
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})


def _join_parent() -> None:
    """In a spawned worker of a process that has the shim: install it here too.

    A worker unpickles YOLOv5's datasets, so YOLOv5 must be importable in it; the worker re-imports
    this package because it is what the main process ran.
    """
    active = read("active")
    if active and multiprocessing.parent_process() is not None:
        shim = importlib.import_module(f"{__name__}.engine.shim")
        shim.install(active)


_join_parent()
support_old_names()
