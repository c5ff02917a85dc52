"""Reading and writing YOLOv5 checkpoints without running code that a file brings along.

A YOLOv5 checkpoint is a pickle of whole modules. `load_checkpoint` reads it with
``weights_only=True`` and an allow-list: the module classes of the YOLOv5 at hand, torch's own layers,
NumPy's numbers, and the attention blocks. Names are taken both as a clone writes them
(``models.yolo.Model``) and as the PyPI package does (``yolov5.models.yolo.Model``).
"""

from __future__ import annotations

import importlib
import inspect
import io
import os
import pathlib
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import IO, Any, cast

import numpy as np
import torch
from torch import nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from yolov5_ema.blocks import registry
from yolov5_ema.engine.locate import Engine
from yolov5_ema.errors import CheckpointError, UserError
from yolov5_ema.files import replacement
from yolov5_ema.weights.checkpoint_files import PickleFile, open_pickles
from yolov5_ema.weights.names import taken_by_torch
from yolov5_ema.weights.vocabulary import odd_calls, short_storages

TRUST_ENV = "YOLOV5_EMA_TRUST_CHECKPOINT"

_CLASS_MODULES = ("models.common", "models.experimental", "models.yolo")
_NEVER_IN_A_CHECKPOINT = {"AutoShape", "DetectMultiBackend"}  # wrappers that open files when built
# what may be gone through in a checkpoint: far more than any has, few enough to come to an end
_MOST_MODULES = 200_000
_MOST_VALUES = 1_000_000
_DEEPEST = 50


def is_trusted() -> bool:
    """Whether the user said ``--trust-checkpoint`` (or set ``YOLOV5_EMA_TRUST_CHECKPOINT=1``)."""
    return os.environ.get(TRUST_ENV, "") not in ("", "0")


def load_checkpoint(
    file: Any, map_location: Any = None, *, engine: Engine, trust: bool | None = None
) -> dict[str, Any]:
    """Read a YOLOv5 checkpoint.

    Args:
        file: path of the ``.pt`` file.
        map_location: as in `torch.load`.
        engine: the YOLOv5 whose classes the checkpoint's modules become.
        trust: unpickle whatever the file holds. None: what the user said on the command line.

    Returns:
        What was saved: for YOLOv5 a dict with ``model``, ``ema``, ``optimizer``, ``epoch`` …

    Raises:
        CheckpointError: the file is missing, torn, no checkpoint, or holds a class or function that
            is not on the allow-list; the message names it.
    """
    path = pathlib.Path(str(file))
    check_file(path, engine=engine, trust=trust)
    trust = is_trusted() if trust is None else trust
    try:
        if trust:
            with module_aliases(engine):
                checkpoint = torch.load(path, map_location=map_location, weights_only=False)
        else:
            with safe_globals(allow_list(engine)):
                checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refusal(path, str(error).splitlines()[0])) from error
    except UserError:  # a model that is built while a trusted file is read goes through the shim
        raise
    except (
        Exception
    ) as error:  # torch and the file's own classes raise what they like over a file that is odd
        reason = str(error).splitlines()[0][:500] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} cannot be read: {reason}") from error
    _refuse_classifier(checkpoint, path)
    check_modules(checkpoint, path)
    _check_class_names(checkpoint, path)
    _mend_layers_of_old_torch(checkpoint)
    _mend_detect(checkpoint)
    return checkpoint


def _refuse_classifier(checkpoint: Any, path: pathlib.Path) -> None:
    """YOLOv5 would take the name that is kept as ``model`` for the model itself."""
    if isinstance(checkpoint, dict) and isinstance(checkpoint.get("model"), str):
        raise CheckpointError(
            f"{path} holds weights of {checkpoint['model']!r}, and no model of YOLOv5's; classifiers are for "
            "'yolov5-ema classify val' and 'classify predict'"
        )


