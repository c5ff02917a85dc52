"""Reads and writes YOLOv5 checkpoints without running code from the file.

A YOLOv5 checkpoint is a pickle of whole modules. `load_checkpoint` reads it with ``weights_only=True`` and an
allow-list: the module classes of the YOLOv5 in use, torch's own layers, NumPy's numbers, and the attention blocks. The
allow-list has each class under the name that a clone writes (``models.yolo.Model``) and under the name that the PyPI
package writes (``yolov5.models.yolo.Model``).
"""

from __future__ import annotations

import importlib
import inspect
import io
import os
import pathlib
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import IO, Any, BinaryIO, cast

import numpy as np
import torch
from torch import nn
from torch.serialization import safe_globals

from yolov5_ema.blocks import registry
from yolov5_ema.blocks.inside import Attended
from yolov5_ema.checkpoints.state import check_models, check_modules, check_names, fix_checkpoint
from yolov5_ema.errors import CheckpointError, UserError
from yolov5_ema.files import replacement
from yolov5_ema.settings import read
from yolov5_ema.texts import first_line
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.patching import Patches, holding
from yolov5_ema.weights.checkpoint_files import (
    PickleFile,
    is_archive,
    open_pickles,
    read_once,
    reading,
    refuse_another_reading,
)
from yolov5_ema.weights.foreign_names import ONLY_IF_TRUSTED, advice_for, shown_names
from yolov5_ema.weights.kinds import Kind, names_layers_of_an_old_file, other_kind
from yolov5_ema.weights.mistaken import HEAD, refuse_mistaken
from yolov5_ema.weights.names import taken_by_torch
from yolov5_ema.weights.paths import PATHS
from yolov5_ema.weights.vocabulary import odd_calls, short_storages

_CLASS_MODULES = ("models.common", "models.experimental", "models.yolo")
# wrappers that open files when they are built
_NEVER_IN_A_CHECKPOINT = {"AutoShape", "DetectMultiBackend"}


_said: ContextVar[bool | None] = ContextVar("trust said in Python", default=None)


def is_trusted() -> bool:
    """Whether files are trusted: by `trusting`, ``--trust-checkpoint``, or its environment variable."""
    said = _said.get()
    return bool(read("trust")) if said is None else said


def trusting(trust: bool | None) -> AbstractContextManager[None]:
    """Context manager that overrides the command line: files are trusted, or not. None: no override."""
    return holding(_said, _said.get() if trust is None else trust)


def load_checkpoint(
    file: Any,
    map_location: Any = None,
    *,
    engine: Engine,
    trust: bool | None = None,
    without_model: bool = False,
) -> dict[str, Any]:
    """Read a YOLOv5 checkpoint.

    Args:
        file: path of the ``.pt`` file.
        map_location: as in `torch.load`.
        engine: the YOLOv5 whose classes the checkpoint's modules become.
        trust: unpickle the file without checking what it holds. None: as set on the command line.
        without_model: accept a state dict or a bare model too.

    Returns:
        The saved object: for YOLOv5 a dict with ``model``, ``ema``, ``optimizer``, ``epoch`` …

    Raises:
        CheckpointError: the file is missing or damaged, is not a checkpoint, or holds a class or function that is not
            on the allow-list; the message names it.
    """
    path = pathlib.Path(str(file))
    trust = is_trusted() if trust is None else trust
    content = read_once(path)
    _judge(path, content, engine, trust, without_model)
    content.seek(0)
    checkpoint = _unpickled(path, content, map_location, engine, trust)
    check_modules(checkpoint, path)
    fix_checkpoint(checkpoint)
    check_names(checkpoint, path)
    if not trust:
        check_models(checkpoint, path)
    return checkpoint


def _unpickled(path: pathlib.Path, content: BinaryIO, map_location: Any, engine: Engine, trust: bool) -> dict[str, Any]:
    try:
        if trust:
            options: dict[str, Any] = {"weights_only": False, "pickle_module": _with_any_path()}
            with module_aliases(engine):
                return torch.load(content, map_location=map_location, **options)
        with safe_globals(allow_list(engine)):
            return torch.load(content, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refusal(path, first_line(error))) from error
    except UserError:
        # a trusted file may build a model through the shim
        raise
    except Exception as error:
        # torch and the classes in the file can raise anything for a malformed file
        raise CheckpointError(f"{path} cannot be read: {first_line(error)}") from error


