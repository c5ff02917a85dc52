"""Half-precision safety, for kernels and blocks alike."""

from __future__ import annotations

import torch


def stable_mean(x: torch.Tensor, dim: list[int]) -> torch.Tensor:
    """Mean over ``dim`` (kept as size 1), summed in float32 at least, returned in that wider dtype.

    A float16 sum over 160 x 160 pixels overflows at a mean of 2.6. Adaptive pooling is not used: its backward
    raises under ``torch.use_deterministic_algorithms(True)`` on CUDA, and several exporters don't know it.
    """
    return x.mean(dim, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))


def saturate(x: torch.Tensor) -> torch.Tensor:
    """``x`` with float16 infinities put back to the largest finite float16; other dtypes pass untouched.

    Convolutions of inputs around 1e4 overflow float16. A gate is 0 or 1 there anyway, as long as no later
    step turns two infinities into a NaN.
    """
    if x.dtype == torch.float16:
        return x.clamp(-65504.0, 65504.0)
    return x
