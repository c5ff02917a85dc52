"""Building a cfg without memory and without a trace, to know that it builds and runs."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any

import torch

from yolov5_ema.engine.locate import Engine
from yolov5_ema.engine.rows import checked_model, load_yaml
from yolov5_ema.errors import ConfigError

_SIDE = 256  # pixels; what YOLOv5 itself uses to find the strides


def check_model(cfg: str | Path, engine: Engine) -> dict[str, Any]:
    """Check a model YAML to the end: its rows, that each can be built, and that they fit together.

    The model is built and run on the meta device: shapes only.

    Returns:
        What the YAML holds.

    Raises:
        ConfigError: names file, row and what is wrong.
    """
    content = load_yaml(Path(cfg))
    yolo = importlib.import_module(engine.module_name("models.yolo"))
    conflicts = os.environ.get("YOLOV5_EMA_CONFLICTS") or "error"
    checked_model(content, yolo, where=str(cfg), conflicts=conflicts)
    channels = content.get("ch", 3)
    with quiet(), torch.device("meta"), torch.no_grad():
        layers, saved = yolo.parse_model({**content, "ch": channels}, [channels])
        _run_through(yolo, layers, saved, channels, str(cfg))
    return content


def _run_through(yolo: Any, layers: torch.nn.Sequential, saved: list[int], channels: int, cfg: str) -> None:
    model = SimpleNamespace(model=layers, save=saved)
    try:
        yolo.Model._forward_once(model, torch.zeros(1, channels, _SIDE, _SIDE))
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        row = _layer_at(error.__traceback__)
        if row is None:
            raise
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{cfg}, row {row.i}: {row.type} reading {row.f} cannot run: {reason}") from error


def _layer_at(traceback: TracebackType | None) -> Any:
    """The row that YOLOv5's forward loop was at: its variable ``m``."""
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_code.co_name == "_forward_once":
            return frame.f_locals.get("m")
        traceback = traceback.tb_next
    return None


@contextmanager
def quiet() -> Iterator[None]:
    """Without the table that YOLOv5 logs while it builds."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)
