"""Old names of modules, which the documents of version 0.1 mention: importing one of them gives the new module."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_OLD = "yolov5_ema."
_NEW = {
    "engine.cfg_generator": "cfgs.generator",
    "engine.checkpoints": "checkpoints.loading",
    "engine.conversion": "checkpoints.conversion",
    "engine.data_yaml": "upstream.data_yaml",
    "engine.locate": "upstream.locate",
    "engine.predictor": "detecting.loading",
    "engine.sliced": "scripts.sliced",
    "engine.transferring": "checkpoints.transferring",
    "comparing.statistics": "comparing.intervals",
    "evaluation.statistics": "comparing.intervals",
}


class _Moved(MetaPathFinder, Loader):
    """Finds modules by their old names. It comes last, so it is asked only if no other finder knows a module."""

    def __init__(self) -> None:
        self._own: dict[str, ModuleSpec | None] = {}

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        if fullname.removeprefix(_OLD) not in _NEW or not fullname.startswith(_OLD):
            return None
        return ModuleSpec(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = _OLD + _NEW[spec.name.removeprefix(_OLD)]
        warnings.warn(f"{spec.name} is {new} now", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(new)
        self._own[spec.name] = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Set the specification back: the module has run already, but Python has given it that of the old name."""
        if module.__spec__ is not None:
            module.__spec__ = self._own.pop(module.__spec__.name, module.__spec__)


def support_old_names() -> None:
    """Let modules be imported by their old names; further calls in the same process change nothing."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
