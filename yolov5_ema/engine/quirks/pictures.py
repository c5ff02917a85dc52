"""Label and prediction mosaics drawn in daemon threads, which the end of a short run cuts off."""

from __future__ import annotations

import functools
import logging
from typing import Any, Callable

from yolov5_ema.engine.patching import Patches
from yolov5_ema.engine.quirks.base import Quirk, SourceModule

_LOGGER = logging.getLogger(__name__)


class _Inline:
    """What looks like a thread and runs at once.

    On the CPU the pictures share memory with the batch and `plot_images` scales that in place, so two
    threads over one batch can also draw it overexposed.
    """

    def __init__(self, target: Callable[..., Any], args: tuple[Any, ...] = (), daemon: bool | None = None):
        self._target, self._args = target, args

    def start(self) -> None:
        try:
            self._target(*self._args)
        except Exception as error:  # as in a thread: a failed picture never ends a training
            _LOGGER.warning("WARNING: could not draw %s: %s", self._args[-1:], error)


def _at_once(func: Callable[..., Any]) -> Callable[..., Any]:
    """What v6.2's decorator `threaded` becomes."""

    @functools.wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        _Inline(functools.partial(func, **kwargs), args).start()

    return wrapper


def _needed(module: SourceModule) -> str | None:
    if "Thread(target=plot_images" in module.source or "def threaded(func)" in module.source:
        return "pictures are drawn in daemon threads over a shared batch"
    return None


def _apply(module: SourceModule, patches: Patches) -> None:
    if "def threaded(func)" in module.source:
        patches.set(module.module, "threaded", _at_once)
    else:
        patches.set(module.module, "Thread", _Inline)


PICTURES_IN_ORDER = Quirk(
    name="pictures-in-order",
    symptom="val_batch*.jpg and train_batch*.jpg missing, cut off or overexposed after short runs",
    versions="6.0 to 7.0.14",
    needed=_needed,
    apply=_apply,
)
