"""Kernels that fail in one of several processes."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel

from yolov5_ema.blocks import EMA
from yolov5_ema.kernels.dispatch import choose
from yolov5_ema.kernels.ema import cpp


def trains_with_a_fault_in_one_rank(folder: Path) -> None:
    """Train on two ranks; print of each which implementation it uses at the end."""
    # DistributedDataParallel imports it; here it is done once for both ranks
    importlib.import_module("torch._dynamo")
    start_processes(_train, (folder,), nprocs=2, start_method="fork")
    names, weights = zip(*(torch.load(folder / f"{rank}.pt") for rank in (0, 1)))
    print(*names)
    torch.testing.assert_close(weights[0], weights[1], atol=0, rtol=0)
    torch.testing.assert_close(weights[0], _weights(_net(), _images()), atol=1e-5, rtol=1e-4)


def _train(rank: int, folder: Path) -> None:
    logging.basicConfig()
    distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    net, x = _net(), _images()
    wrapped = DistributedDataParallel(net)
    weights = _weights(wrapped, x[2 * rank : 2 * rank + 2], fails_at=1 if rank else -1)
    chosen = choose("EMA", "auto", "cpu", torch.float32).name
    torch.save((chosen, {key.removeprefix("module."): value for key, value in weights.items()}), folder / f"{rank}.pt")
    distributed.destroy_process_group()


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3), EMA(16, groups=4), nn.Conv2d(16, 2, 1))


def _images() -> torch.Tensor:
    return torch.randn(4, 3, 9, 8, generator=torch.Generator().manual_seed(1))


def _weights(net: nn.Module, x: torch.Tensor, fails_at: int = -1) -> dict[str, torch.Tensor]:
    """The weights after three steps. From the step ``fails_at`` on, launches of the backward kernel raise."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(3):
        if step == fails_at:
            cpp.backward = _raise  # type: ignore[assignment]
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    return {name: value.detach() for name, value in net.state_dict().items()}


def _raise(*arguments: Any) -> Any:
    raise RuntimeError("an illegal launch")
