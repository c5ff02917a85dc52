"""EMA under DistributedDataParallel."""

from __future__ import annotations

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from yolov5_ema.blocks import EMA


def gradients_of_half_of_a_batch() -> None:
    """Run one of two ranks of torchrun, and check that it gets the gradients of the whole batch."""
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    torch.manual_seed(0)
    variant = EMA(16, groups=4, norm_groups=2, residual=True, depthwise=True)
    nn.init.ones_(variant.gate.weight)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), EMA(16, groups=4), variant, nn.Conv2d(16, 2, 1))
    x = torch.randn(4, 3, 9, 8)
    alone = torch.autograd.grad(net(x).square().mean(), list(net.parameters()))
    wrapped = DistributedDataParallel(net)
    wrapped(x[2 * rank : 2 * rank + 2]).square().mean().backward()
    for parameter, expected in zip(net.parameters(), alone):
        torch.testing.assert_close(parameter.grad, expected)
    print("same gradients")
    distributed.destroy_process_group()
