"""Teaching YOLOv5's `parse_model` the attention blocks, without editing YOLOv5.

`parse_model` accepts a class as a row's module, not only a name, and evaluates string arguments in its own frame. So
the shim passes it the block's class and the argument ``"ch[f]"``, which evaluates to the true, scaled number of input
channels. `parse_model` itself is not copied.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from types import FrameType, ModuleType, TracebackType
from typing import Any, Union

from yolov5_ema.blocks.positions import UnclearNumbersError
from yolov5_ema.blocks.registry import block_of
from yolov5_ema.cfgs.rows import checked_model, hint_of_channels, put_blocks_inside, rows_with_inner_blocks
from yolov5_ema.engine import activation, ultralytics_adapter
from yolov5_ema.errors import ConfigError, UserError
from yolov5_ema.settings import VARIABLES, chosen_conflicts, exporting
from yolov5_ema.upstream.locate import Engine, engine_at, locate
from yolov5_ema.upstream.patching import Patches
from yolov5_ema.upstream.ultralytics import names_ultralytics

_LOGGER = logging.getLogger(__name__)

Yolo = Union[None, str, "os.PathLike[str]", ModuleType]

_lock = threading.RLock()
_installed: Patches | None = None


def install(yolo: Yolo = None, *, conflicts: str | None = None) -> Engine:
    """Teach a YOLOv5 the attention blocks, and fix what breaks in it with today's libraries.

    A second call for the same YOLOv5 changes only ``conflicts``, if that is given.

    Args:
        yolo: which YOLOv5: None to look for one (see `locate`), the folder of a clone, or an imported
            ``models.yolo`` / ``yolov5`` module. ``"ultralytics"``, or that module, means the package of YOLOv8 and
            later. It has a separate adapter, which can be installed together with a YOLOv5.
        conflicts: which class a name means if YOLOv5 defines that name too (a fork's own CBAM): ``ours``,
            ``theirs``, or ``error`` to raise an error. None takes the setting, or ``error``.

    Returns:
        The YOLOv5 found; for ultralytics that package, as an `Engine` of kind ``ultralytics``.

    Raises:
        EngineNotFoundError: no YOLOv5, or no ultralytics, was found.
        UserError: the shim is installed for another YOLOv5; `uninstall` it first.

    Example:
        >>> import yolov5_ema
        >>> engine = yolov5_ema.install()             # doctest: +SKIP
        >>> from yolov5.models.yolo import Model      # doctest: +SKIP
        >>> model = Model("models/yolov5s-ema.yaml")  # doctest: +SKIP
    """
    global _installed
    chosen = chosen_conflicts(conflicts)
    if names_ultralytics(yolo):
        return ultralytics_adapter.install(conflicts=chosen)
    engine = _engine_of(yolo)
    _LOGGER.debug("YOLOv5: %s", engine)
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
        patches.wrap(module, "parse_model", _with_blocks, module)
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
            f"{engine}: this process has already imported another models/yolo.py, {module!r}, which would not be "
            "guarded. Start a new Python process"
        )
    if not hasattr(module, "parse_model"):
        raise UserError(
            f"{module.__file__} has no function parse_model: it does not belong to YOLOv5 v6.0 or later. Name "
            "another: --yolov5 PATH"
        )
    return module


def uninstall(yolo: Yolo = None) -> None:
    """Undo `install` completely; without a shim it does nothing.

    YOLOv5's modules stay imported, with every attribute as they defined it.

    Args:
        yolo: remove the shim only if it is installed for this YOLOv5; None removes it in any case.
            ``"ultralytics"`` removes the adapter of that package, and nothing else.
    """
    global _installed
    if names_ultralytics(yolo):
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
    """Whether the shim is installed in this process; for ``"ultralytics"``, whether that package's adapter is."""
    if names_ultralytics(yolo):
        return ultralytics_adapter.is_installed()
    return _installed is not None


@contextmanager
def installed(yolo: Yolo = None, *, conflicts: str | None = None) -> Iterator[Engine]:
    """Install the shim for the length of a ``with`` block; a shim that was installed before stays.

    Yields:
        The YOLOv5 found.
    """
    if is_installed(yolo):
        with contextlib.nullcontext() if conflicts is None else exporting(conflicts=chosen_conflicts(conflicts)):
            yield install(yolo)
        return
    engine = install(yolo, conflicts=conflicts)
    try:
        yield engine
    finally:
        uninstall(yolo if names_ultralytics(yolo) else None)


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


def _with_blocks(parse_model: Any, module: ModuleType, d: dict[str, Any], ch: list[int]) -> Any:
    where = _cfg_name()
    conflicts = chosen_conflicts()
    model = checked_model(d, module, where=where, conflicts=conflicts)
    try:
        layers, saved = parse_model(model, ch)
    except (ValueError, TypeError, IndexError, KeyError, ZeroDivisionError, RuntimeError) as error:
        row = _row_of(error.__traceback__, parse_model.__code__)
        if row is None:
            raise
        if isinstance(error, UnclearNumbersError):
            raise ConfigError(f"{where}, row {row}: {error.in_row()}") from error
        raise ConfigError(f"{where}, row {row}: {_row_text(d, row)}: {error}{_hint(model, row)}") from error
    put_blocks_inside(layers, rows_with_inner_blocks(d, module, where=where, conflicts=conflicts))
    return layers, saved


def _cfg_name() -> str:
    """The file name of the cfg that `Model.__init__` is building, for messages."""
    frame: FrameType | None = sys._getframe(3)
    cfg = frame.f_locals.get("cfg") if frame else None
    return str(cfg) if isinstance(cfg, (str, Path)) and str(cfg) else "model dict"


def _row_of(traceback: TracebackType | None, code: Any) -> int | None:
    """The row at which `parse_model` failed: its loop variable ``i``."""
    row = next((frame.f_locals.get("i") for frame, _ in walk_tb(traceback) if frame.f_code is code), None)
    return row if isinstance(row, int) else None


def _hint(model: dict[str, Any], index: int) -> str:
    module, args = [*model["backbone"], *model["head"]][index][2:]
    return hint_of_channels(module) if block_of(module) and len(args) > 1 else ""


def _row_text(cfg: dict[str, Any], index: int) -> str:
    rows = [*cfg["backbone"], *cfg["head"]]
    source, number, module, args = rows[index]
    name = module if isinstance(module, str) else module.__name__
    return f"[{source}, {number}, {name}, {args}]"
