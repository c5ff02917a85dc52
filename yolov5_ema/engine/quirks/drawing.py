"""``results.save()``, ``render()`` and ``show()``: boxes are drawn into copies of the images.

OpenCV 4.9 and later refuse to draw into read-only arrays, such as those of Pillow images. And if boxes were drawn into
the user's own array, the model would see them the next time that it gets this array.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from yolov5_ema.engine.quirks.base import Quirk, SourceModule
from yolov5_ema.upstream.patching import Patches


def _on_copies(display: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Around `Detections.display` (`_run` in v7.0), which draws unless it is only asked for text."""
    name = "ims" if hasattr(self, "ims") else "imgs"  # ims since v6.2
    pictures = getattr(self, name)
    setattr(self, name, [np.array(one) if isinstance(one, np.ndarray) else one for one in pictures])
    return display(self, *args, **kwargs)


def _apply(module: SourceModule, patches: Patches) -> None:
    detections = module.module.Detections
    patches.wrap(detections, "_run" if hasattr(detections, "_run") else "display", _on_copies)


DRAWN_ON_COPIES = Quirk(
    name="drawn-on-copies",
    symptom="results.save() or render(): cv2.error: Layout of the output array img is incompatible … readonly",
    versions="all",
    needed=lambda module: module.name == "models.common" and module.code.defines("Detections"),
    reason="boxes are drawn into the arrays that the model was given, which may be read-only",
    apply=_apply,
)
