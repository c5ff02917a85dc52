"""The in-place clamp of an integer tensor by a float one in ``ComputeLoss.build_targets``."""

from __future__ import annotations

import ast
from typing import Any

import torch

from yolov5_ema.engine.quirks.base import Quirk, SourceModule
from yolov5_ema.upstream.source_code import Code, dotted, value_of

_LOSS = "ComputeLoss"


def _grid_gain(*size: Any, **options: Any) -> torch.Tensor:
    """``torch.ones``, but of dtype int64 for the (7,) grid gain, which holds grid sizes.

    The targets stay float, because float32 * int64 is float32, and keep the same values. The grid indices, which are
    int64, are clamped by an int64 bound.
    """
    if size == (7,) and "dtype" not in options:
        options["dtype"] = torch.int64
    return torch.ones(*size, **options)


def _needed(module: SourceModule) -> str | None:
    loss = module.code.part(_LOSS)
    if loss is not None and any(_is_clamped_by(call, _gains(loss)) for call in loss.all(ast.Call)):
        return "gj.clamp_(0, gain[3] - 1) clamps int64 in place by float32"
    return None


def _gains(loss: Code) -> set[str]:
    """The names that the loss gives to the grid gain, a tensor of seven ones."""
    seven = [node for node in loss.calls("torch.ones") if node.args and value_of(node.args[0]) == 7]
    values = [node for node in loss.all(ast.Assign) if node.value in seven]
    return {dotted(target) for node in values for target in node.targets}


def _is_clamped_by(call: ast.Call, names: set[str]) -> bool:
    is_clamp = isinstance(call.func, ast.Attribute) and call.func.attr == "clamp_"
    return is_clamp and any(names & Code(bound).names for bound in call.args)


LOSS_CLAMP = Quirk(
    name="loss-clamp",
    symptom="RuntimeError: result type Float can't be cast to the desired output type long int",
    versions="6.0, 6.1",
    needed=_needed,
    settled=lambda module: module.code.defines(_LOSS),
    apply=lambda module, patches: patches.view(module.module, "torch", ones=_grid_gain),
)
