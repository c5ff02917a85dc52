"""The definition of a quirk."""

from __future__ import annotations

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
        engine: the YOLOv5 that the module belongs to.
        name: name relative to the root, such as ``utils.loss``.
        source: text of the module. Search `code` rather than this text: it ignores quotes and line breaks.
        module: the module itself; None while only the text is looked at.
    """

    engine: Engine
    name: str
    source: str
    module: Any = None

    @functools.cached_property
    def code(self) -> Code:
        """The module's syntax tree."""
        return Code(self.source)

    def after(self, module: Any) -> SourceModule:
        """Return the same module after it ran."""
        later = replace(self, module=module)
        vars(later)["code"] = self.code
        return later


def never(module: SourceModule) -> bool:
    """A `Quirk.settled` for what every known YOLOv5 needs: one without it works in an unknown way."""
    return False


def by_absence(module: SourceModule) -> bool:
    """A `Quirk.settled` for names: a YOLOv5 that does not use the name does not need the quirk."""
    return True


@dataclass(frozen=True)
class Quirk:
    """One thing that breaks, and its fix.

    Attributes:
        name: short and unique; ``doctor`` prints it.
        symptom: what a user sees without the fix.
        versions: the YOLOv5 versions that need it; 6.0.7 and 7.0.14 were run, others are expected to.
        needed: takes a module and returns whether it needs the fix: true or false, or a reason of its own.
        reason: why modules need it, unless ``needed`` gives the reason. See `why`.
        apply: changes the module after it ran.
        while_running: a context in which the module's own code runs, for what breaks at import, or None.
        settled: takes a module that does not need the fix, and returns whether it shows that this YOLOv5 does not need
            the fix at all. If no module shows that, ``doctor`` says that the fix may be needed and is off.
    """

    name: str
    symptom: str
    versions: str
    needed: Callable[[SourceModule], Any]
    reason: str = ""
    apply: Callable[[SourceModule, Patches], None] = field(default=lambda module, patches: None)
    while_running: Callable[[SourceModule], AbstractContextManager[None]] | None = None
    settled: Callable[[SourceModule], bool] = field(default=never)

    def why(self, module: SourceModule) -> str | None:
        """The reason why a module needs the fix; None if it does not."""
        found = self.needed(module)
        return found if isinstance(found, str) else self.reason if found else None
