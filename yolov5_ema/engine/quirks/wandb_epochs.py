"""Weights & Biases with 7.0.14: YOLOv5 calls its logger with an argument that the logger does not accept."""

from __future__ import annotations

from yolov5_ema.engine.quirks.base import Quirk, SourceModule
from yolov5_ema.upstream.patching import Patches
from yolov5_ema.upstream.source_code import parameters


def _is_the_logger(module: SourceModule) -> bool:
    return module.name == "utils.loggers.wandb.wandb_utils" and module.code.defines("WandbLogger")


def _needed(module: SourceModule) -> str | None:
    logger = module.code.part("WandbLogger") if _is_the_logger(module) else None
    end_epoch = logger.part("end_epoch") if logger is not None else None
    if end_epoch is not None and parameters(end_epoch) == ["self"]:
        return "7.0.14 calls end_epoch(best_result=…), but the logger's end_epoch takes no arguments"
    return None


def _apply(module: SourceModule, patches: Patches) -> None:
    patches.wrap(module.module.WandbLogger, "end_epoch", lambda end_epoch, self, best_result=False: end_epoch(self))


WANDB_EPOCHS = Quirk(
    name="wandb-epochs",
    symptom="train with wandb: end_epoch() got an unexpected keyword argument 'best_result' after the first epoch",
    versions="PyPI 7.0.14",
    needed=_needed,
    settled=_is_the_logger,
    apply=_apply,
)
