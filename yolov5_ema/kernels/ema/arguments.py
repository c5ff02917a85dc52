"""The arguments of EMA, and the checks that all implementations share."""

# no `from __future__ import annotations`: TorchScript reads the types of a NamedTuple's fields, not their names
from typing import NamedTuple

import torch
from torch import Tensor

from yolov5_ema.kernels.memory import ArgumentsError
from yolov5_ema.kernels.numerics import is_symbolic

_NARROW = (torch.float16, torch.bfloat16)


class EMAArguments(NamedTuple):
    """The arguments of EMA besides its input: parameters that all groups share, and two numbers.

    TorchScript accepts it as it is. torch operators get it unpacked, in this order.

    Attributes:
        w1: weight of the 1x1 convolution, (k, k, 1, 1), with k = C / groups channels in a group.
        b1: bias of the 1x1 convolution, (k,).
        gamma: weight of the GroupNorm, which normalizes each channel separately, (k,).
        beta: bias of the GroupNorm, (k,).
        w3: weight of the 3x3 convolution, (k, k, 3, 3), or (k, 1, 3, 3) if it is depthwise (`EMAVariant`).
        b3: bias of the 3x3 convolution, (k,).
        groups: number of groups G that the channels are split into.
        eps: eps of the GroupNorm.
    """

    w1: Tensor
    b1: Tensor
    gamma: Tensor
    beta: Tensor
    w3: Tensor
    b3: Tensor
    groups: int
    eps: float

    def parameters(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The parameters, without the two numbers."""
        return self.w1, self.b1, self.gamma, self.beta, self.w3, self.b3

    def to(self, dtype: torch.dtype) -> "EMAArguments":
        """The same arguments with the parameters in another dtype."""
        w1, b1, gamma, beta, w3, b3 = [tensor.to(dtype) for tensor in self.parameters()]
        return EMAArguments(w1, b1, gamma, beta, w3, b3, self.groups, self.eps)


class EMAVariant(NamedTuple):
    """How a block departs from the published function; the defaults do not.

    Attributes:
        cross_spatial: False for the ablation EMA_no, see `yolov5_ema.blocks.EMA`.
        norm_groups: groups of the GroupNorm, a divisor of k; None: as published, each channel by itself.
        depthwise: whether the 3x3 convolution has one kernel for each channel.
    """

    cross_spatial: bool = True
    norm_groups: int | None = None
    depthwise: bool = False

    def without_kernels(self) -> str:
        """Why no kernel computes it; an empty string if the kernels do."""
        if self.norm_groups is None:
            return ""
        return f"no kernel normalizes several channels together, as norm_groups={self.norm_groups} does"


PUBLISHED = EMAVariant()

_NAMES = EMAArguments._fields[:6]


def with_full_kernel(arguments: EMAArguments) -> EMAArguments:
    """The same function with the depthwise 3x3 kernel (k, 1, 3, 3) as a full one, (k, k, 3, 3).

    A depthwise convolution is a full one whose kernels between different channels are zero.
    """
    w3 = arguments.w3
    k = w3.shape[0]
    diagonal = torch.diag_embed(w3.flatten(1).t())  # (9, k, k)
    return arguments._replace(w3=diagonal.permute(1, 2, 0).reshape(k, k, 3, 3))


def check_arguments(x: Tensor, arguments: EMAArguments, depthwise: bool = False) -> int:
    """The number of channels k of a group.

    Raises:
        ArgumentsError: shapes or devices do not fit together (as torch's own layers, it raises a ``RuntimeError``).
    """
    parameters, groups = arguments.parameters(), arguments.groups
    k = parameters[0].shape[0] if parameters[0].dim() else 0
    if groups < 1 or k < 1 or x.dim() != 4 or x.shape[1] != groups * k or x.shape[2] < 1 or x.shape[3] < 1:
        raise ArgumentsError(
            f"EMA: expected a feature map (N, {k} * {groups} groups, H, W), got a tensor of shape {list(x.shape)}"
        )
    w1, b1, gamma, beta, w3, b3 = parameters
    device, row = x.device, (k,)
    kernel = (k, 1 if depthwise else k, 3, 3)
    fits = w1.shape == (k, k, 1, 1) and w3.shape == kernel
    fits = fits and b1.shape == row and gamma.shape == row and beta.shape == row and b3.shape == row
    if not fits or not all(parameter.device == device for parameter in parameters):
        raise ArgumentsError(_fault(x, parameters, k, kernel))
    return k


def _fault(x: Tensor, parameters: tuple[Tensor, ...], k: int, kernel: tuple[int, ...]) -> str:
    sizes = ((k, k, 1, 1), (k,), (k,), (k,), kernel, (k,))
    for name, parameter, size in zip(_NAMES, parameters, sizes):
        if parameter.shape != size:
            return f"EMA: expected {name} of shape {list(size)}, got a tensor of shape {list(parameter.shape)}"
    devices = ", ".join(f"{name} on {parameter.device}" for name, parameter in zip(_NAMES, parameters))
    return f"EMA: expected all tensors on one device, got the input on {x.device} and {devices}"


def check_backward(grad: Tensor, x: Tensor, stats: Tensor, arguments: EMAArguments) -> int:
    """`check_arguments` for the backward pass, which also checks the gradient and the statistics."""
    k, groups = check_arguments(x, arguments), arguments.groups
    if grad.shape != x.shape or stats.shape != (x.shape[0] * groups, 3, k):
        raise ArgumentsError(
            f"EMA: gradient of shape {list(grad.shape)} and statistics of shape {list(stats.shape)} do not fit an "
            f"input of shape {list(x.shape)} in {groups} groups"
        )
    if grad.device != x.device or stats.device != x.device:
        raise ArgumentsError(f"EMA: gradient and statistics are not on the input's device, {x.device}")
    return k


def is_in_reach_of_32_bits(k: int, h: int, w: int) -> bool:
    """Whether offsets inside a group and its tiles fit into the 32-bit integers of the Triton kernels."""
    largest = 4 * k * (h * w + h + w + 3 * k + 10) + 8 * h * w
    return largest < 2**31 and h + w < 2**20 and k <= 2**14


def check_dtypes(x: Tensor, arguments: EMAArguments) -> None:
    """Raise an `ArgumentsError` where a convolution of torch fails: for integers, or parameters of another dtype.

    A half-precision input may have float32 parameters; the computation is in float32 anyway. Under autocast, half
    precision and float32 mix freely.
    """
    dtype = x.dtype
    for parameter in arguments.parameters():
        if parameter.dtype is not dtype and not _may_mix(x, parameter.dtype):
            raise ArgumentsError(f"EMA: input type ({dtype}) and parameter type ({parameter.dtype}) should be the same")
    if not dtype.is_floating_point:
        raise ArgumentsError(f"EMA: expected a floating-point input, got {dtype}")


def _may_mix(x: Tensor, dtype: torch.dtype) -> bool:
    mixable = (torch.float32, *_NARROW)
    if x.dtype not in mixable or dtype not in mixable:
        return False
    return dtype is torch.float32 or (
        torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type)
    )


def check_unless_traced(x: Tensor, arguments: EMAArguments, depthwise: bool = False) -> None:
    """Run all checks of the arguments, except in a trace, which would record their results as constants and warn."""
    if torch.jit.is_tracing() or is_symbolic(x):
        return
    check_arguments(x, arguments, depthwise)
    check_dtypes(x, arguments)
