"""``train --noval`` in the PyPI package 7.0.14, which logs values that only a validation computes."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from yolov5_ema.engine.quirks.base import Quirk, SourceModule
from yolov5_ema.upstream.patching import Patches
from yolov5_ema.upstream.source_code import dotted

_FIGURES = "map50s"


def _needed(module: SourceModule) -> str | None:
    train = module.code.part("train")
    if train is None or not any(_validates(line) for line in train.all(ast.Assign)):
        return None
    targets = [target for line in train.all(ast.Assign) for target in line.targets]
    if any(isinstance(target, ast.Name) and target.id == _FIGURES for target in targets):
        return None
    return "the mAP50 of each class is logged after every epoch, even if no validation has computed it"


def _validates(line: ast.Assign) -> bool:
    """Whether a line is ``…, map50s, _ = validate.run(…)``."""
    is_run = isinstance(line.value, ast.Call) and dotted(line.value.func) == "validate.run"
    return is_run and any(_FIGURES in map(dotted, getattr(target, "elts", [])) for target in line.targets)


def _settled(module: SourceModule) -> bool:
    train = module.code.part("train")
    return train is not None and bool(train.calls("validate.run", "val.run"))


def _only_at_the_end(run: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `val.run`: before the last epoch, return the values that train already has instead of validating."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        names = sys._getframe(1).f_locals  # the local variables of train
        if kwargs.get("model") is not None and kwargs.get("plots") is False and not names["final_epoch"]:
            return names["results"], names["maps"], np.zeros_like(names["maps"]), None
        return run(*args, **kwargs)

    return wrapper


def _apply(module: SourceModule, patches: Patches) -> None:
    script: Any = module.module
    run = script.validate.run
    patches.view(script, "validate", run=run)

    def around(train: Callable[..., Any], hyp: Any, opt: Any, device: Any, callbacks: Any) -> Any:
        skips, opt.noval = opt.noval, False
        script.validate.run = _only_at_the_end(run) if skips else run
        try:
            return train(hyp, opt, device, callbacks)
        finally:
            opt.noval = skips

    patches.wrap(script, "train", around)


NOVAL = Quirk(
    name="noval",
    symptom="train --noval: UnboundLocalError: cannot access local variable 'map50s'",
    versions="PyPI 7.0.14",
    needed=_needed,
    settled=_settled,
    apply=_apply,
)
