"""``torch.cuda.amp`` is deprecated: the same objects under their new names, without the warnings."""

from __future__ import annotations

from typing import Any

import torch

from yolov5_ema.engine.quirks.base import Quirk, SourceModule, by_absence
from yolov5_ema.upstream.patching import ModuleView, Patches
from yolov5_ema.upstream.source_code import Code


def _autocast(*args: Any, **kwargs: Any) -> Any:
    return torch.amp.autocast("cuda", *_as_keywords(args, kwargs), **kwargs)


def _as_keywords(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    # torch.cuda.amp.autocast(enabled, dtype); torch.amp.autocast(device, dtype, enabled)
    for name, value in zip(("enabled", "dtype", "cache_enabled"), args):
        kwargs[name] = value
    return ()


def _grad_scaler(*args: Any, **kwargs: Any) -> Any:
    return torch.amp.GradScaler("cuda", *args, **kwargs)


def _imports_amp(code: Code) -> bool:
    return code.imports("torch.cuda", "amp", within_function=False)


def _names_amp(code: Code) -> bool:
    return "torch" in code.own_names and any(name.startswith("torch.cuda.amp.") for name in code.names)


def _needed(module: SourceModule) -> str | None:
    if not hasattr(torch.amp, "GradScaler"):
        return None
    if _imports_amp(module.code) or _names_amp(module.code):
        return f"torch {torch.__version__} warns about torch.cuda.amp at every batch"
    return None


def _apply(module: SourceModule, patches: Patches) -> None:
    replaced = {"autocast": _autocast, "GradScaler": _grad_scaler}
    if _imports_amp(module.code):
        patches.view(module.module, "amp", **replaced)
    if _names_amp(module.code):
        amp = ModuleView(torch.cuda.amp, **replaced)
        patches.view(module.module, "torch", cuda=ModuleView(torch.cuda, amp=amp))


TORCH_AMP = Quirk(
    name="torch-amp",
    symptom="FutureWarning: torch.cuda.amp.GradScaler / autocast is deprecated",
    versions="all",
    needed=_needed,
    settled=by_absence,
    apply=_apply,
)
