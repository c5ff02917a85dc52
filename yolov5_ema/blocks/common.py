"""Helpers for all blocks: checks of options, safe half-precision arithmetic, parameter names of public checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from yolov5_ema.kernels.numerics import as_constant, is_symbolic, saturate, stable_mean, wide_dtype
from yolov5_ema.texts import counted

__all__ = [
    "AttentionBlock",
    "BatchNorm",
    "Bottleneck",
    "as_constant",
    "check_bool",
    "check_choice",
    "check_number",
    "check_odd_kernel",
    "check_positive_int",
    "check_reduction",
    "free_pixels",
    "is_single_value",
    "nearest_divisors",
    "saturate",
    "stable_mean",
    "wide_dtype",
    "zero_",
]

_Choice = TypeVar("_Choice")


def check_positive_int(block: str, option: str, value: Any) -> int:
    """``value`` if it is an integer of at least 1; otherwise raises a ``ValueError`` naming block, option and value.

    Booleans and floats are refused, even whole ones: ``16.0`` or ``True`` in a YAML is probably a mistake.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{block}: {option} must be an integer, got {value!r} ({type(value).__name__})")
    if value < 1:
        raise ValueError(f"{block}: {option} must be at least 1, got {value}")
    return int(value)


def check_bool(block: str, option: str, value: Any) -> bool:
    """``value`` if it is True or False; otherwise raises a ``ValueError`` naming block, option and value."""
    if not isinstance(value, bool):
        raise ValueError(f"{block}: {option} must be True or False, got {value!r} ({type(value).__name__})")
    return value


def check_odd_kernel(block: str, value: Any, option: str = "kernel_size") -> int:
    """``value`` if it is an odd integer of at least 1; otherwise raises a ``ValueError``.

    A convolution with an even kernel cannot keep the size of its input.
    """
    size = check_positive_int(block, option, value)
    if size % 2 == 0:
        raise ValueError(f"{block}: {option} must be odd, got {size}; use {size - 1} or {size + 1}")
    return size


def check_reduction(block: str, channels: int, value: Any, least: int = 1) -> int:
    """``value`` if ``channels // value`` is at least ``least``; otherwise raises a ``ValueError``."""
    reduction = check_positive_int(block, "reduction", value)
    if channels < least:
        raise ValueError(f"{block}: needs at least {counted(least, 'channel')}, got {channels}")
    if channels // reduction < least:
        left = "no hidden channel" if reduction > channels else f"fewer than {least} hidden channels"
        raise ValueError(
            f"{block}: reduction {reduction} leaves {left} of {channels} channels; "
            f"use a reduction of at most {channels // least}"
        )
    return reduction


def check_number(block: str, option: str, value: Any, least: float, most: float) -> float:
    """``value`` if it is a number from ``least`` to ``most``; otherwise raises a ``ValueError``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{block}: {option} must be a number, got {value!r} ({type(value).__name__})")
    if not least <= value <= most:
        raise ValueError(f"{block}: {option} must be from {least:g} to {most:g}, got {value}")
    return float(value)


def check_choice(block: str, option: str, value: _Choice, choices: Sequence[_Choice]) -> _Choice:
    """``value`` if it is one of the choices; otherwise raises a ``ValueError`` that lists them."""
    if isinstance(value, bool) or value not in choices:
        raise ValueError(f"{block}: {option} must be one of {', '.join(map(str, choices))}; got {value!r}")
    return value


def is_single_value(x: torch.Tensor, channels: int) -> bool:
    """Whether a batch has exactly one value for each channel; False while `torch.fx` traces, which knows no shapes."""
    # not one condition with the next: TorchScript would compile what follows
    if not torch.jit.is_scripting():  # noqa: SIM102
        if is_symbolic(x):
            return False
    return x.numel() == channels


def free_pixels(x: torch.Tensor) -> int:
    """H * W - 1 of a feature map (N, C, H, W), but at least 1: what an unbiased variance divides by.

    No ``max``: a traced graph, where sizes are tensors, would keep its result for the example's size.

    >>> free_pixels(torch.rand(1, 2, 3, 4)), free_pixels(torch.rand(1, 2, 1, 1))
    (11, 1)
    """
    pixels = x.shape[2] * x.shape[3]
    return pixels - 1 + 1 // pixels


def nearest_divisors(number: int, to: int) -> list[int]:
    """The largest divisor of ``number`` up to ``to`` and the smallest from ``to`` on, where they exist.

    >>> nearest_divisors(48, 32)
    [24, 48]
    """
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    below = [d for d in divisors if d <= to][-1:]
    above = [d for d in divisors if d >= to][:1]
    return sorted({*below, *above})


def zero_(*modules: nn.Module) -> None:
    """Set every parameter of the modules to zero, in place."""
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                parameter.zero_()


class BatchNorm(nn.Module):
    """``nn.BatchNorm2d`` that takes one value for each channel in training too, where the plain one raises.

    There are no batch statistics then, so the running ones are used and left unchanged. float16 overflow saturates.
    """

    def __init__(
        self,
        channels: int,
        momentum: float = 0.1,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.bn = nn.BatchNorm2d(channels, momentum=momentum, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and is_single_value(x, self.channels):
            bn = self.bn
            y = F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)
        else:
            y = self.bn(x)  # the shape of x
        return saturate(y)


class ChannelNorm(nn.LayerNorm):
    """``nn.LayerNorm`` over all channels of a pooled map (N, C, 1, 1), with parameters of shape (C, 1, 1).

    It is computed over one axis, because OpenCV 4 normalizes over the last axis only where a file names three.
    """

    def __init__(
        self, channels: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__([channels, 1, 1], device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self.weight.flatten(), self.bias.flatten()
        return F.layer_norm(x.flatten(1), self.normalized_shape[:1], weight, bias, self.eps)[:, :, None, None]


class Bottleneck(nn.Sequential):
    """Two 1x1 convolutions of a pooled map (N, C, 1, 1), with LayerNorm and ReLU between them; the names are 0, 1, 3.

    float16 overflow saturates.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        outputs: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            nn.Conv2d(channels, hidden, 1, device=device, dtype=dtype),
            ChannelNorm(hidden, device=device, dtype=dtype),
            nn.ReLU(),
            nn.Conv2d(hidden, outputs, 1, device=device, dtype=dtype),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self:
            x = saturate(layer(x))
        return x  # (N, outputs, 1, 1)


class AttentionBlock(nn.Module):
    """Base class of the blocks here. They also load the state dicts of the public reference implementations.

    ``reference_names`` maps a parameter's or submodule's name in the reference to the name here. It is applied under
    any prefix, and only if the name here is not already in the state dict. ``shown_options`` are the options in its
    ``repr``. A block need not derive from this class.
    It need not have a method ``zero_gate_()`` either, which makes the gate a constant for ``--init identity``.
    """

    reference_names: ClassVar[dict[str, str]] = {}
    shown_options: ClassVar[tuple[str, ...]] = ()

    def extra_repr(self) -> str:
        return ", ".join([f"{self.channels}", *(f"{name}={getattr(self, name)}" for name in self.shown_options)])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for theirs, ours in self.reference_names.items():
            for key in list(state_dict):
                if key == prefix + theirs or key.startswith(f"{prefix}{theirs}."):
                    renamed = prefix + ours + key[len(prefix + theirs) :]
                    if renamed not in state_dict:
                        state_dict[renamed] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