def check_file(path: pathlib.Path, *, engine: Engine, trust: bool | None = None) -> None:
    """Look at a checkpoint without unpickling it.

    Raises:
        CheckpointError: as `load_checkpoint`, before anything of the file runs.
    """
    if not path.exists():
        raise CheckpointError(f"weights not found: {path}")
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a weights file")
    is_archive = _is_archive(path)
    if not is_archive:
        _check_legacy_file(path)
    if is_trusted() if trust is None else trust:
        return
    allowed = allow_list(engine)
    known = {name for _, name in allowed}
    opened = _followed(path)
    pickles = (opened.root, *opened.others)
    unsafe = {name for one in pickles for name in one.names if name not in known and not taken_by_torch(name)}
    if is_archive and not unsafe:
        with safe_globals(allowed):
            try:
                unsafe.update(get_unsafe_globals_in_checkpoint(path))
            except Exception as error:  # pickletools' own, beside torch's and zipfile's
                raise CheckpointError(f"{path} is no PyTorch checkpoint, or cut off: {error}") from error
    if unsafe:
        raise CheckpointError(
            _refusal(path, ", ".join(sorted(unsafe)), _of_a_newer_yolov5(sorted(unsafe), engine))
        )
    _check_calls(path, opened)


def _is_archive(path: pathlib.Path) -> bool:
    """As torch itself tells today's format from the older one."""
    with path.open("rb") as stream:
        return stream.read(4) == b"PK\x03\x04"


def _followed(path: pathlib.Path) -> PickleFile:
    try:
        return open_pickles(path)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{path} is no PyTorch checkpoint, or cut off: {error}") from error


def _check_calls(path: pathlib.Path, opened: PickleFile) -> None:
    """Refuse what the allowed names could still be used for; see `yolov5_ema.weights.vocabulary`."""
    odd = odd_calls((opened.root, *opened.others))
    if odd:
        raise CheckpointError(_refusal(path, "; ".join(odd[:5])))
    short = short_storages(opened.root, opened.sizes)
    if short:
        raise CheckpointError(
            f"{path} is cut off or was changed: the storage of tensor {short[0]!r} is shorter than the file says"
        )


def _check_legacy_file(path: pathlib.Path) -> None:
    with path.open("rb") as stream:
        head = stream.read(64)
    if not head.startswith(b"\x80") or path.stat().st_size < 64:
        raise CheckpointError(
            f"{path} is no PyTorch checkpoint, or cut off ({path.stat().st_size} bytes). "
            "Copy or download it again."
        )


def _refusal(path: pathlib.Path, what: str, hint: str = "") -> str:
    return (
        f"{path} holds what no YOLOv5 checkpoint needs: {what}. Nothing of it was run. {hint}"
        "If it is a block of your own, name its module with --plugin; if you know where the file comes "
        "from and trust it with your machine, pass --trust-checkpoint."
    )


def _of_a_newer_yolov5(names: list[str], engine: Engine) -> str:
    """A hint where all that is refused are YOLOv5's own kinds of layers, as the one at hand does not have them."""
    if all(name.removeprefix("yolov5.").startswith(_CLASS_MODULES) for name in names):
        return f"{engine} has no such layers: name a newer YOLOv5 with --yolov5. "
    return ""


def allow_list(engine: Engine) -> list[Any]:
    """What a checkpoint may name: ``(object, dotted name)`` pairs for `torch.serialization`."""
    allowed: dict[str, Any] = {}
    for name in _CLASS_MODULES:
        module = importlib.import_module(engine.module_name(name))
        for attribute, cls in _module_classes(module):  # v7.0 keeps old names: Model is DetectionModel
            allowed[f"{name}.{attribute}"] = cls
            allowed[f"yolov5.{name}.{attribute}"] = cls
    for later, cls in _later_names(engine):
        allowed[f"models.yolo.{later}"] = cls
        allowed[f"yolov5.models.yolo.{later}"] = cls
    return [*((value, name) for name, value in allowed.items()), *plain_names()]


def plain_names() -> list[Any]:
    """What checkpoints of any YOLO may name, in the same form: torch's layers, our blocks, numbers, sets and paths."""
    allowed: dict[str, Any] = {}
    for cls in [*_torch_layers(), *_block_classes()]:
        allowed[f"{cls.__module__}.{cls.__qualname__}"] = cls
    allowed.update(_numpy_globals())
    allowed["builtins.getattr"] = _forward_of
    for cls in (set, pathlib.PosixPath, pathlib.WindowsPath, pathlib.PurePosixPath):
        allowed[f"{cls.__module__}.{cls.__qualname__}"] = cls
        allowed[f"pathlib.{cls.__name__}" if cls is not set else "builtins.set"] = cls
    return [(value, name) for name, value in allowed.items()]


