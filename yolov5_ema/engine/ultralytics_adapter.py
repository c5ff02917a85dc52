"""Teaching the package `ultralytics` (YOLOv8, YOLO11 and later) the attention blocks, without editing it.

The `parse_model` of ultralytics looks up a row's module in the globals of its file, and a string argument in its own
local variables. So in a row ``[-1, 1, EMA, [16]]`` the adapter replaces the module by a class made for that row, and
the arguments by the strings ``ch`` and ``f``. The class takes the true, scaled input channels ``ch[f]`` and builds the
plain block. A row ``C3k2_EMA`` is built as C3k2, whose bottlenecks then get their blocks. `parse_model` itself is not
copied.

Like YOLOv5, ultralytics transfers pretrained weights by name, and names hold row numbers. So the adapter first pairs
the rows of both models by structure (`yolov5_ema.weights.alignment`).

While the adapter is installed, guards check what ultralytics unpickles, executes or loads
(`yolov5_ema.engine.ultralytics_guards`).

For training on several GPUs, ultralytics writes a file and starts new processes that run it. The adapter adds lines to
this file that install it there too.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import logging
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from packaging.version import Version
from torch import nn

from yolov5_ema.blocks.registry import block_of
from yolov5_ema.cfgs.rows import BlockRow, put_blocks_inside
from yolov5_ema.cfgs.ultralytics_rows import block_rows
from yolov5_ema.engine import ultralytics_guards
from yolov5_ema.settings import chosen_conflicts
from yolov5_ema.upstream.patching import Patches
from yolov5_ema.upstream.ultralytics import NAME, Ultralytics, located, shipped_cfg
from yolov5_ema.weights.transfer import fill_model_of_ultralytics

_IN_EVERY_RANK = """\
import sys

sys.path[:] = {path!r}

import yolov5_ema

yolov5_ema.install("ultralytics", conflicts={conflicts!r})

"""

# the trainer that ultralytics pickles for these processes only
_OWN_STATE = (
    "from ultralytics.utils.patches import torch_load",
    "from yolov5_ema.engine.ultralytics_guards import load_own_state as torch_load",
)

# these run ultralytics' own command line in a new process: for each data set of several, and each trial of tune()
_STARTS_PROCESSES = ("engine.trainer", "engine.tuner")
_ITS_COMMAND_LINE = "ultralytics.cfg.__init__"

# the oldest release whose loading of files is known to be guarded
_OLDEST_CHECKED = "8.3.0"

_LOGGER = logging.getLogger(__name__)
_lock = threading.RLock()
_installed: Patches | None = None
_numbers = itertools.count()


def install(*, conflicts: str = "error") -> Ultralytics:
    """Teach the package `ultralytics` the attention blocks.

    From then on ``YOLO("my.yaml")`` accepts rows such as ``[-1, 1, EMA, []]``, and finds the YAMLs of this package
    (``yolo11n-ema.yaml``, ``yolov8s-ema.yaml``) by their bare names. The user's own files take precedence.

    Args:
        conflicts: which class a name means if ultralytics defines that name too: ``error``, ``ours`` or ``theirs``.

    Returns:
        The package found. A second call changes nothing.

    Raises:
        UserError: ``conflicts`` is none of these three.
        EngineNotFoundError: `ultralytics` is not installed.
    """
    global _installed
    conflicts = chosen_conflicts(conflicts)
    engine = located()
    with _lock:
        if _installed is None:
            _installed = _patched(conflicts)
            _warn_of_an_old_release(engine.version)
    return engine


def _warn_of_an_old_release(version: str) -> None:
    if Version(version) < Version(_OLDEST_CHECKED):
        _LOGGER.warning(
            "ultralytics %s is older than %s: not every checkpoint and data YAML is checked before its code could run. "
            "Use only files that you trust, or: pip install --upgrade ultralytics",
            version,
            _OLDEST_CHECKED,
        )


def uninstall() -> None:
    """Undo `install` completely; without the adapter it does nothing."""
    global _installed
    with _lock:
        if _installed is not None:
            _installed.undo()
            _installed = None


def is_installed() -> bool:
    """Whether the adapter is in place in this process."""
    return _installed is not None


def _patched(conflicts: str) -> Patches:
    tasks = importlib.import_module(f"{NAME}.nn.tasks")
    dist = importlib.import_module(f"{NAME}.utils.dist")
    patches = Patches()
    try:
        patches.wrap(tasks, "parse_model", _with_blocks, tasks, conflicts)
        patches.set(importlib.import_module(f"{NAME}.nn"), "parse_model", tasks.parse_model)
        patches.wrap(tasks, "check_yaml", _with_shipped)
        patches.wrap(tasks.BaseModel, "load", _by_structure)
        patches.wrap(dist, "generate_ddp_file", _in_every_rank, conflicts)
        patches.wrap(importlib.import_module(f"{NAME}.utils.tuner"), "run_ray_tune", _in_every_trial, conflicts)
        for name in _STARTS_PROCESSES:
            module = importlib.import_module(f"{NAME}.{name}")
            if hasattr(module, "subprocess"):
                patches.view(module, "subprocess", run=functools.partial(_with_adapter, conflicts))
        ultralytics_guards.apply(patches)
    except BaseException:
        patches.undo()
        raise
    return patches


def _with_blocks(
    parse_model: Callable[..., Any], tasks: ModuleType, conflicts: str, d: dict[str, Any], *args: Any, **kwargs: Any
) -> Any:
    where = str(d.get("yaml_file") or "model dict")
    found = block_rows(d, tasks, where=where, conflicts=conflicts)
    backbone, head = list(d["backbone"]), list(d["head"])
    with Patches() as globals_of_tasks:
        for row in found:
            is_in_head = row.index >= len(backbone)
            section, index = (head, row.index - len(backbone)) if is_in_head else (backbone, row.index)
            if row.host:
                plain = [argument for argument in section[index][3] if not isinstance(argument, dict)]
                section[index] = [*section[index][:2], row.host, plain]
                continue
            # the space and the number keep it apart from all other names, also those of other threads
            name = f"{row.block.__name__} {next(_numbers)}"
            globals_of_tasks.set_item(vars(tasks), name, _builder(row))
            section[index] = [*section[index][:2], name, _Arguments(row.options)]
        layers, saved = parse_model({**d, "backbone": backbone, "head": head}, *args, **kwargs)
    put_blocks_inside(layers, [row for row in found if row.host])
    return layers, saved


class _Arguments(list):
    """The arguments of a block's row, which `parse_model` replaces by its own ``ch`` and ``f``.

    Printed, they show what the block gets: its channels and options.
    """

    def __init__(self, options: list[Any]) -> None:
        super().__init__(("ch", "f"))
        self._options = options

    def __str__(self) -> str:
        channels, source = self
        return str([channels[source], *self._options])


def _builder(row: BlockRow) -> type:
    """A class that `parse_model` calls with its ``ch`` and ``f``, and that returns the plain block."""

    class Builder(nn.Module):
        def __new__(cls, channels: list[int], source: int) -> Any:
            return row.build(channels[source])

    # the names that ultralytics prints
    Builder.__module__, Builder.__qualname__ = row.block.__module__, row.block.__qualname__
    return Builder


def _by_structure(load: Callable[..., Any], self: Any, weights: Any, *args: Any, **kwargs: Any) -> Any:
    """Around the weight transfer of ultralytics: match the rows of both models by structure.

    This is done only if one of the two models has an attention block.
    """
    model: Any = (weights.get("ema") or weights.get("model")) if isinstance(weights, dict) else weights
    if not (_has_blocks(self) or _has_blocks(model)):
        return load(self, weights, *args, **kwargs)
    try:
        found = fill_model_of_ultralytics(self, model, lambda moved: load(self, moved, *args, **kwargs))
    except ValueError:
        return load(self, weights, *args, **kwargs)
    _LOGGER.info(found.table())
    return None


def _has_blocks(model: Any) -> bool:
    return isinstance(model, nn.Module) and any(block_of(module) for module in model.modules())


def _with_shipped(check_yaml: Callable[..., Any], file: Any, *args: Any, **kwargs: Any) -> Any:
    """Around ultralytics' search for a YAML: if it finds none, look among those of this package."""
    try:
        return check_yaml(file, *args, **kwargs)
    except FileNotFoundError:
        shipped = shipped_cfg(str(file))
        if shipped is None:
            raise
        return str(shipped)


