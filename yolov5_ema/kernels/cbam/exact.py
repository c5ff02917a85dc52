"""CBAM's passes over the feature map in plain torch operations, with explicit derivatives.

Paper: "CBAM: Convolutional Block Attention Module", Woo et al., ECCV 2018, arXiv 1807.06521.

The block is pool -> MLP -> maps -> convolution and norm -> apply. The MLP and the convolution belong to the block.
The derivatives are expressions that autograd can differentiate again. They need only the input and small tensors;
autograd alone would keep more tensors of the input's size.

Shapes: x and y = x * gate_c (N, C, H, W), gate_c (N, C), maps (N, 2, H, W), gate_s (N, 1, H, W), all of one dtype.
"""

from __future__ import annotations

import torch
from torch.nn.grad import conv2d_input, conv2d_weight

from yolov5_ema.kernels.numerics import stable_mean


def pool(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and maximum of each channel: (N, C, H, W) -> (N, C) and (N, C)."""
    return stable_mean(x, [2, 3]).flatten(1).to(x.dtype), x.amax([2, 3])


def maps(y: torch.Tensor) -> torch.Tensor:
    """Maximum and mean over the channels, pixel by pixel: (N, C, H, W) -> (N, 2, H, W)."""
    peak = y.amax([1], keepdim=True)  # (N, 1, H, W)
    mean = stable_mean(y, [1]).to(y.dtype)  # (N, 1, H, W)
    return torch.cat([peak, mean], dim=1)


def scale(x: torch.Tensor, gate_c: torch.Tensor) -> torch.Tensor:
    """y: each channel times its gate."""
    return x * gate_c[:, :, None, None]


def pool_backward(
    d_x: torch.Tensor | None,
    d_pooled: torch.Tensor,
    x: torch.Tensor,
    peak: torch.Tensor,
) -> torch.Tensor:
    """Gradient of x: ``d_x``, plus the part from the means and maxima of its channels (2, N, C)."""
    d_mean, d_peak = d_pooled[:, :, :, None, None]
    is_peak = x == peak[:, :, None, None]
    found = _spread(d_mean / (x.shape[2] * x.shape[3]), d_peak, is_peak, [2, 3])
    return found if d_x is None else found.add_(d_x)


def maps_backward(
    d_y: torch.Tensor | None,
    d_maps: torch.Tensor,
    x: torch.Tensor,
    gate_c: torch.Tensor,
    maps: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of x and gate_c from the gradients of y and of its maps."""
    is_peak = scale(x, gate_c) == maps[:, :1]
    found = _spread(d_maps[:, 1:] / x.shape[1], d_maps[:, :1], is_peak, [1])
    if d_y is not None:
        found.add_(d_y)
    return scale(found, gate_c), (found * x).sum((2, 3))


def apply_backward(
    grad: torch.Tensor, x: torch.Tensor, gate_c: torch.Tensor, gate_s: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of y and gate_s from the gradient of y * gate_s."""
    return grad * gate_s, (grad * scale(x, gate_c)).sum(1, keepdim=True)


def convolve_backward(
    grad: torch.Tensor, maps: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the maps and the weight (1, 2, k, k) from the gradient of their padded convolution (N, 1, H, W)."""
    padding = weight.shape[2] // 2
    return (
        conv2d_input(maps.shape, weight, grad, padding=padding),
        conv2d_weight(maps, weight.shape, grad, padding=padding),
    )


def _spread(mean: torch.Tensor, peak: torch.Tensor, is_peak: torch.Tensor, dim: list[int]) -> torch.Tensor:
    """Gradient of a mean and a maximum over ``dim``. Values equal to the maximum share its part evenly, as in torch.

    If no value is equal to it (NaN) or its gradient is infinite, the other values get the NaN that torch's
    ``peak * is_peak / count`` gives.
    """
    count = is_peak.sum(dim, keepdim=True)
    elsewhere = mean + peak * 0 / count
    return torch.where(is_peak, elsewhere + peak / count, elsewhere)
