"""Code in two processes with the environment that torchrun gives them: both are copies of the process that asks."""

from __future__ import annotations

import functools
import os
import runpy
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_LONGEST_S = 200


def command_in_two_ranks(*words: str) -> None:
    """``torchrun --nproc_per_node 2 -m yolov5_ema WORDS``, without the processes of torchrun itself."""
    sys.argv = ["yolov5_ema", *words]
    _in_two_ranks(_run_command)


def _run_command(rank: int) -> None:
    try:
        runpy.run_module("yolov5_ema", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert not end.code, f"rank {rank} ended with {end.code}"


def norms_of_half_batches(file: Path) -> None:
    """Half of a batch in each rank through a synchronised norm; compared with the whole batch through torch's norm."""
    _in_two_ranks(functools.partial(_batch_norms, file=file))


def _in_two_ranks(work: Callable[[int], None]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free.getsockname()[1]))
    child = os.fork()
    rank = 0 if child else 1
    # if a rank fails, the other one would wait for it
    signal.alarm(_LONGEST_S)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    work(rank)
    if not child:
        sys.stdout.flush()
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == 0, f"rank 1 ended with {code}"


def _batch_norms(rank: int, file: Path) -> None:
    from yolov5_ema.engine.quirks import distributed as quirk

    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    norms = [torch.nn.BatchNorm2d(3, eps=1e-3, momentum=0.03, dtype=torch.float64) for _ in range(2)]
    quirk._SyncBatchNorm.convert_sync_batchnorm(norms[0])
    forward = functools.partial(quirk._of_all_ranks, torch.nn.BatchNorm2d.forward)
    whole = torch.randn(5, 3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = torch.randn(5, 3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    part = slice(0, 2) if rank == 0 else slice(2, 5)  # ranks may have different numbers of values
    own: Any = whole[part].clone().requires_grad_()
    everything: Any = whole.requires_grad_()
    ours, theirs = forward(norms[0], own), norms[1](everything)
    torch.testing.assert_close(ours, theirs[part], rtol=1e-12, atol=1e-12)
    (ours * weights[part]).sum().backward()
    (theirs * weights).sum().backward()
    torch.testing.assert_close(own.grad, everything.grad[part], rtol=1e-10, atol=1e-12)
    for name in ("weight", "bias"):
        total = getattr(norms[0], name).grad.clone()
        torch.distributed.all_reduce(total)
        torch.testing.assert_close(total, getattr(norms[1], name).grad, rtol=1e-10, atol=1e-12)
    for name, value in norms[1].named_buffers():
        torch.testing.assert_close(norms[0].get_buffer(name), value, rtol=1e-12, atol=1e-12)
    norms[0].eval(), norms[1].eval()
    torch.testing.assert_close(forward(norms[0], own), norms[1](own), rtol=1e-12, atol=1e-12)
    torch.distributed.destroy_process_group()
