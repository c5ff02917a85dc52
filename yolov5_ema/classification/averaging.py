"""Averaged weights: an exponential moving average with `torch.optim.swa_utils`."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """Make a moving average of a model: ``average = d * average + (1 - d) * weights`` at each `update_parameters`.

    ``d`` is the smaller of ``decay`` and (1 + n) / (10 + n) at update n, counted from 0, so that the first steps do not
    dominate the average of a short training. The first update copies the weights. Running statistics of BatchNorm are
    averaged in the same way.

    Args:
        model: the model to average; it maps (N, 3, H, W) to logits.
        decay: from 0 to 1, such as 0.9998.
    """

    def average(kept: torch.Tensor, new: torch.Tensor, updates: torch.Tensor | int) -> torch.Tensor:
        if not kept.is_floating_point():
            return new
        # 1 - d, computed directly because 1 - d loses digits in float32
        share = torch.clamp(9 / (10 + torch.as_tensor(updates)), min=1 - decay)
        return torch.lerp(kept, new.to(kept.dtype), share.to(kept.dtype))

    follower = AveragedModel(model, avg_fn=average, use_buffers=True)
    return follower.requires_grad_(False)
