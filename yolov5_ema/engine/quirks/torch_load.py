"""``torch.load``: checkpoints hold classes, which ``weights_only=True`` (the default since torch 2.6) refuses.

``weights_only=False`` would run any code in a downloaded file. So an allow-list of classes is used instead; see
`yolov5_ema.checkpoints.loading`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from yolov5_ema.checkpoints.loading import load_checkpoint, save_checkpoint, with_aliases
from yolov5_ema.checkpoints.models import as_yolov5_builds
from yolov5_ema.checkpoints.state import for_yolov5
from yolov5_ema.engine.quirks.base import Quirk, SourceModule
from yolov5_ema.upstream.patching import Patches


def _needed(module: SourceModule) -> str | None:
    if {"torch.load", "torch.save"} & module.code.names or _has_torch_load(module):
        return "it loads or saves checkpoints, which are pickled modules"
    return None


def _has_torch_load(module: SourceModule) -> bool:
    """Upstream's newest loads with a function of the package ultralytics, which runs code from the file."""
    return module.code.imports("ultralytics", "torch_load", within_function=False)


def _apply(module: SourceModule, patches: Patches) -> None:
    engine = module.engine

    def load(file: Any, map_location: Any = None, **ignored: Any) -> Any:
        return for_yolov5(load_checkpoint(file, map_location, engine=engine), Path(str(file)))

    def save(checkpoint: Any, file: Any, **options: Any) -> None:
        save_checkpoint(checkpoint, file, engine=engine, **options)

    if hasattr(module.module, "torch"):
        patches.view(module.module, "torch", load=load, save=save)
    if _has_torch_load(module):
        patches.set(module.module, "torch_load", load)


SAFE_CHECKPOINTS = Quirk(
    name="safe-checkpoints",
    symptom="UnpicklingError: Weights only load failed … Unsupported global: models.yolo.Model; or any code is run",
    versions="all",
    needed=_needed,
    apply=_apply,
)


def _second_copy(module: SourceModule) -> str | None:
    attempt_load = module.code.part("attempt_load") if module.engine.kind == "package" else None
    if attempt_load is not None and attempt_load.imports("models.yolo"):
        return "attempt_load imports models.yolo in addition to yolov5.models.yolo, so that every class exists twice"
    return None


ONE_COPY_OF_CLASSES = Quirk(
    name="one-copy-of-classes",
    symptom="models loaded by the PyPI package are not fused and their Detect is not recognised",
    versions="PyPI, all",
    needed=_second_copy,
    settled=lambda module: module.engine.kind != "package" or module.code.defines("attempt_load"),
    apply=lambda module, patches: patches.wrap(module.module, "attempt_load", with_aliases, module.engine),
)


def _with_file_in_errors(attempt_load: Callable[..., Any], weights: Any, *args: Any, **kwargs: Any) -> Any:
    files = weights if isinstance(weights, (list, tuple)) else [weights]
    with as_yolov5_builds(Path(", ".join(map(str, files)))):
        return attempt_load(weights, *args, **kwargs)


FAULTS_OF_MODELS = Quirk(
    name="faults-of-models",
    symptom="a traceback from within YOLOv5 for a checkpoint whose model was changed",
    versions="all",
    needed=lambda module: module.name == "models.experimental" and module.code.defines("attempt_load"),
    reason="a model from a file may fail in anything that YOLOv5 does with it after reading it",
    apply=lambda module, patches: patches.wrap(module.module, "attempt_load", _with_file_in_errors),
)
