"""Records in resumed.pt the state that a resumed optimizer was given, before the first step changes it."""

from __future__ import annotations

import os
from typing import Any

import torch

optimizer: Any = torch.optim.Optimizer
load = optimizer.load_state_dict


def load_state_dict(self: Any, state: Any) -> None:
    load(self, state)
    torch.save(self.state_dict(), "resumed.tmp")
    os.replace("resumed.tmp", "resumed.pt")


optimizer.load_state_dict = load_state_dict
