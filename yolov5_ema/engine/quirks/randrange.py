"""``random.randrange`` with floats, refused since Python 3.12 (``--multi-scale``)."""

from __future__ import annotations

import random
import re
import sys
from typing import Any

from yolov5_ema.engine.patching import Patches
from yolov5_ema.engine.quirks.base import Quirk, SourceModule


def _whole_randrange(*bounds: Any) -> int:
    return random.randrange(*(int(bound) for bound in bounds))


def _needed(module: SourceModule) -> str | None:
    if not re.search(r"random\.randrange\(imgsz \* 0\.5", module.source) or sys.version_info < (3, 10):
        return None
    return f"Python {sys.version_info[0]}.{sys.version_info[1]} wants whole numbers in randrange"


def _apply(module: SourceModule, patches: Patches) -> None:
    patches.view(module.module, "random", randrange=_whole_randrange)


RANDRANGE_FLOAT = Quirk(
    name="randrange-float",
    symptom="--multi-scale: TypeError (a DeprecationWarning before Python 3.12) in random.randrange",
    versions="6.0 to 6.2",
    needed=_needed,
    apply=_apply,
)
