"""Packages that YOLOv5 imports when it starts and few commands use: together they take as long as torch itself."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator

from yolov5_ema.engine.quirks.base import Quirk, SourceModule, by_absence
from yolov5_ema.late_modules import Late, compiler_of_torchvision, matplotlib, pandas, standing_in


def _late(module: SourceModule) -> list[Late]:
    """Stand-ins for what a module of YOLOv5 imports, directly or through torchvision."""
    found: list[Late] = []
    found += (Late(name, is_package=True) for name in ("seaborn", "requests") if _imports(module, name))
    if _imports(module, "pandas"):
        found.append(pandas())
    if _imports(module, "matplotlib"):
        found += matplotlib()
    if _imports(module, "torchvision"):
        found.append(compiler_of_torchvision())
    return found


def _imports(module: SourceModule, name: str) -> bool:
    """Whether a module imports an installed package when it runs."""
    if not module.code.imports(name, within_function=False):
        return False
    return name in sys.modules or importlib.util.find_spec(name) is not None


def _needed(module: SourceModule) -> str | None:
    names = [stand_in.__name__ for stand_in in _late(module)]
    return f"it imports {' and '.join(names)}, which few commands use" if names else None


@contextlib.contextmanager
def _while_running(module: SourceModule) -> Iterator[None]:
    with standing_in(*_late(module)):
        yield


IMPORTS_WHEN_USED = Quirk(
    name="imports-when-used",
    symptom="every command takes two seconds more to start",
    versions="all",
    needed=_needed,
    settled=by_absence,
    while_running=_while_running,
)
