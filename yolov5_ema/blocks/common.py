"""Helpers for all blocks: checks of options, safe half-precision arithmetic, parameter names of public checkpoints."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from yolov5_ema.kernels.numerics import as_constant, is_symbolic, saturate, stable_mean, wide_dtype

__all__ = [
    "AttentionBlock",
    "as_constant",
    "check_bool",
    "check_odd_kernel",
    "check_positive_int",
    "check_reduction",
    "is_single_value",
    "nearest_divisors",
    "saturate",
    "stable_mean",
    "wide_dtype",
    "zero_",
]


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


def check_odd_kernel(block: str, value: Any) -> int:
    """``value`` if it is an odd integer of at least 1; otherwise raises a ``ValueError``.

    A convolution with an even kernel cannot keep the size of its input.
    """
    size = check_positive_int(block, "kernel_size", value)
    if size % 2 == 0:
        raise ValueError(f"{block}: kernel_size must be odd, got {size}; use {size - 1} or {size + 1}")
    return size


def check_reduction(block: str, channels: int, value: Any) -> int:
    """``value`` if ``channels // value`` leaves at least one hidden channel; otherwise raises a ``ValueError``."""
    reduction = check_positive_int(block, "reduction", value)
    if reduction > channels:
        raise ValueError(
            f"{block}: reduction {reduction} leaves no hidden channel of {channels} channels; "
            f"use a reduction of at most {channels}"
        )
    return reduction


def is_single_value(x: torch.Tensor, channels: int) -> bool:
    """Whether a batch has exactly one value for each channel; False while `torch.fx` traces, which knows no shapes."""
    # not one condition with the next: TorchScript would compile what follows
    if not torch.jit.is_scripting():  # noqa: SIM102
        if is_symbolic(x):
            return False
    return x.numel() == channels


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
