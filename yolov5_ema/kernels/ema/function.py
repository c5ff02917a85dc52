"""EMA as an autograd function that keeps only the input, three numbers for each channel, and the parameters.

The kernels are torch operators (``yolov5_ema::ema_forward``, ``ema_backward``), so torch.compile does not trace into
them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from yolov5_ema.kernels.ema import cpp, exact
from yolov5_ema.kernels.ema.arguments import EMAArguments, check_arguments, check_backward
from yolov5_ema.kernels.ema.exact import ema_exact
from yolov5_ema.kernels.memory import is_intercepted

_PARAMETERS = "Tensor w1, Tensor b1, Tensor gamma, Tensor beta, Tensor w3, Tensor b3, int groups, float eps"
_FORWARD, _BACKWARD = "yolov5_ema::ema_forward", "yolov5_ema::ema_backward"

torch.library.define(_FORWARD, f"(Tensor x, {_PARAMETERS}) -> (Tensor, Tensor)")
torch.library.define(
    _BACKWARD,
    f"(Tensor grad, Tensor x, Tensor stats, {_PARAMETERS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@torch.library.impl(_FORWARD, "CPU")
def _forward_cpu(x: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return cpp.forward(x, EMAArguments(*rest))


@torch.library.impl(_BACKWARD, "CPU")
def _backward_cpu(grad: torch.Tensor, x: torch.Tensor, stats: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
    return cpp.backward(grad, x, stats, EMAArguments(*rest))


@torch.library.impl(_FORWARD, "CUDA")
def _forward_cuda(x: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    from yolov5_ema.kernels.ema import triton

    return triton.forward(x, EMAArguments(*rest))


@torch.library.impl(_BACKWARD, "CUDA")
def _backward_cuda(grad: torch.Tensor, x: torch.Tensor, stats: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
    from yolov5_ema.kernels.ema import triton

    return triton.backward(grad, x, stats, EMAArguments(*rest))


@torch.library.register_fake(_FORWARD)
def _forward_shapes(x: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    arguments = EMAArguments(*rest)
    k = check_arguments(x, arguments)
    return x.new_empty(x.shape), arguments.w1.new_empty(x.shape[0] * arguments.groups, 3, k)


@torch.library.register_fake(_BACKWARD)
def _backward_shapes(grad: torch.Tensor, x: torch.Tensor, stats: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
    arguments = EMAArguments(*rest)
    check_backward(grad, x, stats, arguments)
    return (x.new_empty(x.shape), *(p.new_empty(p.shape) for p in arguments.parameters()))


def _run_forward(x: torch.Tensor, arguments: EMAArguments, kernel: bool) -> tuple[torch.Tensor, torch.Tensor]:
    if not kernel:
        return exact.forward(x, arguments)
    if is_intercepted() or not x.is_cpu:
        return torch.ops.yolov5_ema.ema_forward(x, *arguments)
    return cpp.forward(x, arguments)


def _run_backward(
    grad: torch.Tensor, x: torch.Tensor, stats: torch.Tensor, arguments: EMAArguments, kernel: bool
) -> tuple[torch.Tensor, ...]:
    if not kernel:
        return exact.backward(grad, x, stats, arguments)
    if is_intercepted() or not x.is_cpu:
        return torch.ops.yolov5_ema.ema_backward(grad, x, stats, *arguments)
    return cpp.backward(grad, x, stats, arguments)


def _no_autocast(device: str) -> AbstractContextManager[Any]:
    if torch.amp.is_autocast_available(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


class EMAFunction(torch.autograd.Function):
    """Forward and backward of EMA, by plain operations or by the device's kernel.

    All parameters must have the same dtype, float32 or wider, in which everything is computed.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        """``rest``: an `EMAArguments`, unpacked so that autograd sees its tensors, and whether to use the kernel."""
        arguments, ctx.kernel = EMAArguments(*rest[:-1]), rest[-1]
        with _no_autocast(x.device.type):
            out, stats = _run_forward(x, arguments, ctx.kernel)
        ctx.save_for_backward(x, stats, *arguments.parameters())
        ctx.groups, ctx.eps = arguments.groups, arguments.eps
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of x and the parameters. They are differentiable again if autograd asks for it."""
        x, stats, w1, b1, gamma, beta, w3, b3 = ctx.saved_tensors
        arguments = EMAArguments(w1, b1, gamma, beta, w3, b3, ctx.groups, ctx.eps)
        with _no_autocast(x.device.type):
            if not torch.compiler.is_compiling() and _wants_plain_gradients(grad):
                return (*_differentiable_gradients(grad, x, arguments), None, None, None)
            return (*_run_backward(grad, x, stats, arguments, ctx.kernel), None, None, None)


def _wants_plain_gradients(grad: torch.Tensor) -> bool:
    """Whether gradients must be differentiable again, or are computed in a batch (``is_grads_batched``)."""
    return torch.is_grad_enabled() or torch._C._functorch.is_legacy_batchedtensor(grad)


def _differentiable_gradients(
    grad: torch.Tensor, x: torch.Tensor, arguments: EMAArguments
) -> list[torch.Tensor | None]:
    inputs = (x, *arguments.parameters())
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    with torch.enable_grad():
        out = ema_exact(x, arguments)
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=torch.is_grad_enabled()))
    return [next(found) if tensor.requires_grad else None for tensor in inputs]
