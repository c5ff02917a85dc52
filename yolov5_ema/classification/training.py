"""Training a classifier with Lightning's loop."""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from yolov5_ema.classification.checkpoints import load_plainly
from yolov5_ema.classification.datasets import DataSet, Samples, Shares, make_loader
from yolov5_ema.classification.recipes import Settings
from yolov5_ema.classification.transforms import evaluation_transform, training_transform
from yolov5_ema.errors import CheckpointError, UserError
from yolov5_ema.texts import agreeing, counted

_LOGGER = logging.getLogger(__name__)

_RESTORED = {"epoch", "global_step", "loops", "optimizer_states", "pytorch-lightning_version", "state_dict"}


@dataclass
class Machine:
    """Where a training runs; this should not change the result.

    Attributes:
        accelerator: ``cpu`` or ``gpu``.
        devices: indices of the GPUs, or the number of processes on a CPU.
        nodes: number of machines.
        workers: number of processes that read images, for each training process.
    """

    accelerator: str
    devices: list[int] | int
    nodes: int = 1
    workers: int = 0

    @property
    def here(self) -> int:
        """The number of processes on this machine."""
        return len(self.devices) if isinstance(self.devices, list) else self.devices

    @property
    def world(self) -> int:
        """The number of processes on all machines."""
        return self.here * self.nodes

    @property
    def device(self) -> str:
        """The first device, by torch's name."""
        return f"cuda:{self.devices[0]}" if isinstance(self.devices, list) else "cpu"


def find_machine(device: str, devices: int | None, nodes: int, workers: int) -> Machine:
    """Return the machine that the flags ask for; under torchrun, its number of processes counts.

    Args:
        device: as YOLOv5's ``--device``: empty for the first GPU if there is one, ``cpu``, ``0`` or ``0,1``.
        devices: processes on each machine; None for one, or for one for each GPU in ``device``.
        nodes: number of machines.
        workers: number of processes that read images, for each training process.

    Raises:
        UserError: there are no such devices.
    """
    elastic = int(os.environ.get("LOCAL_WORLD_SIZE", "0")) if "TORCHELASTIC_RUN_ID" in os.environ else 0
    if elastic:
        devices, nodes = elastic, int(os.environ["WORLD_SIZE"]) // elastic
    if (devices is not None and devices < 1) or nodes < 1:
        raise UserError("--devices and --nodes must be 1 or more")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    wanted = device.strip().lower().replace("cuda:", "")
    if wanted == "cpu" or (not wanted and not gpus):
        return Machine("cpu", devices or 1, nodes, workers)
    if wanted and not all(part.strip().isdecimal() for part in wanted.split(",")):
        raise UserError(f"--device {device!r}: must be cpu, or numbers of GPUs such as 0 or 0,1")
    numbers = [int(part) for part in wanted.split(",")] if wanted else list(range(devices or 1))
    missing = [number for number in numbers if number >= gpus]
    if missing or len(set(numbers)) != len(numbers):
        raise UserError(f"--device {device!r}: this machine has {counted(gpus, 'GPU')} that torch can use")
    if devices is not None and devices != len(numbers):
        raise UserError(f"--devices {devices} but {counted(len(numbers), 'GPU')} in --device {device}")
    return Machine("gpu", numbers, nodes, workers)


def is_first_process() -> bool:
    """Whether this is the first process, which writes the files."""
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun
        return os.environ["RANK"] == "0"
    if "SLURM_NTASKS" in os.environ and "SLURM_PROCID" in os.environ:  # srun
        return os.environ["SLURM_PROCID"] == "0"
    return all(os.environ.get(name, "0") == "0" for name in ("NODE_RANK", "LOCAL_RANK"))  # Lightning's own


