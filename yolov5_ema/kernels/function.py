"""When the backward of an autograd function may run kernels."""

from __future__ import annotations

import torch

from yolov5_ema.kernels.dispatch import needs_plain_operations


def kernels_may_run(*grads: torch.Tensor | None) -> bool:
    """Whether a backward pass may use kernels: it is not differentiated again, traced, compiled or batched."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or needs_plain_operations():
        return False
    return not any(g is not None and torch._C._functorch.is_legacy_batchedtensor(g) for g in grads)
