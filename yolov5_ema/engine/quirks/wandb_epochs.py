"""Weights & Biases with 7.0.14: its logger is called with an argument that it does not take."""

from __future__ import annotations

import functools
import re
from typing import Any

from yolov5_ema.engine.patching import Patches
from yolov5_ema.engine.quirks.base import Quirk, SourceModule


def _needed(module: SourceModule) -> str | None:
    if module.name == "utils.loggers.wandb.wandb_utils" and re.search(
        r"^    def end_epoch\(self\)", module.source, re.MULTILINE
    ):
        return "7.0.14 calls end_epoch(best_result=…) of a logger that takes nothing"
    return None


def _apply(module: SourceModule, patches: Patches) -> None:
    logger = module.module.WandbLogger
    end_epoch = logger.end_epoch

    @functools.wraps(end_epoch)
    def wrapper(self: Any, best_result: bool = False) -> Any:
        return end_epoch(self)

    patches.set(logger, "end_epoch", wrapper)


WANDB_EPOCHS = Quirk(
    name="wandb-epochs",
    symptom="train with wandb: end_epoch() got an unexpected keyword argument 'best_result' after the first epoch",
    versions="PyPI 7.0.14",
    needed=_needed,
    apply=_apply,
)