def build_model(settings: Settings, classes: int, *, resumed: bool = False) -> nn.Module:
    """Build the model with the initial weights of the seed; if ``resumed``, weights from a file will replace them."""
    from yolov5_ema.classification.models import create_classifier

    torch.manual_seed(settings.seed)
    return create_classifier(
        settings.model,
        settings.block,
        num_classes=classes,
        stem=settings.stem,
        block_options=dict(settings.block_options),
        pretrained=False if resumed else settings.pretrained,
    )


def check(settings: Settings, model: nn.Module, images: int, machine: Machine) -> int:
    """Check that a training can run on a machine, and return its batch size, at most the number of images.

    Raises:
        UserError: the batch cannot be shared among the processes, BatchNorm would get only one image, or the machine
            cannot do what the settings ask for.
    """
    if settings.precision == "16-mixed" and machine.accelerator == "cpu":
        raise UserError("--precision 16-mixed is for GPUs; on a CPU, use bf16-mixed or 32-true")
    if settings.sync_bn and machine.accelerator == "cpu":
        raise UserError("sync_bn is for GPUs: torch has no synchronised BatchNorm on CPUs")
    world = machine.world
    batch = min(settings.batch, images - images % world)
    if settings.batch % world:
        raise UserError(f"--batch {settings.batch} is for all processes together and cannot be shared among {world}")
    if not batch:
        raise UserError(
            f"{counted(images, 'training image')} {agreeing(images)} too few for {counted(world, 'process')}"
        )
    norms = any(isinstance(module, _BatchNorm) for module in model.modules())
    if batch // world == 1 and norms and not (settings.sync_bn and world > 1):
        raise UserError(
            f"one image per step{' in each process' if world > 1 else ''} is too few for BatchNorm, which takes its "
            "statistics from the batch; --batch must be larger"
        )
    return batch


def train(
    settings: Settings,
    data: DataSet,
    model: nn.Module,
    machine: Machine,
    folder: Path | None,
    last: Path | None = None,
) -> list[dict[str, float]]:
    """Train a classifier, and write the files of the run folder.

    Args:
        settings: settings of the training.
        data: a data set with the splits ``train`` and ``val``.
        model: the model from `build_model`.
        machine: where to train.
        folder: folder of the run; None in all processes except the first.
        last: a last.ckpt to resume from.

    Returns:
        A row of results for each epoch.

    Raises:
        UserError: the loss is not finite, a file cannot be read or written, or the machine cannot do what the settings
            ask for.
        KeyboardInterrupt: the user stopped the training. Finished epochs are on disk.
    """
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import TQDMProgressBar

    from yolov5_ema.classification.lightning_module import Training
    from yolov5_ema.classification.run_files import RunFiles, WholeFiles

    _silence_lightning()
    batch = check(settings, model, len(data.splits["train"]), machine)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    record = best_record(settings, data.names)
    files = RunFiles(folder, record)
    if folder is not None:
        (folder / "weights").mkdir(exist_ok=True)
        _LOGGER.info(f"{describe(settings)}: {parameters:,} parameters, {counted(len(data.names), 'class')}")
        if batch < settings.batch:
            _LOGGER.info("--batch %d is more than the number of images; %d is used", settings.batch, batch)
    shown = folder is not None and sys.stdout.isatty() and _LOGGER.isEnabledFor(logging.INFO)
    trainer = Trainer(
        accelerator=machine.accelerator,
        devices=machine.devices,
        num_nodes=machine.nodes,
        strategy="ddp" if machine.world > 1 else "auto",
        precision=settings.precision,  # type: ignore[arg-type]
        max_epochs=settings.epochs,
        num_sanity_val_steps=0,
        logger=False,
        callbacks=[files, *([TQDMProgressBar()] if shown else [])],
        plugins=[WholeFiles()],
        enable_progress_bar=shown,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=str(folder or Path()),
    )
    if settings.sync_bn and machine.world > 1:
        model = synchronised(model)
    module = Training(model, settings, len(data.names), data.splits)
    if last is not None:
        check_resumable(last, settings, module)
    loaders = _loaders(settings, data, batch, machine, trainer.global_rank)
    _fit(trainer, module, loaders, last)
    return files.history


