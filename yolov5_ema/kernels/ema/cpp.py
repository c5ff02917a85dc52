"""EMA by the C++ kernel (``cpp/ema.cpp``): a group of channels at a time, in a core's cache."""

from __future__ import annotations

import ctypes

import torch

from yolov5_ema.kernels import native

_NAMES = {torch.float32: "float32", torch.float64: "float64"}


def forward(
    x: torch.Tensor, *parameters: torch.Tensor, groups: int, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `yolov5_ema.kernels.ema.exact.forward`."""
    work = x.to(parameters[0].dtype).contiguous()
    out = torch.empty_like(work)
    n, c, h, w = x.shape
    k = c // groups
    stats = work.new_empty(n * groups, 3, k)
    flat = _flatten(parameters)
    _call("ema_forward", work.dtype, (work, flat, out, stats), n * groups, k, h, w, eps)
    return out.to(x.dtype), stats


def backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    stats: torch.Tensor,
    *parameters: torch.Tensor,
    groups: int,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    """As `yolov5_ema.kernels.ema.exact.backward`."""
    work = x.to(parameters[0].dtype).contiguous()
    grad = grad.to(work.dtype).contiguous()
    dx = torch.empty_like(work)
    n, c, h, w = x.shape
    k = c // groups
    flat = _flatten(parameters)
    sums = torch.zeros(flat.shape, dtype=torch.float64)
    _call("ema_backward", work.dtype, (grad, work, stats, flat, dx, sums), n * groups, k, h, w, eps)
    pieces = sums.split([p.numel() for p in parameters])
    grads = [piece.reshape(p.shape).to(p.dtype, copy=True) for piece, p in zip(pieces, parameters)]
    return (dx.to(x.dtype), *grads)


def _flatten(parameters: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in parameters])


def _call(
    name: str,
    dtype: torch.dtype,
    arrays: tuple[torch.Tensor, ...],
    groups: int,
    k: int,
    h: int,
    w: int,
    eps: float,
) -> None:
    library = native.library().handle
    assert library is not None  # the dispatch has looked
    failed = getattr(library, f"{name}_{_NAMES[dtype]}")(
        *(ctypes.c_void_p(array.data_ptr()) for array in arrays),
        *(ctypes.c_int64(size) for size in (groups, k, h, w)),
        ctypes.c_double(eps),
        ctypes.c_int(torch.get_num_threads()),
    )
    if failed:
        raise MemoryError(f"EMA: no memory for {torch.get_num_threads()} groups of {k} x {h} x {w}")
