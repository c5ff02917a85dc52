"""The check of mixed precision (``check_amp``), for which some PyPI packages import ``models.common``."""

from __future__ import annotations

import functools
from typing import Any

from yolov5_ema.checkpoints.loading import module_aliases
from yolov5_ema.engine.quirks.base import Quirk, SourceModule, by_absence
from yolov5_ema.upstream.patching import Patches


def _needed(module: SourceModule) -> str | None:
    if module.engine.kind != "package" or module.name != "utils.general":
        return None
    check_amp = module.code.part("check_amp")
    if check_amp is not None and check_amp.imports("models.common"):
        return "check_amp imports models.common, which the package calls yolov5.models.common"
    return None


def _apply(module: SourceModule, patches: Patches) -> None:
    check_amp = module.module.check_amp

    @functools.wraps(check_amp)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with module_aliases(module.engine):
            return check_amp(*args, **kwargs)

    patches.set(module.module, "check_amp", wrapper)


AMP_CHECK = Quirk(
    name="amp-check",
    symptom="train: ModuleNotFoundError: No module named 'models.common'",
    versions="PyPI 6.1.9",
    needed=_needed,
    settled=by_absence,
    apply=_apply,
)
