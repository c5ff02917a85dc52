"""CBAM's passes over the feature map by the C++ kernels (``cpp/cbam.cpp``), for float32 and float64.

Shapes as in `yolov5_ema.kernels.cbam.exact`; every tensor is on the CPU. Ties are the numbers of maxima, in the
dtype of the rest.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch

from yolov5_ema.kernels import native

NAMES = {torch.float32: "float32", torch.float64: "float64"}


class Forward(NamedTuple):
    """What the gradient of x needs of forward, all of it small beside x."""

    gate_c: torch.Tensor  # (N, C)
    gate_s: torch.Tensor  # (N, 1, H, W)
    maps: torch.Tensor  # (N, 2, H, W)
    map_ties: torch.Tensor  # (N, 1, H, W)
    peak: torch.Tensor  # (N, C)
    ties: torch.Tensor  # (N, C)


def pool(x: torch.Tensor, count_ties: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Mean and maximum of each channel (2, N, C) and, if asked for, its ties (N, C)."""
    pooled = x.new_empty(2, *x.shape[:2])
    ties = torch.empty_like(pooled[0]) if count_ties else None
    _call("pool", x, pooled[0], pooled[1], ties)
    return pooled, ties


def maps(x: torch.Tensor, gate_c: torch.Tensor, count_ties: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Maps of x * gate_c (N, 2, H, W) and, if asked for, the ties over its channels (N, 1, H, W)."""
    n, _, h, w = x.shape
    out = x.new_empty(n, 2, h, w)
    ties = x.new_empty(n, 1, h, w) if count_ties else None
    _call("maps", x, gate_c, out, ties)
    return out, ties


def apply(x: torch.Tensor, gate_c: torch.Tensor, gate_s: torch.Tensor) -> torch.Tensor:
    """x * gate_c * gate_s."""
    out = torch.empty_like(x)
    _call("apply", x, gate_c, gate_s, out)
    return out


def apply_backward(
    grad: torch.Tensor, x: torch.Tensor, gate_c: torch.Tensor, gate_s: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of gate_c and gate_s from that of the output."""
    d_gate_c, d_gate_s = torch.empty_like(gate_c), torch.empty_like(gate_s)
    _call("apply_backward", x, grad.contiguous(), gate_c, gate_s, d_gate_c, d_gate_s)
    return d_gate_c, d_gate_s


def maps_backward(
    d_maps: torch.Tensor, x: torch.Tensor, gate_c: torch.Tensor, maps: torch.Tensor, map_ties: torch.Tensor
) -> torch.Tensor:
    """Gradient of gate_c from that of the maps."""
    d_gate_c = torch.empty_like(gate_c)
    _call("maps_backward", x, d_maps.contiguous(), gate_c, maps, map_ties, d_gate_c)
    return d_gate_c


def input_backward(
    x: torch.Tensor,
    forward: Forward,
    grad: torch.Tensor,
    d_pooled: torch.Tensor,
    d_maps: torch.Tensor,
) -> torch.Tensor:
    """The whole gradient of x: from those of the output, the channels' means and maxima, and the maps."""
    dx = torch.empty_like(x)
    grads = (g.contiguous() for g in (grad, *d_pooled, d_maps))
    _call("input_backward", x, *forward, *grads, dx)
    return dx


def convolve(maps: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Convolution of the maps with a weight (1, 2, k, k), padded by k // 2: (N, 1, H, W)."""
    n, _, h, w = maps.shape
    out = maps.new_empty(n, 1, h, w)
    _run("convolve", maps.dtype, (maps.contiguous(), weight.contiguous(), out), (n, h, w, weight.shape[2]))
    return out


def convolve_backward(
    grad: torch.Tensor, maps: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the maps and the weight."""
    n, _, h, w = maps.shape
    arrays = [tensor.contiguous() for tensor in (maps, grad, weight)]
    d_maps, d_weight = torch.empty_like(arrays[0]), torch.empty_like(arrays[2])
    _run("convolve_backward", maps.dtype, (*arrays, d_maps, d_weight), (n, h, w, weight.shape[2]))
    return d_maps, d_weight


def _call(name: str, x: torch.Tensor, *others: torch.Tensor | None) -> None:
    n, c, h, w = x.shape
    _run(name, x.dtype, (x, *others), (n, c, h * w))


def _run(
    name: str, dtype: torch.dtype, arrays: tuple[torch.Tensor | None, ...], sizes: tuple[int, ...]
) -> None:
    """A kernel on contiguous arrays."""
    library = native.library().handle
    assert library is not None  # the dispatch has looked
    failed = getattr(library, f"cbam_{name}_{NAMES[dtype]}")(
        *(ctypes.c_void_p(None if array is None else array.data_ptr()) for array in arrays),
        *(ctypes.c_int64(size) for size in sizes),
        ctypes.c_int(torch.get_num_threads()),
    )
    if failed:
        raise MemoryError(f"CBAM: no memory for the kernel {name} at sizes {sizes}")
