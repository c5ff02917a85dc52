"""EMA's function (Ouyang et al., ICASSP 2023, arXiv 2305.13563), by whichever implementation fits.

``reference`` is the paper's form, ``exact`` the same function in fewer plain operations, ``cpp`` and ``triton`` are
kernels of it; ``function`` makes them known to autograd.
"""

from __future__ import annotations

import torch

from yolov5_ema.kernels.dispatch import choose, needs_plain_operations
from yolov5_ema.kernels.ema.exact import ema_exact
from yolov5_ema.kernels.ema.function import EMAFunction
from yolov5_ema.kernels.ema.reference import ema_reference

__all__ = ["ema", "ema_exact", "ema_reference"]


def ema(
    x: torch.Tensor,
    w1: torch.Tensor,
    b1: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    w3: torch.Tensor,
    b3: torch.Tensor,
    groups: int,
    eps: float,
    implementation: str = "auto",
) -> torch.Tensor:
    """Efficient multi-scale attention, with the arguments and the result of `ema_reference`.

    Args:
        implementation: one of `yolov5_ema.kernels.dispatch.CHOICES`.

    Raises:
        UserError: a kernel was asked for on its own device and cannot run there; or the environment variable
            ``YOLOV5_EMA_IMPLEMENTATION`` holds no implementation's name.
    """
    name = choose("EMA", implementation, x.device.type, x.dtype).name
    if name == "reference":
        return ema_reference(x, w1, b1, gamma, beta, w3, b3, groups, eps)
    if name == "exact" and needs_plain_operations():
        return ema_exact(x, w1, b1, gamma, beta, w3, b3, groups, eps)
    wide = torch.promote_types(x.dtype, torch.float32)
    parameters = [p.to(wide) for p in (w1, b1, gamma, beta, w3, b3)]
    return EMAFunction.apply(x, *parameters, groups, eps, name != "exact")
