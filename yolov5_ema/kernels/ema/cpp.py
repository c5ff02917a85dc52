"""EMA by the C++ kernel (``cpp/ema.cpp``), which processes one group of channels at a time in a core's cache."""

from __future__ import annotations

import torch

from yolov5_ema.kernels.ema import exact
from yolov5_ema.kernels.ema.arguments import EMAArguments, check_arguments, check_backward
from yolov5_ema.kernels.memory import as_contiguous, call, check_source


def forward(x: torch.Tensor, arguments: EMAArguments) -> tuple[torch.Tensor, torch.Tensor]:
    """As `yolov5_ema.kernels.ema.exact.forward`."""
    k, parameters = check_arguments(x, arguments), arguments.parameters()
    if x.numel() == 0:
        return exact.forward(x, arguments)
    work = as_contiguous(x, parameters[0].dtype)
    n, _, h, w = shape = x.shape
    out = work.new_empty(shape)
    stats = work.new_empty(n * arguments.groups, 3, k)
    arrays = ((work, shape), (_flatten(parameters), (10 * k * k + 4 * k,)))
    call("ema_forward", work.dtype, arrays, (out, stats), (n * arguments.groups, k, h, w), arguments.eps)
    return out.to(x.dtype), stats


def backward(
    grad: torch.Tensor, x: torch.Tensor, stats: torch.Tensor, arguments: EMAArguments
) -> tuple[torch.Tensor, ...]:
    """As `yolov5_ema.kernels.ema.exact.backward`."""
    k, parameters = check_backward(grad, x, stats, arguments), arguments.parameters()
    if x.numel() == 0:
        return exact.backward(grad, x, stats, arguments)
    work = as_contiguous(x, parameters[0].dtype)
    grad = as_contiguous(grad, work.dtype)
    n, _, h, w = shape = x.shape
    dx = work.new_empty(shape)
    sums = torch.zeros(10 * k * k + 4 * k, dtype=torch.float64)
    arrays = (
        (grad, shape),
        (work, shape),
        (as_contiguous(stats), (n * arguments.groups, 3, k)),
        (_flatten(parameters), (10 * k * k + 4 * k,)),
    )
    call("ema_backward", work.dtype, arrays, (dx, sums), (n * arguments.groups, k, h, w), arguments.eps)
    pieces = sums.split([p.numel() for p in parameters])
    grads = [piece.reshape(p.shape).to(p.dtype, copy=True) for piece, p in zip(pieces, parameters)]
    return (dx.to(x.dtype), *grads)


def _flatten(parameters: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return torch.cat([_row(parameter.detach()) for parameter in parameters])


def _row(parameter: torch.Tensor) -> torch.Tensor:
    if parameter._is_zerotensor():
        return parameter.clone().reshape(-1)
    check_source(parameter)
    return parameter.reshape(-1)
