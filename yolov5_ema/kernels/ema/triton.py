"""EMA by the Triton kernels: how a feature map is divided into blocks, and the launches."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from yolov5_ema.kernels.ema.arguments import (
    EMAArguments,
    check_arguments,
    check_backward,
    is_in_reach_of_32_bits,
)
from yolov5_ema.kernels.ema.triton_kernels import (
    fused_backward,
    fused_forward,
    split_channel_gradients,
    split_input_gradient,
    split_map_gradient,
    split_parameter_gradients,
    split_product,
    split_statistics,
    split_sums,
)
from yolov5_ema.kernels.memory import ArgumentsError, as_contiguous, check_memory

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# up to this many values, one program processes the whole group: 128 KiB of float32, half of a first-level cache
_FUSED_LIMIT = 32 * 1024
# above this, a program of the fused path has a multiprocessor to itself, and uses more warps
_SMALL_TILE = 16 * 1024
# values of a tile that a thread holds: fewer in the stages that need more registers for each
_SUMMED = 16
_FLAT = 8
_GATED = 4


class _Plan(NamedTuple):
    """How a group (k, H, W) is divided; the docstring of `yolov5_ema.kernels.ema.triton_kernels` explains the sizes."""

    fused: bool
    num_warps: int
    K2: int
    W2: int
    L2: int
    CS: int
    BS: int
    CT: int
    BH: int
    CB: int
    BP: int
    CG: int
    BG: int
    CL: int
    JB: int

    def options(self, *names: str, registers: int = 128) -> dict[str, int]:
        """Block sizes and launch options, chosen so that several programs fit on one multiprocessor (registers)."""
        limit = {} if torch.version.hip else {"maxnreg": registers}
        return {name: getattr(self, name) for name in names} | {"num_warps": self.num_warps} | limit


def _is_fused(k: int, h: int, w: int) -> bool:
    return k * h * w <= _FUSED_LIMIT


def _clamp(value: int, low: int, high: int) -> int:
    return max(low, min(value, high))


def _rows_at_once(h: int, most: int) -> int:
    """Rows of a tile: the largest power of two up to ``most`` that leaves little of the last tile empty."""
    rows = min(triton.next_power_of_2(h), most)
    while rows > 1 and -(-h // rows) * rows > 1.125 * h:
        rows //= 2
    return rows


@lru_cache(maxsize=256)
def _plan(k: int, h: int, w: int, fused: bool) -> _Plan:
    wide = triton.next_power_of_2(w) > 1024
    num_warps = 16 if wide or (fused and k * h * w > _SMALL_TILE) else 8
    threads = 32 * num_warps
    k2, w2, l2, area2 = (triton.next_power_of_2(n) for n in (k, w, h + w, h * w))
    bp = max(w2, min(4 * threads, area2))
    bg = min(2 * threads, area2)
    gated = (_GATED if fused else _FLAT) * threads
    bs = _rows_at_once(h, max(1, _SUMMED * threads // w2))
    bh = _rows_at_once(h, max(1, gated // w2))
    return _Plan(
        fused=fused,
        num_warps=num_warps,
        K2=k2,
        W2=w2,
        L2=l2,
        CS=_clamp(_SUMMED * threads // (bs * w2), 1, k2) if fused else 1,
        BS=bs,
        CT=_clamp(gated // (bh * w2), 1, k2) if fused else 1,
        BH=bh,
        CB=_clamp(_FLAT * threads // bp, 1, k2),
        BP=bp,
        CG=_clamp(2 * threads // bg, 1, k2) if fused else 1,
        BG=bg,
        CL=_clamp(_GATED * threads // l2, 1, k2) if fused else 1,
        JB=_clamp(_GATED * threads // k2, 16, 64),
    )


def _row_blocks(plan: _Plan, h: int, w: int) -> int:
    return triton.cdiv(h, plan.BP // w)


def _forward_scratch(k: int, h: int, w: int) -> int:
    return 2 * k * (h + w) + 18 * k + 2 * h * w


def _backward_scratch(k: int, h: int, w: int) -> int:
    return _forward_scratch(k, h, w) + 2 * h * w + 20 * k + 2 * k * (h + w)


def _on(x: Tensor) -> AbstractContextManager[object]:
    """Context manager that makes the tensor's device current: Triton launches go to the current device."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _check(x: Tensor, k: int, *others: Tensor) -> None:
    """Raise an `ArgumentsError` unless all tensors have memory that the kernels may read."""
    if x.dtype not in _DTYPES or x.device.type == "meta":
        raise ArgumentsError(f"EMA: no Triton kernel for {x.dtype} on {x.device}")
    if not is_in_reach_of_32_bits(k, x.shape[2], x.shape[3]):
        raise ArgumentsError(f"EMA: groups of {k} x {x.shape[2]} x {x.shape[3]} are too large for the Triton kernels")
    for tensor in (x, *others):
        if tensor.dtype not in _DTYPES:
            raise ArgumentsError(f"EMA: no Triton kernel for a parameter in {tensor.dtype}")
        check_memory(tensor, tensor.shape, tensor.dtype, x.device)


