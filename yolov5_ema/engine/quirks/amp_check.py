"""The check of mixed precision (``check_amp``), for which some PyPI packages import ``models.common``."""

from __future__ import annotations

from yolov5_ema.checkpoints.loading import with_aliases
from yolov5_ema.engine.quirks.base import Quirk, SourceModule, by_absence


def _needed(module: SourceModule) -> str | None:
    if module.engine.kind != "package" or module.name != "utils.general":
        return None
    check_amp = module.code.part("check_amp")
    if check_amp is not None and check_amp.imports("models.common"):
        return "check_amp imports models.common, which the package calls yolov5.models.common"
    return None


AMP_CHECK = Quirk(
    name="amp-check",
    symptom="train: ModuleNotFoundError: No module named 'models.common'",
    versions="PyPI 6.1.9",
    needed=_needed,
    settled=by_absence,
    apply=lambda module, patches: patches.wrap(module.module, "check_amp", with_aliases, module.engine),
)
