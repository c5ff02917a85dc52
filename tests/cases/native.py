"""A block in a process that finds no compiler, on the CPU and on a GPU."""

from __future__ import annotations

import logging

import torch
from conftest import randomise

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


def runs_a_block_on_a_gpu() -> None:
    """Print the sums of its output and of its input's gradient, and the implementation that ran."""
    logging.basicConfig()
    block = randomise(EMA(64, groups=8)).cuda()
    x = torch.ones(2, 64, 9, 7, device="cuda", requires_grad=True)
    y = block(x)
    y.sum().backward()
    assert x.grad is not None
    print(y.double().abs().sum().item(), x.grad.double().abs().sum().item(), dispatch.survey("EMA")["cuda"].name)