def _with_any_path() -> ModuleType:
    """The module `pickle`, changed so that paths written by any operating system and Python become text."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            return PATHS.get(f"{module}.{name}") or super().find_class(module, name)

    def load(file: Any, **options: Any) -> Any:
        return Unpickler(file, **options).load()

    return _pickle_module(Unpickler=Unpickler, load=load)


def _pickle_module(**instead: Any) -> ModuleType:
    module = ModuleType("yolov5_ema_pickle")
    module.__dict__.update({**vars(pickle), **instead})
    return module


def check_file(path: pathlib.Path, *, engine: Engine, trust: bool | None = None) -> None:
    """Check a checkpoint without unpickling it.

    Raises:
        CheckpointError: as `load_checkpoint`. No code in the file has run.
    """
    with reading(path) as stream:
        _judge(path, stream, engine, is_trusted() if trust is None else trust)


def _judge(path: pathlib.Path, content: BinaryIO, engine: Engine, trust: bool, without_model: bool = False) -> None:
    content.seek(0)
    refuse_mistaken(path, content.read(HEAD))
    if not is_archive(content):
        _check_legacy_file(path, content)
    try:
        opened = open_pickles(path, content)
    except CheckpointError:
        if trust:
            return
        raise
    kind = other_kind(opened, path)
    if not trust:
        _check_allowed(path, opened, kind, engine)
    if not trust and (kind is None or kind.convertible):
        _check_calls(path, opened)
    if kind is not None and not (without_model and kind.convertible):
        raise kind.error(path)
    if not trust:
        refuse_another_reading(path, opened, content)


def _check_allowed(path: pathlib.Path, opened: PickleFile, kind: Kind | None, engine: Engine) -> None:
    known = {name for _, name in allow_list(engine)}
    names = {name for one in opened.pickles for name in one.names}
    unsafe = {name for name in names if name not in known and not taken_by_torch(name)}
    unsafe = {name for name in unsafe if kind is None or not kind.names.fullmatch(name)}
    if unsafe:
        raise CheckpointError(_refusal(path, shown_names(unsafe), advice_for(unsafe, str(engine))))


def _check_calls(path: pathlib.Path, opened: PickleFile) -> None:
    """Refuse harmful uses of allowed names; see `yolov5_ema.weights.vocabulary`."""
    odd = odd_calls(opened.pickles)
    if odd:
        raise CheckpointError(_refusal(path, "; ".join(odd[:5])))
    short = short_storages(opened.root, opened.sizes)
    if short:
        raise CheckpointError(
            f"{path} is cut off or was changed: the storage of tensor {short[0]!r} is shorter than the file says"
        )
    if names_layers_of_an_old_file(opened):
        raise CheckpointError(
            f"{path} has the format of torch before 1.6 and holds layers; torch can load it only if all code in the "
            f"file may run. {ONLY_IF_TRUSTED}"
        )


def _check_legacy_file(path: pathlib.Path, content: BinaryIO) -> None:
    size = content.seek(0, os.SEEK_END)
    content.seek(0)
    if not content.read(1) == b"\x80" or size < 64:
        raise CheckpointError(
            f"{path} is not a PyTorch checkpoint, or is cut off ({size} bytes). Copy or download it again."
        )


def _refusal(path: pathlib.Path, what: str, advice: str = "") -> str:
    return f"{path} holds what no YOLOv5 checkpoint needs: {what}. None of its code was run. " + (
        advice or ONLY_IF_TRUSTED
    )


def allow_list(engine: Engine) -> list[Any]:
    """The classes and functions that a checkpoint may use, as ``(object, dotted name)`` pairs for torch."""
    allowed: dict[str, Any] = {}
    for name in _CLASS_MODULES:
        module = engine.module(name)
        # v7.0 keeps old names too: Model is DetectionModel
        for attribute, cls in _module_classes(module):
            allowed[f"{name}.{attribute}"] = cls
            allowed[f"yolov5.{name}.{attribute}"] = cls
    for later, cls in _later_names(engine):
        allowed[f"models.yolo.{later}"] = cls
        allowed[f"yolov5.models.yolo.{later}"] = cls
    return [*((value, name) for name, value in allowed.items()), *plain_names()]


def plain_names() -> list[Any]:
    """The part of `allow_list` that holds for any YOLO: torch's layers, the blocks, numbers, sets and paths."""
    allowed: dict[str, Any] = {}
    for cls in [*_torch_layers(), *_block_classes()]:
        allowed[f"{cls.__module__}.{cls.__qualname__}"] = cls
    allowed.update(_numpy_globals())
    allowed["builtins.getattr"] = _forward_of
    allowed["builtins.set"] = set
    allowed.update(PATHS)
    return [(value, name) for name, value in allowed.items()]