def _forward_of(cls: type, name: str) -> Any:
    """``getattr`` for what a Segment head keeps, ``Detect.forward``, and for nothing else."""
    if not (inspect.isclass(cls) and issubclass(cls, nn.Module) and name == "forward"):
        raise pickle.UnpicklingError(f"Weights only load failed: getattr of {cls!r}, {name!r}")
    return cls.forward


def _later_names(engine: Engine) -> Iterator[tuple[str, type]]:
    """Names that v6.2 gave to classes which earlier releases have as well: checkpoints of both load in both."""
    yolo = importlib.import_module(engine.module_name("models.yolo"))
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
    """The registered blocks and the modules they are made of, which stand in the same files."""
    for name in registry.list_blocks():
        block = registry.get_block(name)
        home = sys.modules.get(block.__module__)
        yield block
        if home is not None:
            yield from (cls for _, cls in _module_classes(home))


def _numpy_globals() -> dict[str, Any]:
    multiarray = importlib.import_module(
        "numpy._core.multiarray" if _has_numpy_core() else "numpy.core.multiarray"
    )
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


def _modules_of(checkpoint: Any) -> Iterator[nn.Module]:
    """All layers of all models in a checkpoint."""
    values = checkpoint.values() if isinstance(checkpoint, dict) else ()
    for value in values:
        if isinstance(value, nn.Module):
            yield from value.modules()


def _check_class_names(checkpoint: Any, path: pathlib.Path) -> None:
    """Refuse names of classes by which ``detect --save-crop``, which makes a folder for each, would leave its own."""
    for value in checkpoint.values() if isinstance(checkpoint, dict) else [checkpoint]:
        names = vars(value).get("names") if isinstance(value, nn.Module) else None
        listed = (
            names.values() if isinstance(names, dict) else names if isinstance(names, (list, tuple)) else ()
        )
        for name in filter(lambda name: isinstance(name, str), listed):
            if ".." in pathlib.PurePath(name).parts or pathlib.PurePath(name).is_absolute():
                raise CheckpointError(
                    f"{path}: the class name {name!r} would lead out of the folder of crops that detect makes; "
                    "if it is meant so, give the class another name"
                )


def check_modules(checkpoint: Any, path: pathlib.Path) -> None:
    """Refuse, with a CheckpointError, what is read but cannot be gone through.

    Modules that lack what every module has; and modules, lists and dicts that hold each other in a circle, or stand for
    an exponential number of one another.
    """
    _check_extent(checkpoint, path)
    for model in checkpoint.values() if isinstance(checkpoint, dict) else [checkpoint]:
        if isinstance(model, nn.Module):
            _check_module_tree(model, path)


def _check_module_tree(model: nn.Module, path: pathlib.Path) -> None:
    waiting = [(model, 0)]
    seen: set[int] = set()
    count = 0
    while waiting:
        module, depth = waiting.pop()
        count += 1
        if count > _MOST_MODULES or depth > _DEEPEST:
            raise CheckpointError(
                f"{path}: its layers hold each other more often than any model's, or in a circle"
            )
        modules = vars(module).get("_modules")
        if id(module) not in seen:
            seen.add(id(module))
            _check_module(module, path)
        waiting += [(child, depth + 1) for child in (modules or {}).values() if child is not None]


def _check_module(module: nn.Module, path: pathlib.Path) -> None:
    held: list[Any] = [vars(module).get(name) for name in ("_modules", "_parameters", "_buffers")]
    if not all(isinstance(part, dict) and all(isinstance(name, str) for name in part) for part in held):
        raise CheckpointError(f"{path}: a {type(module).__name__} in it lacks what every module has")
    modules, *tensors = held
    fine = all(
        value is None or isinstance(value, torch.Tensor) for part in tensors for value in part.values()
    )
    if not fine or not all(isinstance(child, (nn.Module, type(None))) for child in modules.values()):
        raise CheckpointError(f"{path}: a {type(module).__name__} in it holds what is no layer and no tensor")
    _check_extent({name: value for name, value in vars(module).items() if name != "_modules"}, path)


