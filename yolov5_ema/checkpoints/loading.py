"""Reads and writes the checkpoints of YOLOv5 and of the package `ultralytics` without running code from the file.

Such a checkpoint is a pickle of whole modules. `load_checkpoint` reads it with ``weights_only=True`` and an allow-list:
the module classes of the YOLOv5 or the ultralytics in use, torch's own layers, NumPy's numbers, and the attention
blocks (`yolov5_ema.checkpoints.allowed`). The allow-list has each class of YOLOv5 under the name that a clone writes
(``models.yolo.Model``) and under the name that the PyPI package writes (``yolov5.models.yolo.Model``).
"""

from __future__ import annotations

import io
import os
import pathlib
import pickle
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import partial
from types import ModuleType
from typing import IO, Any, BinaryIO, cast

import torch
from torch.serialization import safe_globals

from yolov5_ema.checkpoints import ultralytics_rules
from yolov5_ema.checkpoints.allowed import CLASS_MODULES, Rules, allow_list
from yolov5_ema.checkpoints.state import check_models, check_modules, check_names, fix_checkpoint
from yolov5_ema.errors import CheckpointError, UserError
from yolov5_ema.files import replacement
from yolov5_ema.settings import read
from yolov5_ema.texts import first_line
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.patching import Patches, holding
from yolov5_ema.upstream.ultralytics import Ultralytics
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

# torch.load itself, which some releases of ultralytics replace
_torch_load = torch.serialization.load
# torch's own list of allowed names is one for all threads
_lock = threading.Lock()
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
    """Read a checkpoint of YOLOv5, or of the package `ultralytics`.

    Args:
        file: path of the ``.pt`` file.
        map_location: as in `torch.load`.
        engine: the YOLOv5 or ultralytics whose classes the checkpoint's modules become.
        trust: unpickle the file without checking what it holds. None: as set on the command line.
        without_model: accept a state dict or a bare model too.

    Returns:
        The saved object: a dict with ``model``, ``ema``, ``optimizer``, ``epoch`` …

    Raises:
        CheckpointError: the file is missing or damaged, is not a checkpoint, or holds a class or function that is not
            on the allow-list; the message names it.
    """
    path = pathlib.Path(str(file))
    return read_checkpoint(path, read_once(path), map_location, engine=engine, trust=trust, without_model=without_model)


def read_checkpoint(
    path: pathlib.Path,
    content: BinaryIO,
    map_location: Any = None,
    *,
    engine: Engine,
    trust: bool | None = None,
    without_model: bool = False,
) -> Any:
    """`load_checkpoint` for a file whose content has been read already. ``path`` is its name in messages."""
    trust = is_trusted() if trust is None else trust
    rules = _rules_for(engine)
    allowed = _judge(path, content, rules, trust, without_model)
    content.seek(0)
    checkpoint = _unpickled(path, content, map_location, rules, None if trust else allowed)
    check_modules(checkpoint, path)
    fix_checkpoint(checkpoint)
    check_names(checkpoint, path)
    if not trust:
        check_models(checkpoint, path)
    return checkpoint


def _rules_for(engine: Engine) -> Rules:
    if isinstance(engine, Ultralytics):
        return ultralytics_rules.RULES
    return Rules(
        whose="YOLOv5 checkpoint",
        allowed=lambda names: {name: value for value, name in allow_list(engine, names)},
        advice=lambda names: advice_for(names, str(engine)) if names else ONLY_IF_TRUSTED,
        other_kind=other_kind,
        aliases=partial(module_aliases, engine),
    )


def _unpickled(
    path: pathlib.Path, content: BinaryIO, map_location: Any, rules: Rules, allowed: Mapping[str, Any] | None
) -> Any:
    """The object in a file. ``allowed``: the names that it may use; None if the file is trusted."""
    try:
        if allowed is None:
            options: dict[str, Any] = {"weights_only": False, "pickle_module": _with_any_path()}
            with rules.aliases():
                return _torch_load(content, map_location=map_location, **options)
        with _lock, safe_globals([(value, name) for name, value in allowed.items()]):
            return _torch_load(content, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refusal(path, rules, first_line(error))) from error
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
        _judge(path, stream, _rules_for(engine), is_trusted() if trust is None else trust)


def _judge(
    path: pathlib.Path, content: BinaryIO, rules: Rules, trust: bool, without_model: bool = False
) -> Mapping[str, Any]:
    """The classes and functions that the file may use, by name; empty if the file is trusted."""
    content.seek(0)
    refuse_mistaken(path, content.read(HEAD))
    if not is_archive(content):
        _check_legacy_file(path, content)
    try:
        opened = open_pickles(path, content)
    except CheckpointError:
        if trust:
            return {}
        raise
    kind = rules.other_kind(opened, path)
    allowed = {} if trust else _allowed(path, opened, kind, rules)
    if not trust and (kind is None or kind.convertible):
        _check_calls(path, opened, rules)
    if kind is not None and not (without_model and kind.convertible):
        raise kind.error(path)
    if not trust:
        refuse_another_reading(path, opened, content)
    return allowed


def _allowed(path: pathlib.Path, opened: PickleFile, kind: Kind | None, rules: Rules) -> Mapping[str, Any]:
    names = {name for one in opened.pickles for name in one.names}
    try:
        allowed = rules.allowed(names)
    except UserError as error:
        # it holds blocks of a package that is not installed
        raise CheckpointError(f"{path}: {error}") from error
    unsafe = {name for name in names if name not in allowed and not taken_by_torch(name)}
    unsafe = {name for name in unsafe if kind is None or not kind.names.fullmatch(name)}
    if unsafe:
        raise CheckpointError(_refusal(path, rules, shown_names(unsafe), unsafe))
    # a pickle does not name the classes of NumPy's dtypes; and torch reads slowly with a long list
    return {name: value for name, value in allowed.items() if name in names or name.startswith("numpy.")}


def _check_calls(path: pathlib.Path, opened: PickleFile, rules: Rules) -> None:
    """Refuse harmful uses of allowed names; see `yolov5_ema.weights.vocabulary`."""
    odd = odd_calls(opened.pickles, rules.empty)
    if odd:
        raise CheckpointError(_refusal(path, rules, "; ".join(odd[:5])))
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


def _refusal(path: pathlib.Path, rules: Rules, what: str, names: Iterable[str] = ()) -> str:
    advice = rules.advice(set(names))
    return f"{path} holds what no {rules.whose} needs: {what}. None of its code was run. {advice}"


@contextmanager
def module_aliases(engine: Engine) -> Iterator[None]:
    """Context manager that makes the engine's modules importable under the names of the other layout too.

    While it loads a checkpoint, the package runs ``from models.yolo import Detect``, which would import every class a
    second time. A clone cannot find ``yolov5.models.yolo`` at all.
    """
    prefix = "" if engine.kind == "package" else "yolov5."
    other = {f"{prefix}{name}": engine.module(name) for name in ("models", "utils", *CLASS_MODULES)}
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
            if relative not in CLASS_MODULES:
                super().save_global(obj, name)
                return
            self.write(pickle.GLOBAL + f"{relative}\n{obj.__qualname__}\n".encode())
            self.memoize(obj)

    return _pickle_module(Pickler=Pickler)
