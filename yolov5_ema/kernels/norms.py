"""Blocks whose gates follow from a channel's own normalised values, NAM and SA, by the C++ kernels (``cpp/norms.cpp``).

Both compute ``x * sigmoid(u * z + v)`` with u and v for each channel, (C,). z is x normalised: for NAM over a channel
of all images, for SA over a channel of one image. In the first half of each of SA's groups, z is the channel's mean;
SA's output is shuffled. The blocks themselves hold the plain operations that run otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from yolov5_ema.kernels.dispatch import is_captured, takes_kernel
from yolov5_ema.kernels.function import kernels_may_run
from yolov5_ema.kernels.layers import is_untouched
from yolov5_ema.kernels.memory import ArgumentsError, Array, as_contiguous, call
from yolov5_ema.kernels.proof import BACKWARD, FORWARD, Draw, Proved

Tensors = tuple[torch.Tensor, ...]

# --- kernels ---------------------------------------------------------------------------------------


def _arrays(maps: Sequence[torch.Tensor], rows: Sequence[torch.Tensor]) -> list[Array]:
    """Maps (N, C, H, W), and arrays with a value for each channel."""
    c = maps[0].shape[1]
    arrays: list[Array] = [(as_contiguous(tensor), maps[0].shape) for tensor in maps]
    return arrays + [(as_contiguous(row), (c,)) for row in rows]


def _nam(x: torch.Tensor, u: torch.Tensor, v: torch.Tensor, eps: float) -> Tensors:
    n, c, h, w = x.shape
    out, stats = x.new_empty(x.shape), x.new_empty(2, c)
    call("norms_nam", x.dtype, _arrays((x,), (u, v)), (out, stats), (n, c, h * w), eps)
    return out, stats


def _nam_frozen(x: torch.Tensor, u: torch.Tensor, v: torch.Tensor, stats: torch.Tensor, eps: float) -> torch.Tensor:
    n, c, h, w = x.shape
    out = x.new_empty(x.shape)
    arrays = [*_arrays((x,), (u, v)), (as_contiguous(stats), (2, c))]
    call("norms_nam_frozen", x.dtype, arrays, (out,), (n, c, h * w), eps)
    return out


def _nam_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    stats: torch.Tensor,
    u: torch.Tensor,
    v: torch.Tensor,
    eps: float,
    frozen: bool,
) -> Tensors:
    n, c, h, w = x.shape
    made = x.new_empty(x.shape), x.new_empty(c), x.new_empty(c)
    arrays = [*_arrays((grad, x), ()), (as_contiguous(stats), (2, c)), *_arrays((x,), (u, v))[1:]]
    call("norms_nam_backward", x.dtype, arrays, made, (n, c, h * w), eps, float(frozen))
    return made


def _sizes_of_sa(x: torch.Tensor, k: int) -> tuple[int, ...]:
    n, c, h, w = x.shape
    if k < 1 or c % (2 * k):
        raise ArgumentsError(f"SA: {c} channels cannot be split into groups of 2 * {k}")
    return n, c, k, h * w


def _sa(x: torch.Tensor, u: torch.Tensor, v: torch.Tensor, k: int, eps: float) -> Tensors:
    n, c = x.shape[:2]
    out, stats = x.new_empty(x.shape), x.new_empty(2, n, c)
    call("norms_sa", x.dtype, _arrays((x,), (u, v)), (out, stats), _sizes_of_sa(x, k), eps)
    return out, stats


def _sa_backward(
    grad: torch.Tensor, x: torch.Tensor, stats: torch.Tensor, u: torch.Tensor, v: torch.Tensor, k: int, eps: float
) -> Tensors:
    n, c = x.shape[:2]
    dx, du, dv = x.new_empty(x.shape), x.new_empty(n, c), x.new_empty(n, c)
    arrays = [*_arrays((grad, x), ()), (as_contiguous(stats), (2, n, c)), *_arrays((x,), (u, v))[1:]]
    call("norms_sa_backward", x.dtype, arrays, (dx, du, dv), _sizes_of_sa(x, k), eps)
    return dx, du.sum(0), dv.sum(0)


# --- the same in plain operations ------------------------------------------------------------------


def _everywhere(values: torch.Tensor) -> torch.Tensor:
    """(C,) or (N, C) -> (N or 1, C, 1, 1)."""
    return values.reshape(-1, values.shape[-1], 1, 1)


def _stats(x: torch.Tensor, dim: Sequence[int]) -> torch.Tensor:
    return torch.stack([x.mean(list(dim)), x.var(list(dim), correction=0)])


def _normalised(x: torch.Tensor, stats: torch.Tensor, eps: float) -> torch.Tensor:
    return (x - _everywhere(stats[0])) * _everywhere((stats[1] + eps).rsqrt())


def _nam_frozen_plain(
    x: torch.Tensor, u: torch.Tensor, v: torch.Tensor, stats: torch.Tensor, eps: float
) -> torch.Tensor:
    return x * (_everywhere(u) * _normalised(x, stats, eps) + _everywhere(v)).sigmoid()


def _nam_plain(x: torch.Tensor, u: torch.Tensor, v: torch.Tensor, eps: float) -> Tensors:
    stats = _stats(x, (0, 2, 3))
    return _nam_frozen_plain(x, u, v, stats, eps), stats


def _nam_backward_plain(
    grad: torch.Tensor,
    x: torch.Tensor,
    stats: torch.Tensor,
    u: torch.Tensor,
    v: torch.Tensor,
    eps: float,
    frozen: bool,
) -> Tensors:
    dim, count = (0, 2, 3), x.numel() / x.shape[1]
    z = _normalised(x, stats, eps)
    gate = (_everywhere(u) * z + _everywhere(v)).sigmoid()
    t = grad * x * gate * (1 - gate)
    dv, du = t.sum(dim), (t * z).sum(dim)
    dy = t if frozen else t - _everywhere(dv / count) - z * _everywhere(du / count)
    return grad * gate + _everywhere(u * (stats[1] + eps).rsqrt()) * dy, du, dv


def _is_first(c: int, k: int, device: torch.device) -> torch.Tensor:
    """Which channels are in the first half of their group, (1, C, 1, 1)."""
    return _everywhere(torch.arange(c, device=device) % (2 * k) < k)


def _sa_z(x: torch.Tensor, stats: torch.Tensor, k: int, eps: float) -> torch.Tensor:
    return torch.where(_is_first(x.shape[1], k, x.device), _everywhere(stats[0]), _normalised(x, stats, eps))


def _sa_plain(x: torch.Tensor, u: torch.Tensor, v: torch.Tensor, k: int, eps: float) -> Tensors:
    n, c, h, w = x.shape
    stats = _stats(x, (2, 3))
    out = x * (_everywhere(u) * _sa_z(x, stats, k, eps) + _everywhere(v)).sigmoid()
    first = _is_first(c, k, x.device).flatten()
    kept = torch.stack([stats[0], stats[1].masked_fill(first, 0)])
    return out.reshape(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w), kept


def _sa_backward_plain(
    grad: torch.Tensor, x: torch.Tensor, stats: torch.Tensor, u: torch.Tensor, v: torch.Tensor, k: int, eps: float
) -> Tensors:
    n, c, h, w = x.shape
    grad = grad.reshape(n, c // 2, 2, h, w).transpose(1, 2).reshape(n, c, h, w)
    z = _sa_z(x, stats, k, eps)
    gate = (_everywhere(u) * z + _everywhere(v)).sigmoid()
    t = grad * x * gate * (1 - gate)
    dv, du = t.sum((2, 3)), (t * z).sum((2, 3))
    mean_t, mean_tz = _everywhere(dv) / (h * w), _everywhere(du) / (h * w)
    inverse = _everywhere((stats[1] + eps).rsqrt())
    dz = torch.where(_is_first(c, k, x.device), mean_t, inverse * (t - mean_t - z * mean_tz))
    return grad * gate + _everywhere(u) * dz, du.sum(0), dv.sum(0)


# --- proofs ----------------------------------------------------------------------------------------


def _case(draw: Draw, shape: Sequence[int]) -> list[Any]:
    return [draw(*shape), draw(shape[1]), draw(shape[1])]


def _backward_case(draw: Draw, shape: Sequence[int], dim: Sequence[int]) -> list[Any]:
    x, u, v = _case(draw, shape)
    return [draw(*shape), x, _stats(x, dim), u, v]


def _frozen_case(draw: Draw, shape: Sequence[int]) -> list[Any]:
    return [*_case(draw, shape), draw(2, shape[1]).abs() + 0.5, 1e-5]


def _sa_case(draw: Draw, shape: Sequence[int], with_backward: bool = False) -> list[Any]:
    """With twice as many channels, because SA needs an even number."""
    n, c, h, w = shape
    k = c if c % 2 else c // 2
    given = (n, 2 * c, h, w)
    made = _backward_case(draw, given, (2, 3)) if with_backward else _case(draw, given)
    return [*made, k, _EPS]


_EPS = 1e-5
_nam_proved = Proved("NAM", FORWARD, _nam, _nam_plain, lambda draw, shape: [*_case(draw, shape), _EPS])
_nam_frozen_proved = Proved("NAM", FORWARD, _nam_frozen, _nam_frozen_plain, _frozen_case)
_nam_backward_proved = Proved(
    "NAM",
    BACKWARD,
    _nam_backward,
    _nam_backward_plain,
    lambda draw, shape: [*_backward_case(draw, shape, (0, 2, 3)), _EPS, False],
)
_sa_proved = Proved("SA", FORWARD, _sa, _sa_plain, _sa_case)
_sa_backward_proved = Proved(
    "SA", BACKWARD, _sa_backward, _sa_backward_plain, lambda draw, shape: _sa_case(draw, shape, True)
)

# --- autograd --------------------------------------------------------------------------------------


class _Form(NamedTuple):
    """One way to compute a block, with everything but x, u, v and the statistics filled in."""

    forward: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Tensors]
    backward: Callable[..., Tensors]
    plain: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class _Gated(torch.autograd.Function):
    """x, u, v -> the output, and the statistics, which have no gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, u: torch.Tensor, v: torch.Tensor, form: _Form) -> Tensors:
        out, stats = form.forward(x, u, v)
        ctx.save_for_backward(x, u, v, stats)
        ctx.form = form
        ctx.mark_non_differentiable(stats)
        return out, stats

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _stats: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, u, v, stats = ctx.saved_tensors
        if kernels_may_run(grad):
            return *ctx.form.backward(grad.contiguous(), x, stats, u, v), None
        wanted = [tensor for tensor in (x, u, v) if tensor.requires_grad]
        with torch.enable_grad():
            out = ctx.form.plain(x, u, v)
        found = iter(torch.autograd.grad(out, wanted, grad, create_graph=torch.is_grad_enabled()))
        return *(next(found) if tensor.requires_grad else None for tensor in (x, u, v)), None


