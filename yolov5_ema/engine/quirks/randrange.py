"""``random.randrange`` with floats (``--multi-scale``), which Python 3.12 and later refuse."""

from __future__ import annotations

import ast
import random
import sys
from typing import Any

from yolov5_ema.engine.quirks.base import Quirk, SourceModule, by_absence
from yolov5_ema.upstream.source_code import value_of


def _whole_randrange(*bounds: Any) -> int:
    return random.randrange(*(int(bound) for bound in bounds))


def _needed(module: SourceModule) -> str | None:
    bounds = [bound for call in module.code.calls("random.randrange") for bound in call.args]
    if not any(_is_broken(bound) for bound in bounds) or sys.version_info < (3, 10):
        return None
    return f"Python {sys.version_info[0]}.{sys.version_info[1]} accepts only whole numbers in randrange"


def _is_broken(bound: ast.AST) -> bool:
    """Whether a sum or product contains a float: ``imgsz * 0.5``, but not ``int(imgsz * 0.5)``."""
    if isinstance(bound, ast.BinOp):
        return _is_broken(bound.left) or _is_broken(bound.right)
    return isinstance(value_of(bound), float)


RANDRANGE_FLOAT = Quirk(
    name="randrange-float",
    symptom="--multi-scale: TypeError (a DeprecationWarning before Python 3.12) in random.randrange",
    versions="6.0 to 7.0; PyPI 6.0.7 to 6.2.3",
    needed=_needed,
    settled=by_absence,
    apply=lambda module, patches: patches.view(module.module, "random", randrange=_whole_randrange),
)
