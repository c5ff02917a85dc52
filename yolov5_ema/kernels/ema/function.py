"""EMA as an autograd function that keeps only the input, three numbers for each channel, and the parameters.

The kernels are torch operators (``yolov5_ema::ema_forward``, ``ema_backward``), so torch.compile does not trace into
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from yolov5_ema.kernels.ema import cpp, exact
from yolov5_ema.kernels.ema.arguments import EMAArguments, check_arguments, check_backward
from yolov5_ema.kernels.ema.exact import ema_exact
from yolov5_ema.kernels.memory import is_intercepted
from yolov5_ema.kernels.proof import BACKWARD, FORWARD, Draw, Proved

_PARAMETERS = "Tensor w1, Tensor b1, Tensor gamma, Tensor beta, Tensor w3, Tensor b3, int groups, float eps"
_FORWARD, _BACKWARD = "yolov5_ema::ema_forward", "yolov5_ema::ema_backward"

torch.library.define(_FORWARD, f"(Tensor x, {_PARAMETERS}) -> (Tensor, Tensor)")
torch.library.define(
    _BACKWARD,
    f"(Tensor grad, Tensor x, Tensor stats, {_PARAMETERS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)


def _kernels_for(x: torch.Tensor) -> Any:
    """The module whose ``forward`` and ``backward`` are the kernels for the tensor's device."""
    if x.is_cuda:
        from yolov5_ema.kernels.ema import triton

        return triton
    return cpp


def _case(draw: Draw, shape: Sequence[int]) -> tuple[torch.Tensor, EMAArguments]:
    n, c, _, _ = shape
    groups = n if c % n == 0 else 1
    k = c // groups
    w1, b1, gamma, beta, w3, b3 = (draw(*size) / k for size in ((k, k, 1, 1), (k,), (k,), (k,), (k, k, 3, 3), (k,)))
    return draw(*shape), EMAArguments(w1, b1, gamma, beta, w3, b3, groups, 1e-5)


def _backward_case(draw: Draw, shape: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, EMAArguments]:
    x, arguments = _case(draw, shape)
    return draw(*shape), x, exact.forward(x, arguments)[1], arguments


_DTYPES = {
    "cpp": (torch.float32, torch.float64, torch.float16, torch.bfloat16),
    "triton": (torch.float32, torch.float16, torch.bfloat16),
}
forward = Proved("EMA", FORWARD, lambda x, *rest: _kernels_for(x).forward(x, *rest), exact.forward, _case, _DTYPES)
backward = Proved(
    "EMA", BACKWARD, lambda g, *rest: _kernels_for(g).backward(g, *rest), exact.backward, _backward_case, _DTYPES
)


def _forward_operator(x: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return forward(x, EMAArguments(*rest))


def _backward_operator(
    grad: torch.Tensor, x: torch.Tensor, stats: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, ...]:
    return backward(grad, x, stats, EMAArguments(*rest))


torch.library.impl(_FORWARD, ("cpu", "cuda"), _forward_operator)
torch.library.impl(_BACKWARD, ("cpu", "cuda"), _backward_operator)


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
    return forward(x, arguments)


def _run_backward(
    grad: torch.Tensor, x: torch.Tensor, stats: torch.Tensor, arguments: EMAArguments, kernel: bool
) -> tuple[torch.Tensor, ...]:
    if not kernel:
        return exact.backward(grad, x, stats, arguments)
    if is_intercepted() or not x.is_cpu:
        return torch.ops.yolov5_ema.ema_backward(grad, x, stats, *arguments)
    return backward(grad, x, stats, arguments)


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
