"""Builds and runs the model of a cfg without memory (meta device), to check that it works."""

from __future__ import annotations

import copy
import importlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from types import SimpleNamespace, TracebackType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from yolov5_ema.data.yaml_files import load_yaml
from yolov5_ema.errors import ConfigError
from yolov5_ema.late_modules import without_compiler
from yolov5_ema.texts import first_line, suggested
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.ultralytics import is_cfg_of_ultralytics

_FORWARD_LOOPS = ("_forward_once", "_predict_once")
# pixels; YOLOv5 itself uses this size to find the strides
_SIDE = 256

# Limits for one image of that size. The largest models of YOLOv5 and of this package need 3,200, 5e10 and 1.3e9.
_MOST_OPERATIONS = 300_000
_MOST_ARITHMETIC = 5 * 10**11
_MOST_BYTES = 5 * 10**9


def check_model(cfg: str | Path, engine: Engine) -> dict[str, Any]:
    """Check a model YAML completely: that each row is valid and can be built, and that the rows fit together.

    The model is built and run on the meta device, with shapes only.

    Returns:
        The content of the YAML.

    Raises:
        ConfigError: the YAML is invalid; the message names the file and the row, and says what is wrong.
    """
    content = load_yaml(Path(cfg))
    if is_cfg_of_ultralytics(content):
        raise ConfigError(refusal_of_ultralytics(cfg))
    yolo = engine.module("models.yolo")
    check_builds(content, yolo, str(cfg))
    return content


def refusal_of_ultralytics(cfg: str | Path) -> str:
    """The message for a model YAML of ultralytics where YOLOv5's is needed."""
    command = suggested("train", f"model={cfg}", rest="data=…")
    return f"{cfg} is a model YAML of ultralytics, not of YOLOv5. To train it: {command}"


def check_builds(content: Mapping[str, Any], yolo: Any, cfg: str, *, model_class: Any = None) -> torch.nn.Sequential:
    """Build the rows of a model dict on the meta device and run them.

    Args:
        content: the content of a model YAML.
        yolo: YOLOv5's ``models.yolo``, with the shim installed, which checks the rows before they are built; or
            ``ultralytics.nn.tasks`` with the adapter.
        cfg: file name for messages; the shim reads this variable too.
        model_class: of ultralytics, the class of the model. Rows are not run if the class has its own way to do it.

    Returns:
        The rows, without memory.

    Raises:
        ConfigError: a row cannot be built or does not fit the one before it, the last row is not a detection head, or
            the model is too large to train.
    """
    channels = content.get("ch", 3)
    # on import, some releases of torchvision compute, which cannot be done without memory
    importlib.import_module("torchvision.ops")
    with quiet(), torch.device("meta"), torch.no_grad(), without_compiler(), _Ledger(cfg):
        try:
            first = [channels] if model_class is None else channels
            layers, saved = yolo.parse_model({**copy.deepcopy(dict(content)), "ch": channels}, first)
        except ConfigError:
            raise
        except Exception as error:
            # a layer's constructor can raise anything for invalid arguments
            raise ConfigError(f"{cfg}: it cannot be built: {first_line(error)}") from error
        if model_class is None:
            _check_last(layers[-1], cfg)
            _run_through(yolo.Model._forward_once, layers, saved, channels, cfg)
        elif model_class.predict is yolo.BaseModel.predict:
            _run_through(yolo.BaseModel._predict_once, layers, saved, channels, cfg)
    return layers


def _check_last(head: Any, where: str) -> None:
    if not hasattr(head, "anchors"):
        raise ConfigError(
            f"{where}: the last row is {type(head).__name__}, which does not detect; a detector ends in Detect"
        )
    for what in ("nc", "na"):
        count = getattr(head, what, 1)
        if not isinstance(count, int) or count < 1:
            raise ConfigError(
                f"{where}: {type(head).__name__} has {count!r} {'classes' if what == 'nc' else 'anchors'}; "
                "write [nc, anchors] to use those of the YAML"
            )


def _run_through(run: Any, layers: torch.nn.Sequential, saved: list[int], channels: int, cfg: str) -> None:
    model = SimpleNamespace(model=layers, save=saved)
    try:
        run(model, torch.zeros(1, channels, _SIDE, _SIDE))
    except ConfigError:
        raise
    except Exception as error:
        row = _layer_at(error.__traceback__)
        if row is None:
            raise
        raise ConfigError(f"{cfg}, row {row.i}: {row.type} reading {row.f} cannot run: {first_line(error)}") from error


def _layer_at(traceback: TracebackType | None) -> Any:
    """The row that was running in the engine's forward loop: its variable ``m``."""
    running = (frame for frame, _ in walk_tb(traceback) if frame.f_code.co_name in _FORWARD_LOOPS)
    return next((frame.f_locals.get("m") for frame in running), None)


class _Ledger(TorchDispatchMode):
    """Counts what building and running the model would need, and raises a `ConfigError` above the limits.

    YOLOv5 itself would use up the memory, or compute for days, before it reported an error.
    """

    def __init__(self, where: str) -> None:
        # Not at the top: it imports Triton.
        from torch.utils.flop_counter import flop_registry

        super().__init__()
        self.where = where
        self.counts = flop_registry
        self.operations = self.arithmetic = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.operations += 1
        count = self.counts.get(func._overloadpacket)
        if count is not None:
            self.arithmetic += count(*args, **(kwargs or {}), out_val=found)
        if isinstance(found, torch.Tensor) and not func.is_view:
            self.bytes += found.numel() * found.element_size()
        for what, amount, most in (
            ("operations", self.operations, _MOST_OPERATIONS),
            ("floating point operations", self.arithmetic, _MOST_ARITHMETIC),
            ("bytes of memory", self.bytes, _MOST_BYTES),
        ):
            if amount > most:
                raise ConfigError(
                    f"{self.where}: the model is too large: it needs more than {most:,} {what} for one image of "
                    f"{_SIDE} x {_SIDE} pixels"
                )
        return found


@contextmanager
def quiet() -> Iterator[None]:
    """Context manager that hides the table that YOLOv5 logs while it builds a model."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)
