"""Checks of numbers on the command line that would make YOLOv5 stop halfway, or train nothing."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from yolov5_ema.checkpoints.loading import load_checkpoint
from yolov5_ema.data.yaml_files import load_yaml
from yolov5_ema.errors import UserError
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.source_code import code_in

_LEAST = {"epochs": 1, "batch_size": 1, "imgsz": 1, "workers": 0, "freeze": 0, "patience": 0}
_WITHOUT_WEIGHTS = {"Concat", "nn.Upsample", "Upsample", "Contract", "Expand"}


def check_values(opt: argparse.Namespace, script: str, engine: Engine) -> None:
    """Check the numbers among the parsed flags of one of YOLOv5's scripts.

    Raises:
        UserError: a number is not allowed; the message names the flag and the allowed values.
    """
    for name, least in _LEAST.items():
        value = getattr(opt, name, None)
        for number in value if isinstance(value, (list, tuple)) else [value]:
            is_asked_for = name == "batch_size" and number == -1 and _finds_batch_size(script, engine)
            if type(number) is int and number < least and not is_asked_for:
                raise UserError(f"--{name.replace('_', '-')} {number}: must be {least} or more{_hint(name)}")
    if script.split(".")[-1] == "train":
        _check_freeze(opt, engine)


def _hint(name: str) -> str:
    return " (-1 chooses a size automatically, only in train of v6.1 and later)" if name == "batch_size" else ""


def _finds_batch_size(script: str, engine: Engine) -> bool:
    file = engine.root / f"{script.replace('.', '/')}.py"
    return script.endswith("train") and code_in(file).has("batch_size == -1")


def _check_freeze(opt: argparse.Namespace, engine: Engine) -> None:
    """Refuse to freeze all rows, because nothing would be left to train."""
    given = getattr(opt, "freeze", None) or []
    given = given if isinstance(given, list) else [given]
    frozen = set(range(given[0])) if len(given) == 1 else set(given)
    rows = _rows_with_weights(opt, engine) if frozen else set()
    if rows and rows <= frozen:
        raise UserError(
            f"--freeze {' '.join(map(str, given))}: nothing would be trained, because the model's last row is "
            f"{max(rows)}; --freeze {max(rows)} freezes all rows before that one"
        )


def _rows_with_weights(opt: argparse.Namespace, engine: Engine) -> set[int]:
    """The numbers of the rows that have weights; empty if they cannot be found out."""
    if getattr(opt, "cfg", ""):
        content = load_yaml(Path(opt.cfg))
        modules = [row[2] for row in [*content["backbone"], *content["head"]]]
        return {index for index, module in enumerate(modules) if str(module) not in _WITHOUT_WEIGHTS}
    weights = Path(str(getattr(opt, "weights", "") or ""))
    if weights.suffix != ".pt" or not weights.is_file():
        return set()
    checkpoint: Any = load_checkpoint(weights, "cpu", engine=engine)
    rows = getattr(checkpoint.get("ema") or checkpoint.get("model"), "model", None) or ()
    return {index for index, row in enumerate(rows) if any(True for _ in row.parameters())}
