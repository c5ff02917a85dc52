"""Rank 0, which saves last.pt, ends when it is about to save for the third time."""

from __future__ import annotations

import os
import signal
from typing import Any

import torch

theirs: Any = torch
save = torch.save
saved: list[object] = []


def counted(checkpoint: object, file: Any, *args: Any, **kwargs: Any) -> None:
    if any(name.startswith(".last.pt.") for name in os.listdir("runs/train/exp/weights")):
        saved.append(file)
        if len(saved) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
    save(checkpoint, file, *args, **kwargs)


theirs.save = counted