def synchronised(model: nn.Module) -> nn.Module:
    """Give a model BatchNorm over all processes; torch's conversion would lose the activations in timm's BatchNorm."""
    from timm.layers import convert_sync_batchnorm

    return convert_sync_batchnorm(model)


def check_resumable(last: Path, settings: Settings, module: nn.Module) -> None:
    """Raise a CheckpointError for a last.ckpt that cannot be read or belongs to another training."""
    from yolov5_ema.classification.lightning_module import make_optimizer
    from yolov5_ema.classification.run_files import own_state

    found = load_plainly(last)
    own = own_state(found, last)
    wanted = {key: value for key, value in settings.as_dict().items() if key != "data"}
    differing = sorted(key for key, value in wanted.items() if own["settings"].get(key) != value)
    if differing:
        raise CheckpointError(
            f"{last} belongs to a training with other settings than args.yaml: {', '.join(differing)}"
        )
    if _RESTORED - found.keys():
        raise CheckpointError(f"{last}: missing: {', '.join(sorted(_RESTORED - found.keys()))}; it cannot be resumed")
    shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
    kept = {name: getattr(tensor, "shape", None) for name, tensor in found.get("state_dict", {}).items()}
    if shapes != kept:
        odd = sorted(name for name in shapes.keys() | kept.keys() if shapes.get(name) != kept.get(name))
        raise CheckpointError(f"{last} has other weights than {describe(settings)}: {', '.join(odd[:5])}")
    try:
        make_optimizer(module, settings).load_state_dict(found["optimizer_states"][0])
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{last}: its optimizer cannot be restored: {error}") from error


def best_record(settings: Settings, names: list[str]) -> dict[str, Any]:
    """What best.pt holds besides weights and results."""
    values = settings.as_dict()
    of_model = {key: values[key] for key in ("model", "block", "block_options", "stem", "imgsz", "mean", "std")}
    return {**of_model, "num_classes": len(names), "names": list(names), "settings": values}


def describe(settings: Settings) -> str:
    """A description of the model for messages."""
    options = ", ".join(f"{key}={value}" for key, value in settings.block_options.items())
    block = f" with {settings.block}{f' ({options})' if options else ''}" if settings.block else ""
    return f"{settings.model}{block}, stem {settings.stem}"


def _loaders(settings: Settings, data: DataSet, batch: int, machine: Machine, rank: int) -> tuple[Any, Any]:
    augmented = training_transform(
        settings.augment,
        settings.imgsz,
        settings.mean,
        settings.std,
        padding=settings.padding,
        scale=settings.scale,
        flip=settings.flip,
        color_jitter=settings.color_jitter,
    )
    plain = evaluation_transform(settings.imgsz, settings.eval_crop, settings.mean, settings.std)
    pin = machine.accelerator == "gpu"
    share = batch // machine.world

    def loader(split: str, transform: Any) -> Any:
        pictures = data.splits[split]
        samples = Samples(pictures, transform, settings.imgsz, settings.seed)
        keys = Shares(len(pictures), batch, settings.seed, train=split == "train", rank=rank, world=machine.world)
        return make_loader(samples, keys, share, machine.workers, pin)

    return loader("train", augmented), loader("val", plain)


def _fit(trainer: Any, module: Any, loaders: tuple[Any, Any], last: Path | None) -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, *loaders, ckpt_path=None if last is None else str(last))
    except SystemExit:  # Lightning raises it for Ctrl-C and for SIGTERM
        if trainer.received_sigterm:
            raise SystemExit(128 + signal.SIGTERM) from None
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, before)
    if trainer.interrupted:  # Lightning before 2.3 returns instead of raising
        raise KeyboardInterrupt


def _silence_lightning() -> None:
    """Silence Lightning's messages about the machine, which are for developers."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    warnings.filterwarnings("ignore", message=r".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=r"Grad strides do not match bucket view strides")
