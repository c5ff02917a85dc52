"""Blocks whose gates follow from means: SE and ECA from means of channels, CA from means of rows and columns.

The block computes the gates from the means. What reads or writes a whole map is done here, by plain operations or by
the C++ kernels (``cpp/means.cpp``), which keep only x and the gates for backward.

With the kernels, the gradient of x is written in one pass: by the backward of `_Means`, which runs last. It gets the
gradient of the output as that of a ticket, a tensor without values that `_Means` returns and `_Apply` takes. If
gradients are to be differentiated again, each of the two returns its part of the gradient of x in plain operations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from yolov5_ema.kernels.dispatch import asked_for, takes_kernel
from yolov5_ema.kernels.function import kernels_may_run
from yolov5_ema.kernels.memory import as_contiguous, call
from yolov5_ema.kernels.numerics import stable_mean
from yolov5_ema.kernels.proof import BACKWARD, FORWARD, Draw, Proved

Tensors = tuple[torch.Tensor, ...]

# --- plain operations ------------------------------------------------------------------------------


def mean_of_channels(x: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) -> (N, C), in the dtype of ``x``."""
    return stable_mean(x, [2, 3]).flatten(1).to(x.dtype)


def means_of_sides(x: torch.Tensor) -> torch.Tensor:
    """The means of rows, then of columns: (N, C, H, W) -> (N, C, H+W), in the dtype of ``x``."""
    rows, columns = stable_mean(x, [3]), stable_mean(x, [2]).transpose(2, 3)  # (N, C, H, 1), (N, C, W, 1)
    return torch.cat([rows, columns], dim=2).squeeze(3).to(x.dtype)


