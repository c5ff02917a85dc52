"""A block in a process that finds no compiler."""

from __future__ import annotations

import torch

from yolov5_ema.blocks import EMA
from yolov5_ema.kernels import dispatch


def runs_a_block() -> None:
    """Print the sums of its output and of its input's gradient, and the implementation that ran."""
    torch.manual_seed(0)
    block = EMA(64, groups=8)
    x = torch.randn(2, 64, 9, 7, requires_grad=True)
    y = block(x)
    y.sum().backward()
    assert x.grad is not None
    print(y.double().abs().sum().item(), x.grad.double().abs().sum().item(), dispatch.survey("EMA")["cpu"].name)
