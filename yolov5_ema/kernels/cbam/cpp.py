"""CBAM's passes over the feature map by the C++ kernels (``cpp/cbam.cpp``), for float32 and float64.

Shapes are those of `yolov5_ema.kernels.cbam.exact`, and every tensor is on the CPU. Ties are the numbers of values
that are equal to a maximum, in the dtype of the other tensors. If ties are not counted, an empty tensor is returned.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from yolov5_ema.kernels.memory import NAMES, ArgumentsError, Array, as_contiguous, call

__all__ = ["NAMES"]


def pool(x: torch.Tensor, count_ties: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and maximum of each channel (2, N, C) and, with ``count_ties``, its ties (N, C)."""
    pooled, ties = new_pool(x, count_ties)
    _call("pool", x, (), (pooled[0], pooled[1], ties if count_ties else None))
    return pooled, ties


def maps(x: torch.Tensor, gate_c: torch.Tensor, count_ties: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps of x * gate_c (N, 2, H, W) and, with ``count_ties``, the ties over its channels (N, 1, H, W)."""
    out, ties = new_maps(x, gate_c, count_ties)
    _call("maps", x, ((as_contiguous(gate_c), x.shape[:2]),), (out, ties if count_ties else None))
    return out, ties


def apply(x: torch.Tensor, gate_c: torch.Tensor, gate_s: torch.Tensor) -> torch.Tensor:
    """x * gate_c * gate_s."""
    n, c, h, w = sizes_of(x)
    out = new_input(x)
    gates = ((as_contiguous(gate_c), (n, c)), (as_contiguous(gate_s), (n, 1, h, w)))
    _call("apply", x, gates, (out,))
    return out


def apply_backward(
    grad: torch.Tensor, x: torch.Tensor, gate_c: torch.Tensor, gate_s: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of gate_c and gate_s from the gradient of the output."""
    n, c, h, w = sizes_of(x)
    d_gate_c, d_gate_s = new_gates(grad, x)
    gates = ((as_contiguous(gate_c), (n, c)), (as_contiguous(gate_s), (n, 1, h, w)))
    arrays = ((as_contiguous(grad), x.shape), *gates)
    _call("apply_backward", x, arrays, (d_gate_c, d_gate_s))
    return d_gate_c, d_gate_s


def maps_backward(
    d_maps: torch.Tensor, x: torch.Tensor, gate_c: torch.Tensor, maps: torch.Tensor, map_ties: torch.Tensor
) -> torch.Tensor:
    """Gradient of gate_c from the gradient of the maps."""
    n, c, h, w = sizes_of(x)
    d_gate_c = new_gate_of_channels(d_maps, x)
    made = ((as_contiguous(maps), (n, 2, h, w)), (as_contiguous(map_ties), (n, 1, h, w)))
    arrays = ((as_contiguous(d_maps), (n, 2, h, w)), (as_contiguous(gate_c), (n, c)), *made)
    _call("maps_backward", x, arrays, (d_gate_c,))
    return d_gate_c


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
    """The complete gradient of x, from values of the forward pass and the gradients of the output, the maps, and the
    means and maxima of the channels (2, N, C).
    """
    n, c, h, w = sizes_of(x)
    channels, pair, pixels = (n, c), (n, 2, h, w), (n, 1, h, w)
    if d_pooled.shape != (2, n, c):
        raise ArgumentsError(f"CBAM: expected gradients of shape {[2, n, c]}, got {list(d_pooled.shape)}")
    dx = new_input(x)
    tensors = (gate_c, gate_s, maps, map_ties, peak, ties, grad, *d_pooled, d_maps)
    shapes = (channels, pixels, pair, pixels, channels, channels, x.shape, channels, channels, pair)
    _call("input_backward", x, [*zip(map(as_contiguous, tensors), shapes)], (dx,))
    return dx


def convolve(maps: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Convolution of the maps with a weight (1, 2, k, k), k odd, padded by k // 2: (N, 1, H, W)."""
    n, _, h, w = sizes_of(maps)
    k = window_of(weight)
    out = new_convolved(maps)
    arrays = ((as_contiguous(maps), (n, 2, h, w)), (as_contiguous(weight), (1, 2, k, k)))
    call("cbam_convolve", maps.dtype, arrays, (out,), (n, h, w, k))
    return out


def convolve_backward(
    grad: torch.Tensor, maps: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the maps and the weight."""
    n, _, h, w = sizes_of(maps)
    k = window_of(weight)
    d_maps, d_weight = new_convolution_gradients(grad, maps, weight)
    arrays = (
        (as_contiguous(maps), (n, 2, h, w)),
        (as_contiguous(grad), (n, 1, h, w)),
        (as_contiguous(weight), (1, 2, k, k)),
    )
    call("cbam_convolve_backward", maps.dtype, arrays, (d_maps, d_weight), (n, h, w, k))
    return d_maps, d_weight


# --- the results of the operators, before a kernel writes them -------------------------------------


def new_pool(x: torch.Tensor, count_ties: bool) -> tuple[torch.Tensor, torch.Tensor]:
    n, c, _, _ = sizes_of(x)
    return x.new_empty(2, n, c), x.new_empty((n, c) if count_ties else 0)


def new_maps(x: torch.Tensor, gate_c: torch.Tensor, count_ties: bool) -> tuple[torch.Tensor, torch.Tensor]:
    n, _, h, w = sizes_of(x)
    return x.new_empty(n, 2, h, w), x.new_empty((n, 1, h, w) if count_ties else 0)


def new_input(x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    return x.new_empty(sizes_of(x))


def new_gates(grad: torch.Tensor, x: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    n, c, h, w = sizes_of(x)
    return x.new_empty(n, c), x.new_empty(n, 1, h, w)


def new_gate_of_channels(d_maps: torch.Tensor, x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    return x.new_empty(sizes_of(x)[:2])


def new_convolved(maps: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    n, _, h, w = sizes_of(maps)
    return maps.new_empty(n, 1, h, w)


def new_convolution_gradients(
    grad: torch.Tensor, maps: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    n, _, h, w = sizes_of(maps)
    k = window_of(weight)
    return maps.new_empty(n, 2, h, w), maps.new_empty(1, 2, k, k)


# --- checks ------------------------------------------------------------------------------------------


def sizes_of(x: torch.Tensor) -> torch.Size:
    """The shape (N, C, H, W) of a feature map. Raises an `ArgumentsError` if a tensor does not have four dimensions."""
    if x.dim() != 4:
        raise ArgumentsError(f"CBAM: expected a feature map (N, C, H, W), got a tensor of shape {list(x.shape)}")
    return x.shape


def window_of(weight: torch.Tensor) -> int:
    """Kernel size k of the spatial convolution's weight. Raises an `ArgumentsError` if it is even."""
    k = weight.shape[-1] if weight.dim() == 4 else 0
    if k % 2 == 0:
        raise ArgumentsError(f"CBAM: expected a weight (1, 2, k, k) with k odd, got shape {list(weight.shape)}")
    return k


def _call(name: str, x: torch.Tensor, arrays: Sequence[Array], made: Sequence[torch.Tensor | None]) -> None:
    n, c, h, w = x.shape
    call(f"cbam_{name}", x.dtype, ((as_contiguous(x), x.shape), *arrays), made, (n, c, h * w))
