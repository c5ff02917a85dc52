"""``results.save()``, ``render()`` and ``show()``: boxes are drawn into copies of the images.

OpenCV 4.9 and later refuse to draw into read-only arrays, such as those of Pillow images. And if boxes were drawn into
the user's own array, the model would see them the next time that it gets this array.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from yolov5_ema.engine.quirks.base import Quirk, SourceModule
from yolov5_ema.upstream.patching import Patches


def _on_copies(display: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `Detections.display` (`_run` in v7.0), which draws unless it is only asked for text."""

    @functools.wraps(display)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        name = "ims" if hasattr(self, "ims") else "imgs"  # ims since v6.2
        pictures = getattr(self, name)
        setattr(self, name, [np.array(one) if isinstance(one, np.ndarray) else one for one in pictures])
        return display(self, *args, **kwargs)

    return wrapper


def _needed(module: SourceModule) -> str | None:
    if module.name == "models.common" and module.code.defines("Detections"):
        return "boxes are drawn into the arrays that the model was given, which may be read-only"
    return None


def _apply(module: SourceModule, patches: Patches) -> None:
    detections = module.module.Detections
    name = "_run" if hasattr(detections, "_run") else "display"
    patches.set(detections, name, _on_copies(getattr(detections, name)))


DRAWN_ON_COPIES = Quirk(
    name="drawn-on-copies",
    symptom="results.save() or render(): cv2.error: Layout of the output array img is incompatible … readonly",
    versions="all",
    needed=_needed,
    apply=_apply,
)
