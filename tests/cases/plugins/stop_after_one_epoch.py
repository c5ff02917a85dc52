"""The process ends with exit code 9 when it is about to save last.pt for the second time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yolov5_ema.engine.quirks.torch_load as quirk

saving: Any = quirk
save = saving.save_checkpoint
saved: list[object] = []


def counted(checkpoint: object, file: Any, **options: Any) -> None:
    if Path(str(file)).name == "last.pt":
        saved.append(file)
        if len(saved) == 2:
            os._exit(9)
    save(checkpoint, file, **options)


saving.save_checkpoint = counted