def _forward_of(cls: type, name: str) -> Any:
    """A ``getattr`` that can only read a layer's forward: a Segment head holds ``Detect.forward``."""
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
    """The registered blocks, the module classes in the same files, of which they are made, and `Attended`."""
    yield Attended
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


@contextmanager
def module_aliases(engine: Engine) -> Iterator[None]:
    """Context manager that makes the engine's modules importable under the names of the other layout too.

    While it loads a checkpoint, the package runs ``from models.yolo import Detect``, which would import every class a
    second time. A clone cannot find ``yolov5.models.yolo`` at all.
    """
    prefix = "" if engine.kind == "package" else "yolov5."
    other = {f"{prefix}{name}": engine.module(name) for name in ("models", "utils", *_CLASS_MODULES)}
    if engine.kind == "clone" and "yolov5" not in sys.modules:
        other["yolov5"] = ModuleType("yolov5")
    with Patches() as patches:
        for name, module in other.items():
            patches.set_item(sys.modules, name, module)
        yield


def with_aliases(load: Callable[..., Any], engine: Engine, *args: Any, **kwargs: Any) -> Any:
    """Call a function of YOLOv5 with `module_aliases`."""
    with module_aliases(engine):
        return load(*args, **kwargs)


def save_checkpoint(checkpoint: Any, file: Any, *, engine: Engine, **options: Any) -> None:
    """`torch.save`, with YOLOv5's classes under names that both clones and the package can read.

    Args:
        checkpoint: the object to save.
        file: a path or an open file. A file at a path is replaced only when the checkpoint is complete.
        engine: the YOLOv5 whose classes are in the checkpoint.
        options: as in `torch.save`.

    Raises:
        UserError: it cannot be written: the disk is full, or the folder is missing or not writable.
    """
    if engine.kind == "package":
        options["pickle_module"] = _portable_pickle(engine)
    if not isinstance(file, (str, os.PathLike)):
        torch.save(checkpoint, file, **options)
        return
    with replacement(file) as draft, open(draft, "wb") as stream:
        _save_to(stream, checkpoint, options)


def _save_to(stream: IO[bytes], checkpoint: Any, options: dict[str, Any]) -> None:
    """`torch.save` that raises the file system's error instead of torch's own, which only follows from it."""
    failures: list[OSError] = []

    class Watched(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            try:
                return stream.write(data)
            except OSError as error:
                failures.append(error)
                raise

    try:
        torch.save(checkpoint, cast(IO[bytes], Watched()), **options)
    except (OSError, RuntimeError):
        if failures:
            raise failures[0] from None
        raise


def _portable_pickle(engine: Engine) -> ModuleType:
    # only the pure Python pickler lets a subclass choose the names of classes
    base: Any = pickle._Pickler

    class Pickler(base):
        def save_global(self, obj: Any, name: str | None = None) -> None:
            relative = engine.relative_name(getattr(obj, "__module__", None) or "")
            if relative not in _CLASS_MODULES:
                super().save_global(obj, name)
                return
            self.write(pickle.GLOBAL + f"{relative}\n{obj.__qualname__}\n".encode())
            self.memoize(obj)

    return _pickle_module(Pickler=Pickler)
