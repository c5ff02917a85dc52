"""Reading and checking the hyperparameter file of a training: names with numbers."""

from __future__ import annotations

import ast
import math
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from yolov5_ema.data.yaml_files import read_yaml
from yolov5_ema.errors import ConfigError
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.source_code import Code, code_in, dotted, value_of

_MOST = 200
_MOST_ANCHORS = 100
_LARGEST = 1e6
_OPTIONAL = {"anchors", "label_smoothing"}


def read_hyp(file: Path, needed: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Read a hyperparameter file; see `check_hyp`.

    Raises:
        ConfigError: the file cannot be read, or holds something else; the message names the file and the key.
    """
    return check_hyp(read_yaml(file), str(file), needed)


def check_hyp(content: Any, where: str, needed: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Check that hyperparameters are names with numbers.

    Args:
        content: what a file holds.
        where: the file's name, for messages.
        needed: names that must be there, see `names_read`.

    Raises:
        ConfigError: one is missing or is not a number; the message names the file and the key.
    """
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"{where} must hold hyperparameters, one on each line, such as 'lr0: 0.01'")
    if len(content) > _MOST:
        raise ConfigError(f"{where} holds {len(content):,} hyperparameters; YOLOv5 has about 30")
    for name, value in content.items():
        _check_number(name, value, where)
    missing = sorted(needed - content.keys())
    if missing:
        raise ConfigError(f"{where}: missing hyperparameters: {', '.join(missing)}")
    return dict(content)


def _check_number(name: str, value: Any, where: str) -> None:
    if value is None and name == "anchors":
        return
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number:
        hint = " (YAML reads 1e-3 as text; write 1.0e-3)" if isinstance(value, str) else ""
        raise ConfigError(f"{where}: {name[:60]} must be a number, not {reprlib.repr(value)}{hint}")
    most = _MOST_ANCHORS if name == "anchors" else _LARGEST
    if not math.isfinite(value) or abs(value) > most:
        raise ConfigError(f"{where}: {name[:60]} must be a number up to {most:g}, not {reprlib.repr(value)}")


def names_read(engine: Engine, script: Path) -> frozenset[str]:
    """Names of the hyperparameters that a training script of a YOLOv5, or its loss, cannot run without."""
    files = [file for file in (script, engine.root / "utils" / "loss.py") if file.is_file()]
    return frozenset(name for file in files for name in _read_in(code_in(file))) - _OPTIONAL


def _read_in(code: Code) -> Iterator[str]:
    """The keys that code reads or changes in ``hyp`` or ``self.hyp``."""
    changed = [node.target for node in code.all(ast.AugAssign)]
    for node in code.all(ast.Subscript):
        is_read = isinstance(node.ctx, ast.Load) or node in changed
        key = value_of(node.slice)
        if is_read and isinstance(key, str) and dotted(node.value).split(".")[-1] == "hyp":
            yield key
