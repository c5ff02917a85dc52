"""Each process writes the final state of its model; rank 0 also writes the weights after each step of its average."""

from __future__ import annotations

import os
from typing import Any

import torch
from warm_python import leave_figures_empty

from yolov5_ema.engine import shim

train = shim.install().module("train")
rank = max(int(os.environ.get("RANK", "0")), 0)
steps: list[dict[str, torch.Tensor]] = []
models: list[Any] = []
Average: Any = train.ModelEMA
Loss: Any = train.ComputeLoss
run = train.train
leave_figures_empty()


def state_of(model: Any) -> dict[str, torch.Tensor]:
    model = getattr(model, "module", model)
    return {k: v.detach().clone().float() for k, v in model.state_dict().items() if v.is_floating_point()}


class Watched(Average):
    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        steps.append(state_of(model))

    def update(self, model: Any) -> None:
        super().update(model)
        steps.append(state_of(model))


class Seen(Loss):
    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        models.append(model)


def watched(*args: Any, **kwargs: Any) -> Any:
    result = run(*args, **kwargs)
    names = {type(module).__name__ for module in models[0].modules()}
    kinds = sorted(name for name in names if "Norm" in name or "Distributed" in name)
    torch.save({"steps": steps, "end": state_of(models[0]), "kinds": kinds}, f"rank{rank}.pt")
    return result


train.ModelEMA, train.ComputeLoss, train.train = Watched, Seen, watched
