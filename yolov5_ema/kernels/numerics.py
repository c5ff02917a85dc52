"""Arithmetic that is safe in half precision, for kernels and blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch.fx import Proxy

_Result = TypeVar("_Result")


def wide_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype to compute in: float32, or that of ``x`` where it is wider."""
    # torch 2.6 cannot promote the dtype of a proxy
    if not torch.jit.is_scripting():  # noqa: SIM102 - alone, or TorchScript compiles what follows
        if isinstance(x, Proxy):
            return x.tracer.create_proxy("call_function", wide_dtype, (x,), {})
    return torch.promote_types(x.dtype, torch.float32)


def stable_mean(x: torch.Tensor, dim: list[int]) -> torch.Tensor:
    """Mean over ``dim`` (kept as size 1), summed and returned in float32 or, for a wider input, in its dtype.

    A float16 sum over 160 x 160 pixels overflows at a mean of 2.6. Adaptive pooling is not used, because its backward
    raises under ``torch.use_deterministic_algorithms(True)`` on CUDA, and several exporters do not support it.
    """
    return x.mean(dim, keepdim=True, dtype=wide_dtype(x))


def group_norm(x: torch.Tensor, groups: int, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """`torch.group_norm`, whose ``groups`` may be a proxy of `torch.fx` with torch 2.6 too."""
    if not torch.jit.is_scripting():  # noqa: SIM102 - alone, or TorchScript compiles what follows
        if isinstance(x, Proxy):
            return x.tracer.create_proxy("call_function", torch.group_norm, (x, groups, weight, bias, eps), {})
    return torch.group_norm(x, groups, weight, bias, eps)


def saturate(x: torch.Tensor) -> torch.Tensor:
    """``x`` with float16 infinities replaced by the largest finite float16; other dtypes are returned unchanged.

    Convolutions of inputs around 1e4 overflow float16. A gate is 0 or 1 there anyway, unless a later step turns two
    infinities into a NaN.
    """
    if not torch.jit.is_scripting():  # noqa: SIM102 - alone, or TorchScript compiles what follows
        if isinstance(x, Proxy):
            return x.tracer.create_proxy("call_function", saturate, (x,), {})
    if x.dtype == torch.float16:
        return x.clamp(-65504.0, 65504.0)
    return x


def as_constant(function: Callable[..., _Result], *parameters: torch.Tensor) -> _Result:
    """``function(*parameters)``, which torch's older ONNX exporter records as a constant instead of its operations.

    OpenCV's DNN cannot compute values that do not depend on the network's input.
    """
    if not torch.onnx.is_in_onnx_export() or torch.compiler.is_compiling() or not torch.jit.is_tracing():
        return function(*parameters)
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        return function(*[parameter.detach() for parameter in parameters])
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


def is_symbolic(x: object) -> bool:
    """Whether it is a symbolic proxy of `torch.fx`, which has no shape, dtype or values."""
    return isinstance(x, Proxy)