def _run(form: _Form, x: torch.Tensor, u: torch.Tensor, v: torch.Tensor) -> Tensors:
    run = _Gated.apply(x.contiguous(), u, v, form) if torch.is_grad_enabled() else form.forward(x.contiguous(), u, v)
    return tuple(run)


# --- blocks ----------------------------------------------------------------------------------------


def takes_nam(x: torch.Tensor, bn: nn.Module) -> bool:
    """Whether NAM runs its kernels: its BatchNorm is plain, and has the dtype of the input."""
    if is_captured(x) or not is_untouched(bn, nn.BatchNorm2d):
        return False
    assert isinstance(bn, nn.BatchNorm2d)
    tensors = (bn.weight, bn.bias, bn.running_mean, bn.running_var)
    if bn.momentum is None or not _are_like(x, tensors) or x.dim() != 4 or x.shape[1] != bn.num_features:
        return False
    return x.numel() > x.shape[1] and takes_kernel("NAM", x)


def nam(x: torch.Tensor, bn: nn.BatchNorm2d, share: torch.Tensor) -> torch.Tensor:
    """``x * sigmoid(share * bn(x))``, for a ``share`` (C, 1, 1), with bn's running statistics updated in training."""
    share, eps = share.flatten(), bn.eps
    u, v = share * bn.weight, share * bn.bias
    mean, variance = bn.running_mean, bn.running_var
    assert mean is not None and variance is not None
    if not bn.training:
        stats = torch.stack([mean, variance])
        return _run(
            _Form(
                lambda x, u, v: (_nam_frozen_proved(x, u, v, stats, eps), stats),
                lambda *given: _nam_backward_proved(*given, eps, True),
                lambda x, u, v: _nam_frozen_plain(x, u, v, stats, eps),
            ),
            x,
            u,
            v,
        )[0]
    form = _Form(
        lambda x, u, v: _nam_proved(x, u, v, eps),
        lambda *given: _nam_backward_proved(*given, eps, False),
        lambda x, u, v: _nam_plain(x, u, v, eps)[0],
    )
    out, stats = _run(form, x, u, v)
    count = x.numel() // x.shape[1]
    with torch.no_grad():
        if bn.num_batches_tracked is not None:
            bn.num_batches_tracked.add_(1)
        assert bn.momentum is not None
        mean.lerp_(stats[0], bn.momentum)
        variance.lerp_(stats[1] * (count / (count - 1)), bn.momentum)
    return out


def takes_sa(x: torch.Tensor, parameters: Sequence[torch.Tensor | None], channels: int) -> bool:
    """Whether SA runs its kernels: its parameters have the dtype of the input, and there are pixels to normalise."""
    if is_captured(x) or x.dim() != 4 or x.shape[1] != channels or x.shape[2] * x.shape[3] < 2:
        return False
    return _are_like(x, parameters) and takes_kernel("SA", x)


def sa(x: torch.Tensor, u: torch.Tensor, v: torch.Tensor, groups: int, eps: float) -> torch.Tensor:
    """SA for u and v (2 k,) of the channels of a group: gates for the first k channels, gates for values after them."""
    k = u.numel() // 2
    form = _Form(
        lambda x, u, v: _sa_proved(x, u, v, k, eps),
        lambda *given: _sa_backward_proved(*given, k, eps),
        lambda x, u, v: _sa_plain(x, u, v, k, eps)[0],
    )
    return _run(form, x, u.repeat(groups), v.repeat(groups))[0]


def _are_like(x: torch.Tensor, tensors: Sequence[torch.Tensor | None]) -> bool:
    return all(tensor is not None and tensor.dtype == x.dtype and tensor.device == x.device for tensor in tensors)
