"""Flags and checks that are shared by the subcommands."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from yolov5_ema.cli._yolov5 import load_plugins
from yolov5_ema.cli.command import Flags
from yolov5_ema.errors import UserError
from yolov5_ema.texts import counted

if TYPE_CHECKING:
    from yolov5_ema.classification.checkpoints import Classifier

DATA_HELP = (
    "synthetic (drawn, needs no download), cifar100, the archive or folder of CIFAR-100's binary version, or a folder "
    "with train/CLASS/IMAGE and val/CLASS/IMAGE"
)


def add_workers(flags: Flags) -> None:
    """Add ``--workers``: the number of processes that read images."""
    flags.add_argument("--workers", type=int, metavar="N", help="processes that read images (default: up to 8)")


def prepare(*needed: str) -> None:
    """Import the modules of ``--plugin`` and those that are needed."""
    load_plugins()
    from yolov5_ema.classification.extras import require

    require(*needed)


def worker_count(asked: int | None, processes: int = 1) -> int:
    """The number of processes that read images, for each training process on this machine.

    Raises:
        UserError: the number is negative.
    """
    if asked is None:
        return min(8, (os.cpu_count() or 1) // processes)
    if asked < 0:
        raise UserError(f"--workers {asked}: must be 0 or more")
    return asked


def load_weights(weights: Path, device: str) -> Classifier:
    """Load the classifier onto one device."""
    from yolov5_ema.classification.checkpoints import load_classifier
    from yolov5_ema.classification.training import find_machine

    return load_classifier(weights, find_machine(device, None, 1, 0).device)


def check_same_names(found: Sequence[str], wanted: Sequence[str], data: str, weights: Path) -> None:
    """Raise a UserError that names the differences if a data set and a classifier have different classes."""
    if list(found) == list(wanted):
        return
    missing = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted]
    parts = [f"{data} does not have {', '.join(missing[:10])}{' …' if len(missing) > 10 else ''}"] if missing else []
    parts += [f"{weights} does not have {', '.join(extra[:10])}{' …' if len(extra) > 10 else ''}"] if extra else []
    raise UserError(
        f"{weights} was trained for {counted(len(wanted), 'class')}, but the {len(found)} of {data} differ: "
        f"{'; '.join(parts) or 'their order is different'}"
    )