def forward(x: Tensor, arguments: EMAArguments) -> tuple[Tensor, Tensor]:
    """As `yolov5_ema.kernels.ema.exact.forward`, for float32, float16 and bfloat16; the statistics are float32."""
    k, groups, eps = check_arguments(x, arguments), arguments.groups, arguments.eps
    x, w1, b1, gamma, beta, w3, b3 = (as_contiguous(t) for t in (x, *arguments.parameters()))
    n, channels, h, w = x.shape
    out = x.new_empty(x.shape)
    stats = x.new_empty((n * groups, 3, k), dtype=torch.float32)
    if x.numel() == 0:
        return out, stats
    _check(x, k, w1, b1, gamma, beta, w3, b3)
    plan = _plan(k, h, w, _is_fused(k, h, w))
    size = _forward_scratch(k, h, w)
    scratch = x.new_empty(n * groups * size, dtype=torch.float32)
    sides = (size, k, h, w)
    with _on(x):
        if plan.fused:
            fused_forward[(n * groups,)](
                x, w1, b1, gamma, beta, w3, b3, out, stats, scratch, *sides, eps,
                **plan.options("K2", "CS", "BS", "CT", "BH", "W2", "CL", "L2", "JB", "CB", "BP"),
            )  # fmt: skip
            return out, stats
        each_channel = (n * channels,)
        each_block = (n * groups * _row_blocks(plan, h, w),)
        split_sums[each_channel](
            x, beta, w3, scratch, *sides, **plan.options("K2", "BS", "W2", "L2", "JB", registers=64)
        )  # fmt: skip
        split_statistics[each_channel](
            x, w1, b1, w3, b3, stats, scratch, *sides, eps,
            **plan.options("K2", "BH", "W2", "L2", "JB", registers=64), KNOWN=False,
        )  # fmt: skip
        split_product[each_block](
            x, gamma, beta, b3, out, stats, scratch, *sides, **plan.options("K2", "CB", "BP", registers=64)
        )  # fmt: skip
    return out, stats


def backward(
    grad_out: Tensor, x: Tensor, stats: Tensor, arguments: EMAArguments
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `yolov5_ema.kernels.ema.exact.backward`; the gradients of the parameters are float32."""
    k = check_backward(grad_out, x, stats, arguments)
    grad_out, x, stats, w1, b1, gamma, beta, w3, b3 = (
        as_contiguous(t) for t in (grad_out, x, stats, *arguments.parameters())
    )
    groups, eps = arguments.groups, arguments.eps
    n, channels, h, w = x.shape
    x_grad = x.new_empty(x.shape)
    partial = x.new_empty((n * groups, (10 * k + 4) * k), dtype=torch.float32)
    if x.numel() == 0:
        return x_grad, *_unpack(partial, k)
    _check(x, k, grad_out, stats, w1, b1, gamma, beta, w3, b3)
    plan = _plan(k, h, w, _is_fused(k, h, w))
    size = _backward_scratch(k, h, w)
    scratch = x.new_empty(n * groups * size, dtype=torch.float32)
    sides = (size, k, h, w)
    with _on(x):
        if plan.fused:
            fused_backward[(n * groups,)](
                grad_out, x, stats, w1, b1, gamma, beta, w3, b3, x_grad, partial, scratch, *sides,
                **plan.options("K2", "CS", "BS", "CT", "BH", "W2", "CL", "L2", "JB", "CB", "BP", "CG", "BG"),
            )  # fmt: skip
            return x_grad, *_unpack(partial, k)
        each_channel = (n * channels,)
        each_block = (n * groups * _row_blocks(plan, h, w),)
        split_sums[each_channel](
            x, beta, w3, scratch, *sides, **plan.options("K2", "BS", "W2", "L2", "JB", registers=64)
        )  # fmt: skip
        split_statistics[each_channel](
            x, w1, b1, w3, b3, stats, scratch, *sides, eps,
            **plan.options("K2", "BH", "W2", "L2", "JB", registers=64), KNOWN=True,
        )  # fmt: skip
        split_map_gradient[each_block](
            grad_out, x, stats, gamma, beta, b3, scratch, *sides, **plan.options("K2", "CB", "BP", registers=64)
        )  # fmt: skip
        split_channel_gradients[each_channel](
            x, stats, gamma, scratch, *sides, **plan.options("BH", "W2", "BG", registers=80)
        )  # fmt: skip
        split_parameter_gradients[each_channel](
            stats, w1, gamma, beta, w3, b3, partial, scratch, *sides, **plan.options("K2", "L2", "JB", registers=64)
        )  # fmt: skip
        split_input_gradient[each_block](
            grad_out, x, stats, gamma, x_grad, scratch, *sides, **plan.options("CB", "BP")
        )  # fmt: skip
        return x_grad, *_unpack(partial, k)


def _unpack(partial: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Sum the parameter gradients of the groups, (NG, 10 k^2 + 4 k); results of an operator must not share memory."""
    sizes = [k * k, k, k, k, 9 * k * k, k]
    split: Any = torch.split_with_sizes_copy  # typed for its out= form only
    w1, b1, gamma, beta, w3, b3 = split(partial.sum(0), sizes)
    return w1.view(k, k, 1, 1), b1, gamma, beta, w3.view(k, k, 3, 3), b3
