"""EMA as a function that autograd knows: it keeps the input, three numbers per channel and the parameters.

The kernels are torch operators (``yolov5_ema::ema_forward``, ``ema_backward``), so that torch.compile takes them as
they are.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from yolov5_ema.kernels.ema import exact
from yolov5_ema.kernels.ema.arguments import check_arguments, check_backward
from yolov5_ema.kernels.ema.exact import ema_exact
from yolov5_ema.kernels.memory import somebody_looks

_PARAMETERS = "Tensor w1, Tensor b1, Tensor gamma, Tensor beta, Tensor w3, Tensor b3, int groups, float eps"
_FORWARD, _BACKWARD = "yolov5_ema::ema_forward", "yolov5_ema::ema_backward"

torch.library.define(_FORWARD, f"(Tensor x, {_PARAMETERS}) -> (Tensor, Tensor)")
torch.library.define(
    _BACKWARD,
    f"(Tensor grad, Tensor x, Tensor stats, {_PARAMETERS}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)


def _forward_cpu(x: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    from yolov5_ema.kernels.ema import cpp

    *parameters, groups, eps = rest
    return cpp.forward(x, *parameters, groups=groups, eps=eps)


def _backward_cpu(
    grad: torch.Tensor, x: torch.Tensor, stats: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, ...]:
    from yolov5_ema.kernels.ema import cpp

    *parameters, groups, eps = rest
    return cpp.backward(grad, x, stats, *parameters, groups=groups, eps=eps)


torch.library.impl(_FORWARD, "CPU", _forward_cpu)
torch.library.impl(_BACKWARD, "CPU", _backward_cpu)


@torch.library.impl(_FORWARD, "CUDA")
def _forward_cuda(x: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    from yolov5_ema.kernels.ema import triton

    return triton.forward(x, *rest)


@torch.library.impl(_BACKWARD, "CUDA")
def _backward_cuda(
    grad: torch.Tensor, x: torch.Tensor, stats: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, ...]:
    from yolov5_ema.kernels.ema import triton

    return triton.backward(grad, x, stats, *rest)


@torch.library.register_fake(_FORWARD)
def _forward_shapes(x: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    *parameters, groups, _ = rest
    k = check_arguments(x, parameters, groups)
    return x.new_empty(x.shape), parameters[0].new_empty(x.shape[0] * groups, 3, k)


@torch.library.register_fake(_BACKWARD)
def _backward_shapes(
    grad: torch.Tensor, x: torch.Tensor, stats: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, ...]:
    *parameters, groups, _ = rest
    check_backward(grad, x, stats, parameters, groups)
    return (x.new_empty(x.shape), *(p.new_empty(p.shape) for p in parameters))


def _kernel(x: torch.Tensor, name: str) -> Any:
    if somebody_looks() or not x.is_cpu:
        return getattr(torch.ops.yolov5_ema, f"ema_{name}")
    return _forward_cpu if name == "forward" else _backward_cpu


def _no_autocast(device: str) -> AbstractContextManager[Any]:
    if torch.amp.is_autocast_available(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


class EMAFunction(torch.autograd.Function):
    """Forward and backward of EMA by the plain form or by the device's kernel.

    The parameters must have one dtype, float32 at least; it is the one that is computed in.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        """``rest``: w1, b1, gamma, beta, w3, b3, groups, eps, and whether to use the kernel."""
        *arguments, kernel = rest
        run: Any = _kernel(x, "forward") if kernel else exact.forward
        with _no_autocast(x.device.type):
            out, stats = run(x, *arguments)
        ctx.save_for_backward(x, stats, *arguments[:6])
        ctx.groups, ctx.eps, ctx.kernel = rest[6:]
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of x and the parameters; differentiable once more if autograd is asked for that."""
        x, stats, *parameters = ctx.saved_tensors
        arguments: Any = (*parameters, ctx.groups, ctx.eps)
        with _no_autocast(x.device.type):
            if not torch.compiler.is_compiling() and _wants_plain_gradients(grad):
                return (*_differentiable_gradients(grad, x, arguments), None, None, None)
            run: Any = _kernel(x, "backward") if ctx.kernel else exact.backward
            return (*run(grad, x, stats, *arguments), None, None, None)


def _wants_plain_gradients(grad: torch.Tensor) -> bool:
    """Whether they are to be differentiated again, or found for many gradients at once (``is_grads_batched``)."""
    return torch.is_grad_enabled() or torch._C._functorch.is_legacy_batchedtensor(grad)


def _differentiable_gradients(
    grad: torch.Tensor, x: torch.Tensor, arguments: Any
) -> list[torch.Tensor | None]:
    inputs = (x, *arguments[:6])
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    with torch.enable_grad():
        out = ema_exact(x, *arguments)
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=torch.is_grad_enabled()))
    return [next(found) if tensor.requires_grad else None for tensor in inputs]
