"""Training in several processes: in one run folder, and, if the user asks for it, without GPUs.

YOLOv5 expects a GPU for each process of ``torchrun``. With the setting ``cpu_ddp``, the processes share the CPU and
communicate through gloo. This is slow. It is meant for checking that a training runs in several processes at all,
before one pays for GPUs.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from yolov5_ema.engine.quirks.base import Quirk, SourceModule, by_absence
from yolov5_ema.errors import UserError
from yolov5_ema.settings import VARIABLES, read
from yolov5_ema.upstream.patching import ModuleView, Patches
from yolov5_ema.upstream.source_code import parameters

_VARIABLE = VARIABLES["cpu_ddp"]


def is_cpu_ddp() -> bool:
    """Whether this is a process of ``torchrun`` and the user asked for the CPU."""
    return bool(read("cpu_ddp")) and "LOCAL_RANK" in os.environ


def check_devices() -> None:
    """Refuse a process of ``torchrun`` for which there is no GPU, before anything is built.

    Raises:
        UserError: there is no GPU for this process. The message gives the number of GPUs and says how to use the CPU.
    """
    wanted, there = int(os.environ.get("LOCAL_RANK", "-1")), torch.cuda.device_count()
    if wanted < there or is_cpu_ddp():
        return
    raise UserError(
        f"torchrun started process {wanted} on this machine, which has GPUs for {there}: YOLOv5 needs one GPU for "
        f"each process. Lower --nproc_per_node, or set {_VARIABLE}=1 to try several processes on the CPU."
    )


class _CpuOfARank(str):
    """A device that torch takes as the CPU, but for which YOLOv5's ``device.type != 'cpu'`` is true."""

    type = "cpu of a rank"


def _cpu_apply(module: SourceModule, patches: Patches) -> None:
    target: Any = module.module
    # gloo does not accept device_ids
    patches.view(target, "dist", is_nccl_available=lambda: False, barrier=lambda **_: torch.distributed.barrier())
    if hasattr(target, "DDP"):
        patches.set(target, "DDP", _ddp)
    if not module.code.calls("dist.init_process_group"):
        return
    if hasattr(target, "amp"):  # v6.0; later releases call check_amp
        no_scaler = torch.amp.GradScaler(enabled=False)
        patches.view(target, "amp", autocast=lambda **_: contextlib.nullcontext(), GradScaler=lambda **_: no_scaler)
    patches.view(
        target,
        "torch",
        cuda=ModuleView(target.torch.cuda, device_count=_processes_here, set_device=lambda _: None),
        device=_device,
        nn=ModuleView(target.torch.nn, SyncBatchNorm=_SyncBatchNorm),
    )
    patches.wrap(nn.BatchNorm2d, "forward", _of_all_ranks)


def _processes_here() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _device(*args: Any) -> Any:
    return _CpuOfARank("cpu") if args[0] == "cuda" else torch.device(*args)


def _ddp(model: nn.Module, device_ids: Any = None, output_device: Any = None, **options: Any) -> nn.Module:
    return DistributedDataParallel(model, **options)


class _SumOfRanks(torch.autograd.Function):
    """The sum over all processes, in each of them; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        total = tensor.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.contiguous().clone()
        torch.distributed.all_reduce(total)
        return total


class _SyncBatchNorm:
    """The part of `torch.nn.SyncBatchNorm` that YOLOv5 uses; torch's own works on GPUs only."""

    @staticmethod
    def convert_sync_batchnorm(model: nn.Module) -> nn.Module:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                # an attribute, because a class of ours would get into checkpoints
                vars(module)["is_of_all_ranks"] = True
        return model


def _of_all_ranks(forward: Callable[..., torch.Tensor], self: nn.BatchNorm2d, input: torch.Tensor) -> torch.Tensor:
    if self.training and getattr(self, "is_of_all_ranks", False):
        return _normalised(self, input)  # (B, C, H, W)
    return forward(self, input)


def _normalised(norm: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    """Batch normalisation of (B, C, H, W) with mean and variance over the batches of all processes."""
    number = _SumOfRanks.apply(x.new_tensor([x.numel() / x.shape[1]]))  # (1,)
    mean = _SumOfRanks.apply(x.sum((0, 2, 3))) / number  # (C,)
    centred = x - mean.view(1, -1, 1, 1)  # (B, C, H, W)
    variance = _SumOfRanks.apply(centred.square().sum((0, 2, 3))) / number  # (C,)
    _keep(norm, mean.detach(), (variance * number / (number - 1)).detach())
    scale = norm.weight * torch.rsqrt(variance + norm.eps)  # (C,)
    return centred * scale.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)


def _keep(norm: Any, mean: torch.Tensor, variance: torch.Tensor) -> None:
    """Update the running statistics as a `BatchNorm2d` with a momentum does; YOLOv5 uses a momentum of 0.03."""
    norm.num_batches_tracked.add_(1)
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(variance, norm.momentum)


CPU_DDP = Quirk(
    name="cpu-ddp",
    symptom="torchrun without GPUs: insufficient CUDA devices for DDP command",
    versions=f"all; off unless {_VARIABLE}=1",
    needed=lambda module: is_cpu_ddp() and bool(module.code.calls("dist.barrier", "dist.init_process_group")),
    reason=f"{_VARIABLE} is set: the processes of torchrun share the CPU",
    settled=lambda module: not is_cpu_ddp(),
    apply=_cpu_apply,
)


def _rank() -> int:
    return int(os.environ.get("RANK", "-1"))


def _makes_run_folder(module: SourceModule) -> bool:
    train = module.code.part("train")
    return train is not None and "opt" in parameters(train) and train.has("save_dir / 'opt.yaml'")


def _in_own_folder(train: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    opt = inspect.signature(train).bind(*args, **kwargs).arguments["opt"]
    with tempfile.TemporaryDirectory(prefix="yolov5-ema-rank-") as folder:
        opt.save_dir = folder
        return train(*args, **kwargs)


ONE_RUN_FOLDER = Quirk(
    name="one-run-folder",
    symptom="torchrun: a second, empty run folder next to the one with the weights",
    versions="all",
    needed=lambda module: _rank() > 0 and _makes_run_folder(module),
    reason="each process makes a run folder and writes into it: the second one makes exp2 next to exp",
    settled=_makes_run_folder,
    apply=lambda module, patches: patches.wrap(module.module, "train", _in_own_folder),
)


_CHECK = "check_wandb_resume"


def _resume_apply(module: SourceModule, patches: Patches) -> None:
    patches.wrap(module.module, _CHECK, lambda check, opt: check(opt) if str(opt.data) else None)


RESUME_IN_RANKS = Quirk(
    name="resume-in-ranks",
    symptom="torchrun … train --resume: FileNotFoundError: No such file or directory: '', or the others wait forever",
    versions="6.0 to 6.2; PyPI 6.0.7, 6.1.9",
    needed=lambda module: _rank() > 0 and _CHECK in module.code.own_names,
    reason="all processes but the first look for W&B data sets in --data, even if --resume came without --data",
    settled=by_absence,
    apply=_resume_apply,
)
