"""The learning rate as a function of the progress of a training."""

from __future__ import annotations

import math

from yolov5_ema.classification.recipes import Settings


def learning_rate(settings: Settings, epoch: int, done: float = 0.0) -> float:
    """Return the learning rate of a step.

    In the warm-up, it rises linearly from ``warmup_lr`` to ``lr``. After that, it depends on ``schedule``:

    - ``step``: ``lr`` times ``gamma`` to the power of the number of milestones reached.
    - ``cosine``: half a cosine from ``lr`` to ``final_lr`` over the whole training; as in timm, the warm-up replaces
      its beginning.
    - ``constant``: ``lr``.

    Args:
        settings: settings of the training.
        epoch: the epoch, counted from 0.
        done: finished share of the epoch, 0 to 1.
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
