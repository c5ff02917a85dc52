"""The random seed of a training, set from outside because YOLOv5 v6.0 and v6.1 have no flag for it.

Three things are random: the initial weights, the order of the images, and the augmentation. Augmentation happens in
worker processes, whose seeds torch derives from its own generator. YOLOv5 v6.0 seeds once, before it builds the model,
so two models of different size see different images from the first batch on. Here the generators are seeded again when
the training images are opened. Two cfgs with the same seed then train on the same images, in the same order and with
the same augmentation.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yolov5_ema.settings import read
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.patching import Patches
from yolov5_ema.upstream.source_code import code_in


@contextmanager
def seeded_training(engine: Engine, argv: Sequence[str]) -> Iterator[list[str]]:
    """Let YOLOv5's ``train`` use the seed of the settings, if there is one.

    Yields:
        The flags to run ``train`` with: those given, and ``--seed`` if this YOLOv5 knows it.

    Raises:
        UserError: the seed is not a number.
    """
    seed = read("seed")
    if seed is None:
        yield list(argv)
        return
    module = engine.module("train")
    if _has_seed_flag(module):
        yield [*argv, "--seed", str(seed)]
        return
    with Patches() as patches:
        _seed(module, seed, patches)
        yield list(argv)


def _has_seed_flag(module: Any) -> bool:
    return code_in(Path(str(module.__file__))).has_flag("--seed")


def _seed(module: Any, seed: int, patches: Patches) -> None:
    def seeded(init_seeds: Callable[..., None], given: int = 0, *args: Any, **kwargs: Any) -> None:
        # with YOLOv5's own seed, because it also configures cuDNN by the value of the seed
        init_seeds(given, *args, **kwargs)
        seed_generators(seed + given)

    def with_its_own_seed(create_dataloader: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("augment"):  # the training images
            seed_generators(seed + max(int(os.environ.get("RANK", -1)), 0))
        return create_dataloader(*args, **kwargs)

    patches.wrap(module, "init_seeds", seeded)
    patches.wrap(module, "create_dataloader", with_its_own_seed)


def seed_generators(seed: int) -> None:
    """Seed the generators of `random`, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
