"""NumPy names that are gone: ``np.int`` (1.24), ``np.trapz`` (2.4) and their like."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from yolov5_ema.engine.patching import Patches
from yolov5_ema.engine.quirks.base import Quirk, SourceModule

_REPLACEMENTS: dict[str, Any] = {
    "int": int,
    "float": float,
    "bool": bool,
    "object": object,
    "trapz": getattr(np, "trapezoid", None) or getattr(np, "trapz", None),
}


def _missing_names(source: str) -> list[str]:
    # np.bool came back in NumPy 2 with another meaning, so ask NumPy, not a version number
    used = [name for name in _REPLACEMENTS if re.search(rf"\bnp\.{name}\b", source)]
    return [name for name in used if name not in np.__dict__]


def _needed(module: SourceModule) -> str | None:
    missing = _missing_names(module.source)
    return f"NumPy {np.__version__} lacks {', '.join('np.' + name for name in missing)}" if missing else None


def _apply(module: SourceModule, patches: Patches) -> None:
    names = _missing_names(module.source)
    patches.view(module.module, "np", **{name: _REPLACEMENTS[name] for name in names})


NUMPY_NAMES = Quirk(
    name="numpy-names",
    symptom="AttributeError: module 'numpy' has no attribute 'int' / 'trapz'",
    versions="6.0 to 7.0.14",
    needed=_needed,
    apply=_apply,
)