def scale_channels(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """x times a gate for each channel, (N, C)."""
    return x * gate[:, :, None, None]


def scale_sides(x: torch.Tensor, gate_h: torch.Tensor, gate_w: torch.Tensor) -> torch.Tensor:
    """x times a gate for each row, (N, C, H), and for each column, (N, C, W)."""
    return x * gate_w[:, :, None, :] * gate_h[:, :, :, None]


def _channels_backward(grad: torch.Tensor, x: torch.Tensor, gate: torch.Tensor) -> Tensors:
    return ((grad * x).sum((2, 3)),)


def _sides_backward(grad: torch.Tensor, x: torch.Tensor, gate_h: torch.Tensor, gate_w: torch.Tensor) -> Tensors:
    product = grad * x
    return (product * gate_w[:, :, None, :]).sum(3), (product * gate_h[:, :, :, None]).sum(2)


def _spread_channels(d_mean: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    return (d_mean / (shape[2] * shape[3]))[:, :, None, None].expand(shape)


def _spread_sides(d_means: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    h, w = shape[2:]
    return d_means[:, :, :h, None] / w + d_means[:, :, None, h:] / h


# --- kernels ---------------------------------------------------------------------------------------


def _sizes(x: torch.Tensor, by_sides: bool) -> tuple[int, ...]:
    n, c, h, w = x.shape
    return (n * c, h, w) if by_sides else (n * c, h * w)


def _call(name: str, maps: Sequence[torch.Tensor], gates: Sequence[torch.Tensor], made: Sequence[torch.Tensor]) -> None:
    """Run a kernel on maps of equal shapes, and gates (N, C), or (N, C, H) and (N, C, W), and further small arrays."""
    n, c, h, w = shape = maps[0].shape
    by_sides = name.startswith("sides")
    shapes = ((n, c, h), (n, c, w), (n, c, h + w)) if by_sides else ((n, c), (n, c))
    arrays: list[tuple[torch.Tensor, Sequence[int]]] = [(as_contiguous(tensor), shape) for tensor in maps]
    arrays += [(as_contiguous(gate), size) for gate, size in zip(gates, shapes)]
    call(f"means_{name}", maps[0].dtype, arrays, made, _sizes(maps[0], by_sides))


def _mean(x: torch.Tensor) -> torch.Tensor:
    out = x.new_empty(x.shape[:2])
    _call("mean", (x,), (), (out,))
    return out


def _sides(x: torch.Tensor) -> torch.Tensor:
    out = x.new_empty(*x.shape[:2], x.shape[2] + x.shape[3])
    _call("sides", (x,), (), (out,))
    return out


def _scale(x: torch.Tensor, *gates: torch.Tensor) -> torch.Tensor:
    out = x.new_empty(x.shape)
    _call("scale" if len(gates) == 1 else "sides_scale", (x,), gates, (out,))
    return out


def _scale_backward(grad: torch.Tensor, x: torch.Tensor, *gates: torch.Tensor) -> Tensors:
    n, c, h, w = x.shape
    if len(gates) == 1:
        found: Tensors = (x.new_empty(n, c),)
        _call("scale_backward", (grad, x), (), found)
    else:
        found = x.new_empty(n, c, h), x.new_empty(n, c, w)
        _call("sides_scale_backward", (grad, x), gates, found)
    return found


def _input_backward(grad: torch.Tensor, *gates_and_means: torch.Tensor) -> torch.Tensor:
    out = grad.new_empty(grad.shape)
    _call("input_backward" if len(gates_and_means) == 2 else "sides_input_backward", (grad,), gates_and_means, (out,))
    return out


class _Passes(NamedTuple):
    """The passes over a map: kernels that fall back on plain operations, and plain operations."""

    means: Callable[..., torch.Tensor]
    apply: Callable[..., torch.Tensor]
    gates_backward: Callable[..., Tensors]
    input_backward: Callable[..., torch.Tensor]
    spread: Callable[..., torch.Tensor]
    plain_apply: Callable[..., torch.Tensor]
    plain_gates_backward: Callable[..., Tensors]


def _passes(block: str, by_sides: bool) -> _Passes:
    plain_means, plain_apply = (means_of_sides, scale_sides) if by_sides else (mean_of_channels, scale_channels)
    plain_backward, spread = (_sides_backward, _spread_sides) if by_sides else (_channels_backward, _spread_channels)

    def gates(draw: Draw, shape: Sequence[int]) -> list[torch.Tensor]:
        n, c, h, w = shape
        return [draw(n, c, h), draw(n, c, w)] if by_sides else [draw(n, c)]

    def d_means(draw: Draw, shape: Sequence[int]) -> torch.Tensor:
        n, c, h, w = shape
        return draw(n, c, h + w) if by_sides else draw(n, c)

    def plain_input_backward(grad: torch.Tensor, *gates_and_means: torch.Tensor) -> torch.Tensor:
        return plain_apply(grad, *gates_and_means[:-1]) + spread(gates_and_means[-1], grad.shape)

    return _Passes(
        Proved(block, FORWARD, _sides if by_sides else _mean, plain_means, lambda draw, shape: [draw(*shape)]),
        Proved(block, FORWARD, _scale, plain_apply, lambda draw, shape: [draw(*shape), *gates(draw, shape)]),
        Proved(
            block,
            BACKWARD,
            _scale_backward,
            plain_backward,
            lambda draw, shape: [draw(*shape), draw(*shape), *gates(draw, shape)],
        ),
        Proved(
            block,
            BACKWARD,
            _input_backward,
            plain_input_backward,
            lambda draw, shape: [draw(*shape), *gates(draw, shape), d_means(draw, shape)],
        ),
        spread,
        plain_apply,
        plain_backward,
    )


_PASSES = {block: _passes(block, block == "CA") for block in ("SE", "ECA", "CA")}

# --- autograd --------------------------------------------------------------------------------------


class _Step:
    """State that the two functions of one forward pass share; the gates are detached."""

    def __init__(self, passes: _Passes) -> None:
        self.passes = passes
        self.gates: Tensors = ()


class _Means(torch.autograd.Function):
    """x -> means, ticket."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, step: _Step) -> Tensors:
        ctx.step, ctx.shape = step, x.shape
        ctx.set_materialize_grads(False)
        return step.passes.means(x), x.new_empty(1).expand(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        d_means, grad = grads
        passes, gates = ctx.step.passes, ctx.step.gates
        if grad is not None and d_means is not None:
            return passes.input_backward(grad, *gates, d_means), None
        if grad is not None:
            return passes.plain_apply(grad, *gates), None
        return (None if d_means is None else passes.spread(d_means, ctx.shape)), None


class _Apply(torch.autograd.Function):
    """x, ticket, gates -> x times the gates."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, _ticket: torch.Tensor, step: _Step, *gates: torch.Tensor) -> torch.Tensor:
        step.gates = tuple(gate.detach().contiguous() for gate in gates)
        ctx.step = step
        ctx.save_for_backward(x, *gates)
        return step.passes.apply(x, *step.gates)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, *gates = ctx.saved_tensors
        passes = ctx.step.passes
        if not kernels_may_run(grad):
            return passes.plain_apply(grad, *gates), None, None, *passes.plain_gates_backward(grad, x, *gates)
        grad = grad.contiguous()
        return None, grad, None, *passes.gates_backward(grad, x, *ctx.step.gates)


# --- blocks ----------------------------------------------------------------------------------------


def gated_by_channels(block: str, x: torch.Tensor, gate: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """x (N, C, H, W) times ``gate(means of its channels)``; means and gate are (N, C)."""
    return _gated(block, x, lambda means: (gate(means),))


def gated_by_sides(block: str, x: torch.Tensor, gates: Callable[[torch.Tensor, int], Tensors]) -> torch.Tensor:
    """x (N, C, H, W) times ``gates(means of its rows and columns, H)``; the means are (N, C, H+W), the gates (N, C, H)
    and (N, C, W).
    """
    return _gated(block, x, lambda means: gates(means, x.shape[2]))


def _gated(block: str, x: torch.Tensor, gates_of: Callable[[torch.Tensor], Tensors]) -> torch.Tensor:
    by_sides = block == "CA"
    plain_means, plain_apply = (means_of_sides, scale_sides) if by_sides else (mean_of_channels, scale_channels)
    # without gradients, a mean and a product of torch are as fast as the kernels
    is_plain = not by_sides and not torch.is_grad_enabled() and asked_for("auto") == "auto"
    if is_plain or not takes_kernel(block, x):
        return plain_apply(x, *gates_of(plain_means(x)))
    passes, x = _PASSES[block], x.contiguous()
    with_grad = torch.is_grad_enabled()
    step = _Step(passes)
    means, ticket = _Means.apply(x, step) if with_grad else (passes.means(x), x)
    gates = gates_of(means)
    n, c, h, w = x.shape
    shapes = ((n, c, h), (n, c, w)) if by_sides else ((n, c),)
    if not all(gate.shape == size and gate.dtype == x.dtype for gate, size in zip(gates, shapes)):
        # of a layer that was replaced
        return plain_apply(x, *gates)
    if with_grad:
        return _Apply.apply(x, ticket, step, *gates)
    return passes.apply(x, *gates)
