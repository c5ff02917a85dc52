"""The latency of models for one image, measured in turns so that a drift of the machine affects all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from yolov5_ema.cfgs.dry_run import quiet

WARM_UP = 5


def measure_latency(
    models: Mapping[str, Any], *, imgsz: int, device: torch.device, rounds: int
) -> dict[str, list[float]]:
    """Time the forward pass of models, with BatchNorm folded as for inference.

    The batch is 1, in float32, with random input. Reading the image and NMS are not included. Each model runs once in
    each round, and each round starts with the next model.

    Args:
        models: the models by name; they are moved to the device and fused.
        imgsz: side of the input in pixels, a multiple of the models' strides.
        device: where to run.
        rounds: number of measured rounds, after `WARM_UP` unmeasured ones.

    Returns:
        Milliseconds by name, one value for each round.
    """
    with quiet():
        ready = {name: model.to(device).float().fuse().eval() for name, model in models.items()}
    x = torch.rand(1, 3, imgsz, imgsz, device=device)
    return in_turns({name: partial(model, x) for name, model in ready.items()}, device, rounds)


def in_turns(calls: Mapping[str, Callable[[], Any]], device: torch.device, rounds: int) -> dict[str, list[float]]:
    """Time calls without gradients: each once in each round, and each round starts with the next call.

    Args:
        calls: what to call, by name.
        device: the device that they use.
        rounds: number of measured rounds, after `WARM_UP` unmeasured ones.

    Returns:
        Milliseconds by name, one value for each round.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    with torch.no_grad():
        for turn in range(-WARM_UP, rounds):
            first = turn % max(len(names), 1)
            for name in names[first:] + names[:first]:
                elapsed_ms = _timed_ms(calls[name], device)
                if turn >= 0:
                    times[name].append(elapsed_ms)
    return times


def _timed_ms(call: Callable[[], Any], device: torch.device) -> float:
    _synchronize(device)
    started_s = time.perf_counter()
    call()
    _synchronize(device)
    return (time.perf_counter() - started_s) * 1e3


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
