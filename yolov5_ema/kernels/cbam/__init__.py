"""Computes CBAM (Woo et al., ECCV 2018, arXiv 1807.06521) with the implementation that fits.

The layers of the two gates are small and stay modules of the block. The passes over the whole feature map are computed
here: ``exact`` has them and their derivatives as plain torch operations, ``cpp`` as kernels, and ``function`` makes
them differentiable by autograd.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensor

from yolov5_ema.kernels.cbam.exact import maps, pool, scale
from yolov5_ema.kernels.cbam.function import Apply, Convolve, Maps, Pool, Step
from yolov5_ema.kernels.cbam.operators import passes
from yolov5_ema.kernels.dispatch import choose, needs_plain_operations
from yolov5_ema.kernels.layers import is_same_size_convolution, is_untouched, is_watched
from yolov5_ema.kernels.memory import NAMES, has_memory
from yolov5_ema.kernels.numerics import is_symbolic

__all__ = ["cbam", "maps", "pool", "scale"]


def cbam(
    x: torch.Tensor, channel_gate: nn.Module, spatial_gate: nn.Module, implementation: str = "auto"
) -> torch.Tensor:
    """``spatial_gate(channel_gate(x))``, in fewer passes and with less memory kept for the backward pass.

    Args:
        x: feature map (N, C, H, W), any floating dtype.
        channel_gate: scales channels. Its ``gate`` computes (N, C) from their means and maxima, with ``fc1`` and
            ``fc2``.
        spatial_gate: scales pixels. Its ``conv`` computes (N, 1, H, W) from the maps (N, 2, H, W), and its ``squash``
            turns that into the gate.
        implementation: one of `yolov5_ema.kernels.dispatch.CHOICES`. The kernels support float32 and float64, and need
            (N, C, H, W) contiguous. For channels_last the plain operations are used, which keep that memory format.

    Returns:
        (N, C, H, W) in the dtype of ``x``.

    Raises:
        UserError: a kernel was asked for on its own device but cannot run there, or the environment variable does not
            hold the name of an implementation.
    """
    if is_symbolic(x):
        return spatial_gate(channel_gate(x))
    offered = ("reference", "exact", "cpp") if _suits_kernels(x) else ("reference", "exact")
    name = choose("CBAM", implementation, x.device, x.dtype, offered).name
    if name == "reference" or _must_call_modules(x, channel_gate, spatial_gate):
        return spatial_gate(channel_gate(x))
    if torch.is_grad_enabled() and _requires_grad(x, channel_gate, spatial_gate):
        return _differentiable(x, channel_gate, spatial_gate, kernel=name == "cpp")
    if name == "exact":
        return spatial_gate(channel_gate(x))
    return _by_kernels(x.contiguous(), channel_gate, spatial_gate)


def _suits_kernels(x: torch.Tensor) -> bool:
    is_channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return x.dtype in NAMES and not is_channels_last and (has_memory(type(x)) or isinstance(x, FakeTensor))


def _must_call_modules(x: torch.Tensor, *gates: nn.Module) -> bool:
    """Whether the gates must be called as modules: only plain operations may be used, or a gate has hooks."""
    if torch.compiler.is_compiling() or needs_plain_operations() or x.numel() == 0:
        return True
    return any(is_watched(gate) for gate in gates)


def _requires_grad(x: torch.Tensor, *gates: nn.Module) -> bool:
    return x.requires_grad or any(p.requires_grad for gate in gates for p in gate.parameters())


def _differentiable(x: torch.Tensor, channel_gate: Any, spatial_gate: Any, kernel: bool) -> torch.Tensor:
    step = Step(kernel)
    x, pooled, ticket, map_ticket = Pool.apply(x.contiguous() if kernel else x, step)
    gate_c = _gate_of_channels(pooled, channel_gate)  # (N, C)
    y, maps_of_y = Maps.apply(x, gate_c, map_ticket, step)
    gate_s = _gate_of_pixels(maps_of_y, spatial_gate, kernel)  # (N, 1, H, W)
    return Apply.apply(y, x, gate_c, gate_s.to(x.dtype), ticket, step)


def _by_kernels(x: torch.Tensor, channel_gate: Any, spatial_gate: Any) -> torch.Tensor:
    kernels = passes()
    pooled, _ = kernels.pool(x, False)
    gate_c = _gate_of_channels(pooled, channel_gate)  # (N, C)
    maps_of_y, _ = kernels.maps(x, gate_c, False)
    gate_s = _gate_of_pixels(maps_of_y, spatial_gate, kernel=True)  # (N, 1, H, W)
    return kernels.apply(x, gate_c, gate_s.to(x.dtype))


def _gate_of_channels(pooled: torch.Tensor, gate: Any) -> torch.Tensor:
    """The channel gate from means and maxima (2, N, C). Plain layers get both at once, others one after the other."""
    if is_untouched(gate.fc1, nn.Linear) and is_untouched(gate.fc2, nn.Linear):
        found = gate.gate_of_both(pooled)
    else:
        found = gate.gate(pooled[0], pooled[1])
    return _of_shape(found, pooled.shape[1:], "channel").to(pooled.dtype)


def _of_shape(gate: torch.Tensor, shape: Sequence[int], what: str) -> torch.Tensor:
    if gate.shape != shape:
        raise RuntimeError(f"CBAM: expected a {what} gate of shape {list(shape)}, its layers give {list(gate.shape)}")
    return gate


def _gate_of_pixels(maps: torch.Tensor, gate: Any, kernel: bool) -> torch.Tensor:
    n, _, h, w = maps.shape
    return _of_shape(gate.squash(_convolved(maps, gate.conv, kernel)), (n, 1, h, w), "spatial")


def _convolved(maps: torch.Tensor, conv: Any, kernel: bool) -> torch.Tensor:
    """``conv(maps)``, by the kernel if the convolution is plain and the dtypes agree."""
    k = conv.weight.shape[-1] if kernel and is_untouched(conv, nn.Conv2d) else 0
    suits = is_same_size_convolution(conv, (2, 1), k, bias=False) and conv.weight.shape == (1, 2, k, k)
    if not suits or not _are_alike(conv.weight, maps) or torch.is_autocast_enabled("cpu"):
        return conv(maps)
    return Convolve.apply(maps, conv.weight)


def _are_alike(weight: torch.Tensor, maps: torch.Tensor) -> bool:
    kinds = (type(weight), type(maps))
    is_known = all(has_memory(kind) or issubclass(kind, FakeTensor) for kind in kinds)
    return is_known and weight.dtype == maps.dtype and weight.device == maps.device
