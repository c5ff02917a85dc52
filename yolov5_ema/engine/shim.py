"""Making YOLOv5's `parse_model` know the attention blocks, without editing YOLOv5.

A row's module may be a class, not only a name, and a string argument is evaluated in
`parse_model`'s own frame. So the shim hands `parse_model` the block's class with the argument
``"ch[f]"``, which becomes the block's true, scaled input channels. No copy of `parse_model` is made.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType, TracebackType
from typing import Any, Union

from yolov5_ema.blocks.positions import UnclearNumbersError
from yolov5_ema.blocks.registry import block_of
from yolov5_ema.cfgs.rows import checked_model
from yolov5_ema.engine import activation, ultralytics_adapter
from yolov5_ema.errors import ConfigError, UserError
from yolov5_ema.settings import VARIABLES, chosen_conflicts, exporting
from yolov5_ema.upstream.locate import Engine, engine_at, locate
from yolov5_ema.upstream.patching import Patches

Yolo = Union[None, str, "os.PathLike[str]", ModuleType]

_lock = threading.RLock()
_installed: Patches | None = None


def install(yolo: Yolo = None, *, conflicts: str | None = None) -> Engine:
    """Teach a YOLOv5 the attention blocks, and mend what today's libraries break in it.

    Args:
        yolo: which YOLOv5: None to look for one (see `locate`), the folder of a clone, or an imported
            ``models.yolo`` / ``yolov5`` module. Or ``"ultralytics"``, or that module: the package of YOLOv8 and
            later, which gets an adapter of its own, beside a YOLOv5 if need be.
        conflicts: what a name means that YOLOv5 defines as well (a fork's own CBAM): ``error`` (say so),
            ``ours`` or ``theirs``. None: what the settings say, or ``error``.

    Returns:
        The YOLOv5 found; for ultralytics that package, as an `Engine` of kind ``ultralytics``. A second
        call for the same one changes nothing but ``conflicts``, if that is named.

    Raises:
        EngineNotFoundError: there is no YOLOv5, or no ultralytics.
        UserError: the shim is installed for another YOLOv5; `uninstall` it first.

    Example:
        >>> import yolov5_ema
        >>> engine = yolov5_ema.install()             # doctest: +SKIP
        >>> from yolov5.models.yolo import Model      # doctest: +SKIP
        >>> model = Model("models/yolov5s-ema.yaml")  # doctest: +SKIP
    """
    global _installed
    chosen = chosen_conflicts(conflicts)
    if ultralytics_adapter.names_ultralytics(yolo):
        return ultralytics_adapter.install(conflicts=chosen)
    engine = _engine_of(yolo)
    with _lock:
        activation.activate(engine)
        if _installed is None:
            _installed = _patched(engine)
        if conflicts is not None:
            _installed.set_item(os.environ, VARIABLES["conflicts"], conflicts)
    return engine


def _patched(engine: Engine) -> Patches:
    patches = Patches()
    try:
        module = _with_parser(engine)
        patches.set(module, "parse_model", _with_blocks(module.parse_model, module))
    except BaseException:
        activation.deactivate()
        raise
    return patches


def _with_parser(engine: Engine) -> Any:
    """The module that reads model YAMLs."""
    try:
        module = engine.module("models.yolo")
    except SyntaxError as error:
        place = f"{error.filename}, line {error.lineno}"
        raise UserError(f"{engine} cannot be imported: {place}: {error.msg}") from error
    if not engine.owns(getattr(module, "__file__", None)):
        raise UserError(
            f"{engine}: its models/yolo.py is not what this process has imported, {module!r}, which would not be "
            "guarded. Start a new Python process"
        )
    if not hasattr(module, "parse_model"):
        raise UserError(
            f"{module.__file__} has no function parse_model: it is of no YOLOv5 v6.0 or later. Name another: "
            "--yolov5 PATH"
        )
    return module


def uninstall(yolo: Yolo = None) -> None:
    """Undo `install` completely; without a shim it does nothing.

    YOLOv5's modules stay imported, with every attribute as they defined it.

    Args:
        yolo: None, or the YOLOv5 that the shim must be installed for to be removed. ``"ultralytics"``:
            remove the adapter of that package, and nothing else.
    """
    global _installed
    if ultralytics_adapter.names_ultralytics(yolo):
        ultralytics_adapter.uninstall()
        return
    with _lock:
        engine = activation.active_engine()
        if yolo is not None and engine is not None and _engine_of(yolo).root != engine.root:
            return
        if _installed is not None:
            _installed.undo()
            _installed = None
        activation.deactivate()


def is_installed(yolo: Yolo = None) -> bool:
    """Whether the shim is in place in this process; for ``"ultralytics"``: the adapter of that package."""
    if ultralytics_adapter.names_ultralytics(yolo):
        return ultralytics_adapter.is_installed()
    return _installed is not None


@contextmanager
def installed(yolo: Yolo = None, *, conflicts: str | None = None) -> Iterator[Engine]:
    """The shim for the length of a ``with`` block; left in place if it was before.

    Yields:
        The YOLOv5 found.
    """
    if is_installed(yolo):
        with (
            contextlib.nullcontext()
            if conflicts is None
            else exporting(conflicts=chosen_conflicts(conflicts))
        ):
            yield install(yolo)
        return
    engine = install(yolo, conflicts=conflicts)
    try:
        yield engine
    finally:
        uninstall(yolo if ultralytics_adapter.names_ultralytics(yolo) else None)


def _engine_of(yolo: Yolo) -> Engine:
    if yolo is None:
        return activation.active_engine() or locate()
    if isinstance(yolo, ModuleType):
        return engine_at(_root_of(Path(str(yolo.__file__)).resolve()))
    return engine_at(Path(yolo))


def _root_of(file: Path) -> Path:
    """The YOLOv5 folder that a module's file belongs to."""
    candidates = [folder for folder in file.parents if (folder / "models" / "yolo.py").is_file()]
    return candidates[0] if candidates else file.parent


def _with_blocks(parse_model: Callable[..., Any], module: ModuleType) -> Callable[..., Any]:
    @functools.wraps(parse_model)
    def wrapper(d: dict[str, Any], ch: list[int]) -> Any:
        where = _cfg_name()
        model = checked_model(d, module, where=where, conflicts=chosen_conflicts())
        try:
            return parse_model(model, ch)
        except (ValueError, TypeError, IndexError, KeyError, ZeroDivisionError, RuntimeError) as error:
            row = _row_of(error.__traceback__, parse_model.__code__)
            if row is None:
                raise
            if isinstance(error, UnclearNumbersError):
                raise ConfigError(f"{where}, row {row}: {error.in_row()}") from error
            raise ConfigError(
                f"{where}, row {row}: {_row_text(d, row)}: {error}{_hint(model, row)}"
            ) from error

    return wrapper


def _cfg_name() -> str:
    """File name of the cfg that `Model.__init__` is building, for messages."""
    frame: FrameType | None = sys._getframe(2)
    cfg = frame.f_locals.get("cfg") if frame else None
    return str(cfg) if isinstance(cfg, (str, Path)) and str(cfg) else "model dict"


def _row_of(traceback: TracebackType | None, code: Any) -> int | None:
    """The row that `parse_model` was at when it failed: its loop variable ``i``."""
    while traceback is not None:
        if traceback.tb_frame.f_code is code:
            row = traceback.tb_frame.f_locals.get("i")
            return row if isinstance(row, int) else None
        traceback = traceback.tb_next
    return None


def _hint(model: dict[str, Any], index: int) -> str:
    """For a block that was given a number: it may have been meant as channels, as tutorials write it."""
    module, args = [*model["backbone"], *model["head"]][index][2:]
    if not block_of(module) or len(args) < 2:
        return ""
    return f". (The channels are taken from the row that it reads: [{module.__name__}, []] is enough.)"


def _row_text(cfg: dict[str, Any], index: int) -> str:
    rows = [*cfg["backbone"], *cfg["head"]]
    source, number, module, args = rows[index]
    name = module if isinstance(module, str) else module.__name__
    return f"[{source}, {number}, {name}, {args}]"