def _with_adapter(conflicts: str, command: Any, *args: Any, **options: Any) -> Any:
    """``subprocess.run`` for ultralytics' own command line: with the adapter. Other programs are run as they are."""
    words = shlex.split(command) if isinstance(command, str) else list(command)
    if words[1:3] != ["-m", _ITS_COMMAND_LINE]:
        return subprocess.run(command, *args, **options)
    # up to 8.3 the command is one text for a shell
    options.pop("shell", None)
    ours = [words[0], "-m", "yolov5_ema", "--conflicts", conflicts, "yolo"]
    return subprocess.run([*ours, *words[3:]], *args, **options)


def _in_every_rank(generate_ddp_file: Callable[..., str], conflicts: str, *args: Any, **kwargs: Any) -> str:
    """Make the file that each process of a training on several GPUs runs install the adapter first."""
    file = generate_ddp_file(*args, **kwargs)
    lines = _IN_EVERY_RANK.format(path=sys.path, conflicts=conflicts)
    text = Path(file).read_text(encoding="utf-8").replace(*_OWN_STATE)
    Path(file).write_text(lines + text, encoding="utf-8")
    return file


def _in_every_trial(run_ray_tune: Callable[..., Any], conflicts: str, model: Any, *args: Any, **kwargs: Any) -> Any:
    """Around ``tune(use_ray=True)``: Ray pickles the model for the processes of its trials; it brings the adapter."""
    model.__dict__[_OnArrival.__name__] = _OnArrival(conflicts)
    try:
        return run_ray_tune(model, *args, **kwargs)
    finally:
        del model.__dict__[_OnArrival.__name__]


class _OnArrival:
    """An object that installs the adapter where it is unpickled."""

    def __init__(self, conflicts: str) -> None:
        self._conflicts = conflicts

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, (self._conflicts,)


def _arrived(conflicts: str) -> _OnArrival:
    install(conflicts=conflicts)
    return _OnArrival(conflicts)