def _check_extent(value: Any, path: pathlib.Path) -> None:
    waiting = [(value, 0)]
    count = 0
    while waiting:
        held, depth = waiting.pop()
        count += 1
        if count > _MOST_VALUES or depth > _DEEPEST:
            raise CheckpointError(
                f"{path}: its values hold each other without end, or more than any checkpoint's do"
            )
        if isinstance(held, dict):
            waiting += [(item, depth + 1) for item in held.values()]
        elif isinstance(held, (list, tuple, set, frozenset)):
            waiting += [(item, depth + 1) for item in held]


def _mend_layers_of_old_torch(checkpoint: Any) -> None:
    """Give layers saved by torch < 1.11 the attributes that today's forward reads."""
    for module in _modules_of(checkpoint):
        if isinstance(module, nn.Upsample) and not hasattr(module, "recompute_scale_factor"):
            module.recompute_scale_factor = None


def _mend_detect(checkpoint: Any) -> None:
    """Let Detect compute its grids anew, and give those of v4 and v5 what later forwards read.

    One kept from v6.0's last image is half a cell off in v6.2 and later; up to v5.0 the grid of anchors was a buffer,
    where later releases keep a list.
    """
    for module in _modules_of(checkpoint):
        grids = getattr(module, "grid", None)
        if not isinstance(grids, list) or not hasattr(module, "anchor_grid"):
            continue
        vars(module)["grid"] = [torch.zeros(1) for _ in grids]
        if isinstance(module.anchor_grid, torch.Tensor):
            del module.anchor_grid
            vars(module)["anchor_grid"] = [torch.zeros(1) for _ in grids]
        if not hasattr(module, "inplace"):  # v4 computed without
            vars(module)["inplace"] = True


@contextmanager
def module_aliases(engine: Engine) -> Iterator[None]:
    """Make the engine's modules importable under the other layout's names as well.

    The package's own code says ``from models.yolo import Detect`` while it loads a checkpoint, which
    imports every class a second time; a clone cannot find ``yolov5.models.yolo`` at all.
    """
    other = {}
    for name in ("models", "utils", *_CLASS_MODULES):
        module = importlib.import_module(engine.module_name(name))
        other[name if engine.kind == "package" else f"yolov5.{name}"] = module
    if engine.kind == "clone" and "yolov5" not in sys.modules:
        other["yolov5"] = ModuleType("yolov5")
    before: dict[str, ModuleType | None] = {name: sys.modules.get(name) for name in other}
    sys.modules.update(other)
    try:
        yield
    finally:
        for name, previous in before.items():
            if previous is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = previous


def save_checkpoint(checkpoint: Any, file: Any, *, engine: Engine, **options: Any) -> None:
    """`torch.save`, with YOLOv5's classes under the names that clones and the package can both read.

    Args:
        checkpoint: what to save.
        file: a path, which gets the whole checkpoint or keeps what it has; or an open file.
        engine: the YOLOv5 whose classes are in it.
        options: as in `torch.save`.

    Raises:
        UserError: there is no place for it: a full disk, a folder that is gone or may not be written.
    """
    if engine.kind == "package":
        options["pickle_module"] = _portable_pickle(engine)
    if not isinstance(file, (str, os.PathLike)):
        torch.save(checkpoint, file, **options)
        return
    with replacement(file) as draft, open(draft, "wb") as stream:
        _save_to(stream, checkpoint, options)


def _save_to(stream: IO[bytes], checkpoint: Any, options: dict[str, Any]) -> None:
    """`torch.save`, which names the file system's error instead of its own that follows from it."""
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
    base: Any = pickle._Pickler  # the pure Python one can be told names

    class Pickler(base):
        def save_global(self, obj: Any, name: str | None = None) -> None:
            relative = engine.relative_name(getattr(obj, "__module__", None) or "")
            if relative not in _CLASS_MODULES:
                super().save_global(obj, name)
                return
            self.write(pickle.GLOBAL + f"{relative}\n{obj.__qualname__}\n".encode())
            self.memoize(obj)

    module = ModuleType("yolov5_ema_portable_pickle")
    module.__dict__.update({**vars(pickle), "Pickler": Pickler})
    return module
