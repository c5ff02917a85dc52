"""What a quirk is."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.patching import Patches
from yolov5_ema.upstream.source_code import Code


@dataclass(frozen=True)
class SourceModule:
    """One module of YOLOv5, before or after it ran.

    Attributes:
        engine: the YOLOv5 that it belongs to.
        name: relative to the root, such as ``utils.loss``.
        source: its text; what is asked of it is asked of `code`, for which quotes and line breaks are all the same.
        module: the module itself; None while only the text is looked at.
    """

    engine: Engine
    name: str
    source: str
    module: Any = None

    @functools.cached_property
    def code(self) -> Code:
        """Its syntax tree."""
        return Code(self.source)

    def after(self, module: Any) -> SourceModule:
        """The same one after it ran."""
        later = replace(self, module=module)
        vars(later)["code"] = self.code
        return later


def _change_nothing(module: SourceModule, patches: Patches) -> None:
    return None


def _no_context(module: SourceModule) -> AbstractContextManager[None]:
    return contextlib.nullcontext()


def never(module: SourceModule) -> bool:
    """For what every known YOLOv5 needs: one in which it is not found does it in a way that is not known."""
    return False


def by_absence(module: SourceModule) -> bool:
    """For names that YOLOv5 uses or not: a YOLOv5 without them does without the quirk."""
    return True


@dataclass(frozen=True)
class Quirk:
    """One thing that breaks, and its cure.

    Attributes:
        name: short and unique; what ``doctor`` prints.
        symptom: what a user sees without it.
        versions: the YOLOv5 versions that need it; 6.0.7 and 7.0.14 were run, others are expected to.
        needed: given a module, the reason why it needs the cure, or None.
        apply: changes the module after it ran.
        while_running: a context in which the module's own code runs, for what breaks at import.
        settled: whether a module that does not need the cure shows that the YOLOv5 does without it. Where none does,
            ``doctor`` says that the cure may be needed and is off.
    """

    name: str
    symptom: str
    versions: str
    needed: Callable[[SourceModule], str | None]
    apply: Callable[[SourceModule, Patches], None] = field(default=_change_nothing)
    while_running: Callable[[SourceModule], AbstractContextManager[None]] = field(default=_no_context)
    settled: Callable[[SourceModule], bool] = field(default=never)
