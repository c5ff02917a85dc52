"""Computes EMA (Ouyang et al., ICASSP 2023, arXiv 2305.13563) with the implementation that fits.

``reference`` is the paper's form, and ``exact`` the same function in fewer plain operations. ``cpp`` and ``triton`` are
kernels, and ``function`` makes them differentiable by autograd.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch._subclasses import FakeTensor

from yolov5_ema.kernels.dispatch import asked_for, choose, needs_plain_operations
from yolov5_ema.kernels.ema.arguments import (
    PUBLISHED,
    EMAArguments,
    EMAVariant,
    check_unless_traced,
    is_in_reach_of_32_bits,
    with_full_kernel,
)
from yolov5_ema.kernels.ema.exact import ema_exact
from yolov5_ema.kernels.ema.function import EMAFunction
from yolov5_ema.kernels.ema.reference import attended, ema_reference, gated, means_of_sides
from yolov5_ema.kernels.memory import has_memory
from yolov5_ema.kernels.numerics import is_symbolic, wide_dtype

__all__ = ["EMAArguments", "EMAVariant", "attended", "ema", "ema_exact", "ema_reference", "gated", "means_of_sides"]


def ema(
    x: torch.Tensor,
    arguments: EMAArguments,
    implementation: str = "auto",
    variant: EMAVariant = PUBLISHED,
) -> torch.Tensor:
    """Efficient multi-scale attention, with the same result as `ema_reference`.

    The kernels compute the published function, and a depthwise convolution as the full one that it is a case of.

    Args:
        x: feature map (N, C, H, W), any floating dtype.
        arguments: parameters, groups and eps.
        implementation: one of `yolov5_ema.kernels.dispatch.CHOICES`.
        variant: what differs from the published function; not ``cross_spatial``, which only `ema_reference` computes.

    Returns:
        (N, C, H, W) in the dtype of ``x``.

    Raises:
        RuntimeError: shapes, devices or dtypes that do not fit together.
        UserError: a kernel was asked for on its own device but cannot run there, or the environment variable does not
            hold the name of an implementation.
    """
    if is_symbolic(x):
        plain = ema_reference if asked_for(implementation) == "reference" else ema_exact
        return plain(x, arguments, variant)
    check_unless_traced(x, arguments, variant.depthwise)
    name = choose("EMA", implementation, x.device, x.dtype, lacking=variant.without_kernels()).name
    if name == "reference":
        return ema_reference(x, arguments, variant)
    if name == "exact" and (needs_plain_operations() or variant.without_kernels()):
        return ema_exact(x, arguments, variant)
    in_reach = name != "triton" or is_in_reach_of_32_bits(x.shape[1] // arguments.groups, x.shape[2], x.shape[3])
    if not _operators_know((x, *arguments.parameters())) or not in_reach:
        return ema_exact(x, arguments, variant)
    if variant.depthwise:
        arguments = with_full_kernel(arguments)
    return EMAFunction.apply(x, *arguments.to(wide_dtype(x)), name != "exact")


def _operators_know(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether this package's operators accept the tensors: other tensor classes (DTensor …) know only torch's own."""
    if torch.compiler.is_compiling():
        return True
    return all(has_memory(kind) or issubclass(kind, FakeTensor) for kind in map(type, tensors))
