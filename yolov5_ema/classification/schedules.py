"""Learning rates as a function of how far a training is."""

from __future__ import annotations

import math

from yolov5_ema.classification.recipes import Settings


def learning_rate(settings: Settings, epoch: int, done: float = 0.0) -> float:
    """The learning rate of a step.

    In the warm-up it rises linearly from ``warmup_lr`` to ``lr``. Then, by ``schedule``: ``step``, ``lr`` times
    ``gamma`` to the power of how many milestones are reached; ``cosine``, half a cosine over the whole training from
    ``lr`` to ``final_lr`` (the warm-up takes the place of its beginning, as in timm); or ``constant``.

    Args:
        settings: of the training.
        epoch: counted from 0.
        done: share of the epoch that lies behind, 0 to 1.
    """
    time = epoch + done
    if time < settings.warmup_epochs:
        return settings.warmup_lr + (settings.lr - settings.warmup_lr) * time / settings.warmup_epochs
    if settings.schedule == "step":
        return settings.lr * settings.gamma ** sum(epoch >= stone for stone in settings.milestones)
    if settings.schedule == "cosine":
        wave = (1 + math.cos(math.pi * time / settings.epochs)) / 2
        return settings.final_lr + (settings.lr - settings.final_lr) * wave
    return settings.lr
