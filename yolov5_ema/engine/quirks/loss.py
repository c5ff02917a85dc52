"""The in-place clamp of an integer tensor by a float one in ``ComputeLoss.build_targets``."""

from __future__ import annotations

import re
from typing import Any

import torch

from yolov5_ema.engine.patching import Patches
from yolov5_ema.engine.quirks.base import Quirk, SourceModule


def _grid_gain(*size: Any, **options: Any) -> torch.Tensor:
    """``torch.ones``, but whole-numbered for the (7,) grid gain, whose entries are grid sizes.

    The targets stay float (float32 * int64 is float32) with the very same values, and the grid
    indices, int64, are clamped by an int64 bound.
    """
    if size == (7,) and "dtype" not in options:
        options["dtype"] = torch.int64
    return torch.ones(*size, **options)


def _needed(module: SourceModule) -> str | None:
    if re.search(r"clamp_\(0, gain\[", module.source) and "torch.ones(7" in module.source:
        return "gj.clamp_(0, gain[3] - 1) clamps int64 in place by float32"
    return None


def _apply(module: SourceModule, patches: Patches) -> None:
    patches.view(module.module, "torch", ones=_grid_gain)


LOSS_CLAMP = Quirk(
    name="loss-clamp",
    symptom="RuntimeError: result type Float can't be cast to the desired output type long int",
    versions="6.0, 6.1",
    needed=_needed,
    apply=_apply,
)
