"""What a checkpoint may hold: the allow-lists, and what else differs between the programs that write checkpoints.

`yolov5_ema.checkpoints.loading` reads the checkpoints of every program in the same way. `Rules` holds the differences.
"""

from __future__ import annotations

import enum
import importlib
import inspect
import pickle
import sys
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from torch import nn

from yolov5_ema.blocks import by_timm, common, registry
from yolov5_ema.blocks.inside import Attended
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.weights.checkpoint_files import PickleFile
from yolov5_ema.weights.kinds import Kind
from yolov5_ema.weights.paths import PATHS

CLASS_MODULES = ("models.common", "models.experimental", "models.yolo")
"""The modules of YOLOv5 whose classes a checkpoint holds."""
# wrappers that open files when they are built
_NEVER_IN_A_CHECKPOINT = {"AutoShape", "DetectMultiBackend"}


@dataclass(frozen=True)
class Rules:
    """What the checkpoints of one program may hold, and what is said of others.

    Attributes:
        whose: what such a file is called, after "no".
        allowed: the allowed classes and functions among those that a file names, by name.
        advice: what the user can do about names that are not allowed; without names, about other content.
        other_kind: what a file of another kind is; None for a checkpoint of this program.
        empty: names of classes that a file may call without arguments, and then fills.
        aliases: context in which a trusted file is unpickled.
    """

    whose: str
    allowed: Callable[[set[str]], Mapping[str, Any]]
    advice: Callable[[set[str]], str]
    other_kind: Callable[[PickleFile, Path], Kind | None]
    empty: frozenset[str] = frozenset()
    aliases: Callable[[], AbstractContextManager[None]] = nullcontext


def allow_list(engine: Engine, names: Container[str] = ()) -> list[Any]:
    """The classes and functions that a checkpoint may use, as ``(object, dotted name)`` pairs for torch.

    Args:
        engine: the YOLOv5 in use.
        names: those that the checkpoint uses; layers of timm are allowed only with the blocks that are made of them.
    """
    allowed: dict[str, Any] = {}
    for name in CLASS_MODULES:
        module = engine.module(name)
        # v7.0 keeps old names too: Model is DetectionModel
        for attribute, cls in _module_classes(module):
            allowed[f"{name}.{attribute}"] = cls
            allowed[f"yolov5.{name}.{attribute}"] = cls
    for later, cls in _later_names(engine):
        allowed[f"models.yolo.{later}"] = cls
        allowed[f"yolov5.models.yolo.{later}"] = cls
    allowed.update(plain_names(names))
    return [(value, name) for name, value in allowed.items()]


def plain_names(names: Container[str] = ()) -> dict[str, Any]:
    """What the checkpoints of every program may use, by name: torch's layers, the blocks, numbers, sets and paths.

    Args:
        names: those that a checkpoint uses, see `allow_list`.
    """
    allowed: dict[str, Any] = {}
    for cls in [*_torch_layers(), *_block_classes(), *by_timm.classes_for(names)]:
        allowed[f"{cls.__module__}.{cls.__qualname__}"] = cls
    allowed.update(_numpy_globals())
    allowed["builtins.getattr"] = _forward_of
    allowed["builtins.set"] = set
    allowed.update(PATHS)
    return allowed


def _forward_of(cls: type, name: str) -> Any:
    """A ``getattr`` that can only read a layer's forward or a constant: a Segment head holds ``Detect.forward``."""
    if inspect.isclass(cls) and issubclass(cls, enum.Enum):
        return cls[name]
    if not (inspect.isclass(cls) and issubclass(cls, nn.Module) and name == "forward"):
        raise pickle.UnpicklingError(f"Weights only load failed: getattr of {cls!r}, {name!r}")
    return cls.forward


def _later_names(engine: Engine) -> Iterator[tuple[str, type]]:
    """Names that v6.2 gave to classes of earlier releases, so that earlier releases load later checkpoints too."""
    yolo = engine.module("models.yolo")
    if not hasattr(yolo, "DetectionModel"):
        yield "DetectionModel", yolo.Model


def _module_classes(module: ModuleType) -> Iterator[tuple[str, type]]:
    for attribute, cls in vars(module).items():
        if not inspect.isclass(cls) or not issubclass(cls, nn.Module):
            continue
        if cls.__module__ == module.__name__ and cls.__name__ not in _NEVER_IN_A_CHECKPOINT:
            yield attribute, cls


def _torch_layers() -> Iterator[type]:
    for cls in vars(nn).values():
        if inspect.isclass(cls) and issubclass(cls, nn.Module):
            yield cls
    yield nn.modules.linear.NonDynamicallyQuantizableLinear


def _block_classes() -> Iterator[type]:
    """The registered blocks, the module classes of which they are made, and `Attended`."""
    yield Attended
    yield from (cls for _, cls in _module_classes(common))
    for name in registry.list_blocks():
        block = registry.get_block(name)
        home = sys.modules.get(block.__module__)
        yield block
        if home is not None:
            yield from (cls for _, cls in _module_classes(home))


def _numpy_globals() -> dict[str, Any]:
    multiarray = importlib.import_module("numpy._core.multiarray" if _has_numpy_core() else "numpy.core.multiarray")
    found: dict[str, Any] = {"numpy.ndarray": np.ndarray, "numpy.dtype": np.dtype}
    for name in ("scalar", "_reconstruct"):
        function = getattr(multiarray, name)
        found[f"numpy.core.multiarray.{name}"] = function
        found[f"numpy._core.multiarray.{name}"] = function
    for code in "?bhilqBHILQefd":
        cls = type(np.dtype(code))
        found[f"{cls.__module__}.{cls.__qualname__}"] = cls
    return found


def _has_numpy_core() -> bool:
    return int(np.__version__.split(".")[0]) >= 2
