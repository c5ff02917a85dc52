"""Worker processes that are spawned, not forked: they must install the quirks before they can import YOLOv5."""

from __future__ import annotations

import copyreg
import functools
from typing import Any

from yolov5_ema.engine import workers
from yolov5_ema.engine.quirks.base import Quirk, SourceModule
from yolov5_ema.upstream.patching import Patches

_FUNCTION = "verify_image_label"
_DATASET = "LoadImagesAndLabels"


def _apply(module: SourceModule, patches: Patches) -> None:
    target: Any = module.module
    root, name = str(module.engine.root), target.__name__
    workers.ORIGINALS[name, _FUNCTION] = getattr(target, _FUNCTION)
    patches.set(target, _FUNCTION, functools.partial(workers.call, root, name, _FUNCTION))

    def reduce(dataset: Any) -> tuple[Any, ...]:
        return workers.rebuild, (root, name, _DATASET), dataset.__dict__

    patches.set_item(copyreg.dispatch_table, getattr(target, _DATASET), reduce)


WORKER_PROCESSES = Quirk(
    name="worker-processes",
    symptom="scanning labels hangs, or DataLoader workers die, if processes are spawned",
    versions="all",
    needed=lambda module: module.code.defines(_FUNCTION, _DATASET),
    reason="spawned workers (the default from Python 3.14 on) import YOLOv5 without its quirks",
    apply=_apply,
)
