"""EMA as in the paper: the reference that every other implementation is tested against.

Paper: "Efficient Multi-Scale Attention Module with Cross-Spatial Learning", Ouyang et al., ICASSP 2023,
arXiv 2305.13563. Reference implementation: https://github.com/YOLOonMe/EMA-attention-module

The steps between the layers are separate functions. `ema_reference` computes the layers from their parameters; a block
whose layers are not plain calls the layers instead.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from yolov5_ema.kernels.ema.arguments import PUBLISHED, EMAArguments, EMAVariant, check_unless_traced
from yolov5_ema.kernels.numerics import group_norm, saturate, stable_mean, wide_dtype


def ema_reference(
    x: torch.Tensor,
    arguments: EMAArguments,
    variant: EMAVariant = PUBLISHED,
) -> torch.Tensor:
    """Section 3.2 of the paper, step by step.

    Args:
        x: feature map (N, C, H, W), any floating dtype.
        arguments: parameters, groups and eps.
        variant: what differs from the paper.

    Returns:
        (N, C, H, W) in the dtype of ``x``.

    Raises:
        RuntimeError: shapes, devices or dtypes that do not fit together.
    """
    if not torch.jit.is_scripting():
        check_unless_traced(x, arguments, variant.depthwise)
    w1, b1, gamma, beta, w3, b3, groups, eps = arguments
    cross_spatial, norm_groups, depthwise = variant
    n, _, h, w = x.shape
    # a constant even if the size of x is not
    k = w1.shape[0]
    gx = x.reshape(n * groups, k, h, w)  # (NG, k, H, W)
    y = gated(gx, F.conv2d(means_of_sides(gx), w1, b1))  # (NG, k, H, W)
    wide = wide_dtype(y)
    norms = k if norm_groups is None else norm_groups
    x1 = group_norm(y.to(wide), norms, gamma.to(wide), beta.to(wide), eps)  # (NG, k, H, W)
    x2 = F.conv2d(gx, w3, b3, padding=1, groups=k if depthwise else 1)  # (NG, k, H, W)
    return attended(gx, x1, x2, cross_spatial).reshape(x.shape)  # (N, C, H, W)


def means_of_sides(gx: torch.Tensor) -> torch.Tensor:
    """Means along each side of the maps: (NG, k, H, W) -> (NG, k, H+W, 1)."""
    mean_w = stable_mean(gx, [3])  # (NG, k, H, 1)
    mean_h = stable_mean(gx, [2]).transpose(2, 3)  # (NG, k, W, 1)
    return torch.cat([mean_w, mean_h], dim=2).to(gx.dtype)


def gated(gx: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """The maps times both gates, from the scores (NG, k, H+W, 1) that the 1x1 convolution gives."""
    h = gx.shape[2]
    gates = scores.sigmoid()
    return gx * gates[:, :, :h] * gates[:, :, h:].transpose(2, 3)  # (NG, k, H, W)


def attended(gx: torch.Tensor, x1: torch.Tensor, x2: torch.Tensor, cross_spatial: bool) -> torch.Tensor:
    """The maps times the sigmoid of the attention computed from both branches, (NG, k, H, W) each."""
    x2 = saturate(x2)
    if cross_spatial:
        p = stable_mean(x1, [2, 3]).flatten(2).transpose(1, 2).softmax(-1)  # (NG, 1, k)
        q = stable_mean(x2, [2, 3]).flatten(2).transpose(1, 2).softmax(-1)  # (NG, 1, k)
        from_3x3 = torch.matmul(p.to(x2.dtype), x2.flatten(2))  # (NG, 1, HW)
        from_1x1 = torch.matmul(q.to(x1.dtype), x1.flatten(2))  # (NG, 1, HW)
        attention = (from_3x3 + from_1x1).reshape(-1, 1, gx.shape[2], gx.shape[3])  # (NG, 1, H, W)
    else:
        attention = x1 + x2  # (NG, k, H, W)
    return gx * attention.sigmoid().to(gx.dtype)  # (NG, k, H, W)
