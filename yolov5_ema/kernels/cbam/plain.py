"""What CBAM's kernels (`yolov5_ema.kernels.cbam.cpp`) compute, with the same arguments, in plain torch operations."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from yolov5_ema.kernels.cbam import exact
from yolov5_ema.kernels.cbam.exact import convolve_backward

__all__ = ["convolve_backward"]


def pool(x: torch.Tensor, count_ties: bool) -> tuple[torch.Tensor, torch.Tensor]:
    pooled = torch.stack(exact.pool(x))
    return pooled, _ties(x, pooled[1, :, :, None, None], [2, 3]).flatten(1) if count_ties else x.new_empty(0)


def maps(x: torch.Tensor, gate_c: torch.Tensor, count_ties: bool) -> tuple[torch.Tensor, torch.Tensor]:
    y = exact.scale(x, gate_c)
    found = exact.maps(y)
    return found, _ties(y, found[:, :1], [1]) if count_ties else x.new_empty(0)


def apply(x: torch.Tensor, gate_c: torch.Tensor, gate_s: torch.Tensor) -> torch.Tensor:
    return exact.scale(x, gate_c) * gate_s


def apply_backward(
    grad: torch.Tensor, x: torch.Tensor, gate_c: torch.Tensor, gate_s: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    d_y, d_gate_s = exact.apply_backward(grad, x, gate_c, gate_s)
    return (d_y * x).sum((2, 3)), d_gate_s


def maps_backward(
    d_maps: torch.Tensor, x: torch.Tensor, gate_c: torch.Tensor, maps: torch.Tensor, map_ties: torch.Tensor
) -> torch.Tensor:
    return exact.maps_backward(None, d_maps, x, gate_c, maps)[1]


def input_backward(
    x: torch.Tensor,
    gate_c: torch.Tensor,
    gate_s: torch.Tensor,
    maps: torch.Tensor,
    map_ties: torch.Tensor,
    peak: torch.Tensor,
    ties: torch.Tensor,
    grad: torch.Tensor,
    d_pooled: torch.Tensor,
    d_maps: torch.Tensor,
) -> torch.Tensor:
    d_x, _ = exact.maps_backward(grad * gate_s, d_maps, x, gate_c, maps)
    return exact.pool_backward(d_x, d_pooled, x, peak)


def convolve(maps: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.conv2d(maps, weight, padding=weight.shape[2] // 2)


def _ties(x: torch.Tensor, peak: torch.Tensor, dim: list[int]) -> torch.Tensor:
    """How many values are equal to the maximum over ``dim``, in the dtype of ``x``."""
    return (x == peak).sum(dim, keepdim=True).to(x.dtype)
