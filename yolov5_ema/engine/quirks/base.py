"""What a quirk is."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Callable

from yolov5_ema.engine.locate import Engine
from yolov5_ema.engine.patching import Patches


@dataclass(frozen=True)
class SourceModule:
    """One module of YOLOv5, before or after it ran.

    Attributes:
        engine: the YOLOv5 that it belongs to.
        name: relative to the root, such as ``utils.loss``.
        source: its text.
        module: the module itself; None while only the text is looked at.
    """

    engine: Engine
    name: str
    source: str
    module: Any = None


def _change_nothing(module: SourceModule, patches: Patches) -> None:
    return None


def _no_context(module: SourceModule) -> AbstractContextManager[None]:
    return contextlib.nullcontext()


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
    """

    name: str
    symptom: str
    versions: str
    needed: Callable[[SourceModule], str | None]
    apply: Callable[[SourceModule, Patches], None] = field(default=_change_nothing)
    while_running: Callable[[SourceModule], AbstractContextManager[None]] = field(default=_no_context)
