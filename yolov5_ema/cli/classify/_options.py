"""Flags and checks that the subcommands share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from yolov5_ema.cli.command import Flags
from yolov5_ema.errors import UserError

if TYPE_CHECKING:
    from yolov5_ema.classification.checkpoints import Classifier

DATA_HELP = (
    "synthetic (drawn, needs no download), cifar100, the archive or folder of CIFAR-100's binary form, or a folder "
    "with train/CLASS/IMAGE and val/CLASS/IMAGE"
)


def add_workers(flags: Flags) -> None:
    """How many processes read images."""
    flags.add_argument(
        "--workers", type=int, metavar="N", help="processes that read images (default: up to 8)"
    )


def prepare() -> None:
    """What has to be done before torch is imported, and the modules of ``--plugin``."""
    from yolov5_ema.cli._yolov5 import load_plugins

    # On a busy machine, threads that wait by spinning are many times slower; torch reads it when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    load_plugins()


def worker_count(asked: int | None, processes: int = 1) -> int:
    """How many processes read for each process that computes on this machine.

    Raises:
        UserError: fewer than none.
    """
    if asked is None:
        return min(8, (os.cpu_count() or 1) // processes)
    if asked < 0:
        raise UserError(f"--workers {asked}: must be 0 or more")
    return asked


def load_weights(weights: Path, device: str) -> Classifier:
    """The classifier, on one device."""
    from yolov5_ema.classification.checkpoints import load_classifier
    from yolov5_ema.classification.training import find_machine

    return load_classifier(weights, find_machine(device, None, 1, 0).device)


def check_same_names(found: Sequence[str], wanted: Sequence[str], data: str, weights: Path) -> None:
    """Raise a UserError if a data set has other classes than a classifier, naming them."""
    if list(found) == list(wanted):
        return
    lacking = [name for name in wanted if name not in found]
    foreign = [name for name in found if name not in wanted]
    parts = [f"{data} lacks {', '.join(lacking[:10])}{' …' if len(lacking) > 10 else ''}"] if lacking else []
    parts += (
        [f"{weights} lacks {', '.join(foreign[:10])}{' …' if len(foreign) > 10 else ''}"] if foreign else []
    )
    raise UserError(
        f"{weights} was trained for {len(wanted)} classes and {data} has {len(found)} others: "
        f"{'; '.join(parts) or 'they come in another order'}"
    )
