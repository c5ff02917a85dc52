"""Names that NumPy has removed, such as ``np.int`` (in 1.24) and ``np.trapz`` (in 2.4)."""

from __future__ import annotations

import ast
import warnings
from typing import Any

import numpy as np

from yolov5_ema.engine.quirks.base import Quirk, SourceModule, by_absence
from yolov5_ema.upstream.patching import Patches
from yolov5_ema.upstream.source_code import Code, dotted

_REPLACEMENTS: dict[str, Any] = {
    "int": int,
    "float": float,
    "bool": bool,
    "object": object,
    "trapz": getattr(np, "trapezoid", None) or getattr(np, "trapz", None),
}


def _missing_names(code: Code) -> list[str]:
    # np.bool came back in NumPy 2 with another meaning, so look at NumPy itself, not at its version
    missing = [name for name in _REPLACEMENTS if f"np.{name}" in code.names and not _is_there(name)]
    if not missing or "np" not in code.own_names:
        return []
    checked = _checked_names(code)
    used = {dotted(node) for node in code.all(ast.Attribute) if node.attr in missing and node not in checked}
    return [name for name in missing if f"np.{name}" in used]


def _is_there(name: str) -> bool:
    with warnings.catch_warnings():  # NumPy up to 1.23 still has the names, and warns
        warnings.simplefilter("ignore")
        return hasattr(np, name)


def _checked_names(code: Code) -> set[ast.AST]:
    """The nodes of the dotted names that the code checks with ``hasattr`` first."""
    if not code.calls("hasattr"):
        return set()
    choices: tuple[ast.If | ast.IfExp, ...] = (*code.all(ast.If), *code.all(ast.IfExp))
    checked = (node for node in choices if Code(node.test).calls("hasattr"))
    return {name for node in checked for name in Code(node).all(ast.Attribute)}


def _needed(module: SourceModule) -> str | None:
    missing = _missing_names(module.code)
    return f"NumPy {np.__version__} has no {', '.join('np.' + name for name in missing)}" if missing else None


def _apply(module: SourceModule, patches: Patches) -> None:
    names = _missing_names(module.code)
    patches.view(module.module, "np", **{name: _REPLACEMENTS[name] for name in names})


NUMPY_NAMES = Quirk(
    name="numpy-names",
    symptom="AttributeError: module 'numpy' has no attribute 'int' / 'trapz'",
    versions="6.0 to 7.0.14",
    needed=_needed,
    settled=by_absence,
    apply=_apply,
)
