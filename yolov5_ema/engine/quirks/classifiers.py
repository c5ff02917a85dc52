"""``classify/train.py --model detector.pt``: YOLOv5 cuts a detector after row 9, wherever its backbone ends."""

from __future__ import annotations

import functools
import logging
import sys
from typing import Any

from torch import nn

from yolov5_ema.blocks.registry import block_of
from yolov5_ema.engine.quirks.base import Quirk, SourceModule
from yolov5_ema.errors import UserError
from yolov5_ema.upstream.patching import Patches
from yolov5_ema.upstream.source_code import keyword

_LOGGER = logging.getLogger(__name__)

_CLASS = "ClassificationModel"


def _needed(module: SourceModule) -> str | None:
    calls = module.code.calls(_CLASS) if _CLASS in module.code.own_names else []
    if module.code.has_flag("--cutoff") and any(keyword(call, "cutoff") is not None for call in calls):
        return "it takes the first ten rows as the backbone, but an inserted row shifts the end of the backbone"
    return None


def _apply(module: SourceModule, patches: Patches) -> None:
    make = getattr(module.module, _CLASS)

    @functools.wraps(make, updated=())
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        opt = sys._getframe(1).f_locals.get("opt")
        if getattr(opt, "cutoff", None) is None and kwargs.get("model") is not None:
            kwargs["cutoff"] = cutoff_of(kwargs["model"], kwargs.get("cutoff", 10))
        return make(*args, **kwargs)

    patches.set(module.module, _CLASS, wrapper)


def cutoff_of(model: Any, usual: int) -> int:
    """Return how many rows of a detector a classifier takes; the classifier's head replaces the last of them.

    The last row is the SPPF at the end of the backbone, as in YOLOv5's own models. If a block follows the SPPF, it is
    the row after that block.

    Args:
        model: the detector.
        usual: YOLOv5's own number, for models without attention blocks in the backbone.

    Raises:
        UserError: a classifier's head cannot replace that row.
    """
    end = len(model.yaml["backbone"])
    rows = list(model.model)
    if not any(map(_has_block, rows[:end])):
        return usual
    chosen = end + 1 if _has_block(rows[end - 1]) else end
    last = rows[chosen - 1]
    if not hasattr(last, "conv") and not hasattr(getattr(last, "cv1", None), "conv"):
        raise UserError(
            f"--model: a classifier's head cannot replace row {chosen - 1}, {type(last).__name__}: its input channels "
            "are not known. Choose the number of rows to keep: --cutoff N"
        )
    _LOGGER.info(
        "classifier: uses rows 0 to %d of the detector, its backbone; --cutoff sets another number",
        chosen - 2,
    )
    return chosen


def _has_block(row: nn.Module) -> bool:
    # all modules, because a repeated block is inside a Sequential
    return any(block_of(part) for part in row.modules())


CLASSIFIER_CUTOFF = Quirk(
    name="classifier-cutoff",
    symptom="classify/train.py --model detector.pt: the last C3 and the block after it are cut off",
    versions="6.2 and later",
    needed=_needed,
    settled=lambda module: not module.engine.has_script("classify.train"),
    apply=_apply,
)
