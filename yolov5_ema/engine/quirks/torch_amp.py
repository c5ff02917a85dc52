"""``torch.cuda.amp``, deprecated: the same objects under their present name, without the warnings."""

from __future__ import annotations

import re
from typing import Any

import torch

from yolov5_ema.engine.patching import ModuleView, Patches
from yolov5_ema.engine.quirks.base import Quirk, SourceModule


def _autocast(*args: Any, **kwargs: Any) -> Any:
    return torch.amp.autocast("cuda", *_as_keywords(args, kwargs), **kwargs)


def _as_keywords(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    # torch.cuda.amp.autocast(enabled, dtype); torch.amp.autocast(device, dtype, enabled)
    for name, value in zip(("enabled", "dtype", "cache_enabled"), args):
        kwargs[name] = value
    return ()


def _grad_scaler(*args: Any, **kwargs: Any) -> Any:
    return torch.amp.GradScaler("cuda", *args, **kwargs)


def _imports_amp(source: str) -> bool:
    return bool(re.search(r"^from torch\.cuda import amp", source, re.MULTILINE))


def _needed(module: SourceModule) -> str | None:
    if not hasattr(torch.amp, "GradScaler"):
        return None
    if _imports_amp(module.source) or "torch.cuda.amp." in module.source:
        return f"torch {torch.__version__} warns of torch.cuda.amp at every batch"
    return None


def _apply(module: SourceModule, patches: Patches) -> None:
    replaced = {"autocast": _autocast, "GradScaler": _grad_scaler}
    if _imports_amp(module.source):
        patches.view(module.module, "amp", **replaced)
    if "torch.cuda.amp." in module.source:
        amp = ModuleView(torch.cuda.amp, **replaced)
        patches.view(module.module, "torch", cuda=ModuleView(torch.cuda, amp=amp))


TORCH_AMP = Quirk(
    name="torch-amp",
    symptom="FutureWarning: torch.cuda.amp.GradScaler / autocast is deprecated",
    versions="6.0 to 7.0.14",
    needed=_needed,
    apply=_apply,
)
