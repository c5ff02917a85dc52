"""What EMA's arguments must be, whichever implementation computes it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from yolov5_ema.kernels.numerics import is_symbolic

_NARROW = (torch.float16, torch.bfloat16)
_NAMES = ("w1", "b1", "gamma", "beta", "w3", "b3")


def check_arguments(x: torch.Tensor, parameters: Sequence[torch.Tensor], groups: int) -> int:
    """Channels of a group; a ``RuntimeError``, as a layer of torch raises, if shapes or devices do not fit together."""
    k = parameters[0].shape[0] if parameters[0].dim() else 0
    if groups < 1 or k < 1 or x.dim() != 4 or x.shape[1] != groups * k or x.shape[2] < 1 or x.shape[3] < 1:
        raise RuntimeError(
            f"EMA: expected a feature map (N, {k} * {groups} groups, H, W), got a tensor of shape {list(x.shape)}"
        )
    w1, b1, gamma, beta, w3, b3 = parameters
    device, row = x.device, (k,)
    fits = w1.shape == (k, k, 1, 1) and w3.shape == (k, k, 3, 3)
    fits = fits and b1.shape == row and gamma.shape == row and beta.shape == row and b3.shape == row
    if not fits or not all(parameter.device == device for parameter in parameters):
        raise RuntimeError(_what_is_wrong(x, parameters, k))
    return k


def _what_is_wrong(x: torch.Tensor, parameters: Sequence[torch.Tensor], k: int) -> str:
    sizes = ((k, k, 1, 1), (k,), (k,), (k,), (k, k, 3, 3), (k,))
    for name, parameter, size in zip(_NAMES, parameters, sizes):
        if parameter.shape != size:
            return (
                f"EMA: expected {name} of shape {list(size)}, got a tensor of shape {list(parameter.shape)}"
            )
    devices = ", ".join(f"{name} on {parameter.device}" for name, parameter in zip(_NAMES, parameters))
    return f"EMA: expected all tensors on one device, got the input on {x.device} and {devices}"


def check_backward(
    grad: torch.Tensor, x: torch.Tensor, stats: torch.Tensor, parameters: Sequence[torch.Tensor], groups: int
) -> int:
    """The same for backward."""
    k = check_arguments(x, parameters, groups)
    if grad.shape != x.shape or stats.shape != (x.shape[0] * groups, 3, k):
        raise RuntimeError(
            f"EMA: gradient of shape {list(grad.shape)} and statistics of shape {list(stats.shape)} do not fit an "
            f"input of shape {list(x.shape)} in {groups} groups"
        )
    if grad.device != x.device or stats.device != x.device:
        raise RuntimeError(f"EMA: gradient and statistics are not on the input's device, {x.device}")
    return k


def is_in_reach_of_32_bits(k: int, h: int, w: int) -> bool:
    """Whether offsets inside a group, and its tiles, are as small as the Triton kernels want them."""
    largest = 4 * k * (h * w + h + w + 3 * k + 10) + 8 * h * w
    return largest < 2**31 and h + w < 2**20 and k <= 2**14


def check_dtypes(x: torch.Tensor, parameters: Sequence[torch.Tensor]) -> None:
    """A ``RuntimeError`` for what a convolution of torch refuses: integers, and dtypes that are not those of x.

    Half-precision maps may have parameters in float32, which all is computed in. Under autocast these mix freely.
    """
    dtype = x.dtype
    for parameter in parameters:
        if parameter.dtype is not dtype and not _may_mix(x, parameter.dtype):
            raise RuntimeError(
                f"EMA: input type ({dtype}) and parameter type ({parameter.dtype}) should be the same"
            )
    if not dtype.is_floating_point:
        raise RuntimeError(f"EMA: expected a floating-point input, got {dtype}")


def _may_mix(x: torch.Tensor, dtype: torch.dtype) -> bool:
    mixable = (torch.float32, *_NARROW)
    if x.dtype not in mixable or dtype not in mixable:
        return False
    return dtype is torch.float32 or (
        torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type)
    )


def check_unless_traced(x: torch.Tensor, parameters: Sequence[torch.Tensor], groups: int) -> None:
    """All that can be said of the arguments; a trace would take the answers for constants, and says so in warnings."""
    if torch.jit.is_tracing() or is_symbolic(x):
        return
    check_arguments(x, parameters, groups)
    check_dtypes(x, parameters)
