"""Ends the process as SIGKILL does, while it writes last.pt for the third time."""

from __future__ import annotations

import os
import signal
from typing import Any

import torch

theirs: Any = torch
save = torch.save
saved: list[str] = []


def half(checkpoint: object, file: Any, *args: Any, **kwargs: Any) -> None:
    draft = [name for name in os.listdir("runs/train/exp/weights") if name.startswith(".last.pt.")]
    saved.extend(draft)
    if len(saved) == 3 and draft:
        os.kill(os.getpid(), signal.SIGKILL)
    save(checkpoint, file, *args, **kwargs)


theirs.save = half
