"""CBAM's passes over the feature map as autograd functions that keep only x and small tensors for backward.

With plain operations, `Pool`, `Maps` and `Apply` pass x through unchanged, one after the other, so its gradient comes
back through them and each adds its part. The x that `Maps` returns represents y = x * gate_c, which is never kept.

With the kernels, the backward of `Pool` runs last and writes the gradient of x in a single pass. It gets its inputs as
the gradients of tickets: tensors without values that `Pool` returns. The backward passes of `Maps` and `Apply` return
the gradients of their outputs as the gradients of these tickets. If gradients are to be differentiated again, the
derivatives of the plain operations are used instead.
"""

from __future__ import annotations

from typing import Any

import torch

from yolov5_ema.kernels.cbam import exact
from yolov5_ema.kernels.cbam.operators import passes
from yolov5_ema.kernels.function import kernels_may_run


class Step:
    """State that the functions of one forward pass share: detached tensors."""

    def __init__(self, kernel: bool) -> None:
        self.kernel = kernel
        # plain operations: from `Maps` to `Apply`
        self.y: torch.Tensor | None = None
        # kernels: for the backward of `Pool`
        self.gate_c: torch.Tensor | None = None
        self.gate_s: torch.Tensor | None = None
        self.maps: torch.Tensor | None = None
        self.map_ties: torch.Tensor | None = None


class Pool(torch.autograd.Function):
    """x -> x, the means and maxima of its channels (2, N, C), tickets for the gradients of the output and the maps."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, step: Step) -> tuple[torch.Tensor, ...]:
        n, _, h, w = x.shape
        ctx.step = step
        ctx.set_materialize_grads(False)
        if step.kernel:
            pooled, ties = passes().pool(x, True)
            ctx.save_for_backward(x, pooled, ties)
        else:
            pooled = torch.stack(exact.pool(x))
            ctx.save_for_backward(x, pooled)
        return x, pooled, x.new_empty(1).expand(x.shape), x.new_empty(1).expand(n, 2, h, w)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        x, pooled, *ties = ctx.saved_tensors
        step, peak = ctx.step, pooled[1]
        d_x, d_pooled = grads[0], _or_zeros(grads[1], pooled)
        if not (step.kernel and kernels_may_run(*grads)):
            return exact.pool_backward(d_x, d_pooled, x, peak), None
        forward = (step.gate_c, step.gate_s, step.maps, step.map_ties, peak, *ties)
        grad, d_maps = _or_zeros(grads[2], x), _or_zeros(grads[3], step.maps)
        found = passes().input_backward(x, *forward, grad, d_pooled, d_maps)
        return found if d_x is None else found.add_(d_x), None


class Maps(torch.autograd.Function):
    """x, gate_c, ticket -> x in place of y, and the maps of y: maximum and mean over channels."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, gate_c: torch.Tensor, ticket: torch.Tensor, step: Step
    ) -> tuple[torch.Tensor, ...]:
        ctx.step = step
        ctx.set_materialize_grads(False)
        if step.kernel:
            step.gate_c = gate_c.detach().contiguous()
            maps, step.map_ties = passes().maps(x, step.gate_c, True)
            step.maps = maps.detach()
        else:
            step.y = exact.scale(x, gate_c)
            maps = exact.maps(step.y)
        ctx.save_for_backward(x, gate_c, maps)
        return x, maps

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        x, gate_c, maps = ctx.saved_tensors
        step = ctx.step
        d_y, d_maps = grads[0], _or_zeros(grads[1], maps)
        if not (step.kernel and kernels_may_run(*grads)):
            return (*exact.maps_backward(d_y, d_maps, x, gate_c, maps), None, None)
        d_gate_c = passes().maps_backward(d_maps, x, step.gate_c, maps, step.map_ties)
        return None, d_gate_c, d_maps, None


class Apply(torch.autograd.Function):
    """x in place of y, x, gate_c, gate_s, ticket -> y * gate_s."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> torch.Tensor:
        _, x, gate_c, gate_s, _, step = inputs
        ctx.save_for_backward(x, gate_c, gate_s)
        ctx.step = step
        if step.kernel:
            step.gate_s = gate_s.detach().contiguous()
            return passes().apply(x, step.gate_c, step.gate_s)
        y, step.y = step.y, None
        return y.mul_(gate_s)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, gate_c, gate_s = ctx.saved_tensors
        step = ctx.step
        if not (step.kernel and kernels_may_run(grad)):
            d_y, d_gate_s = exact.apply_backward(grad, x, gate_c, gate_s)
            return d_y, None, None, d_gate_s, None, None
        grad = grad.contiguous()
        d_gate_c, d_gate_s = passes().apply_backward(grad, x, step.gate_c, step.gate_s)
        return None, None, d_gate_c, d_gate_s, grad, None


class Convolve(torch.autograd.Function):
    """maps (N, 2, H, W), weight (1, 2, k, k) -> their convolution (N, 1, H, W), padded by k // 2, by the kernel."""

    @staticmethod
    def forward(ctx: Any, maps: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(maps, weight)
        return passes().convolve(maps, weight)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        maps, weight = ctx.saved_tensors
        run: Any = passes().convolve_backward if kernels_may_run(grad) else exact.convolve_backward
        return run(grad, maps, weight)


def _or_zeros(grad: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(like) if grad is None else grad
