"""Mosaics of labels and predictions: YOLOv5 draws them in daemon threads, which the end of a short run cuts off."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from yolov5_ema.engine.quirks.base import Quirk, SourceModule
from yolov5_ema.upstream.patching import Patches
from yolov5_ema.upstream.source_code import Code, dotted, keyword

_DECORATOR = "threaded"
_LOGGER = logging.getLogger(__name__)


class _Inline:
    """A replacement for a thread that runs its target at once.

    On the CPU, the images share memory with the batch, and `plot_images` scales them in place. So two threads over one
    batch can also draw it overexposed.
    """

    def __init__(self, target: Callable[..., Any], args: tuple[Any, ...] = (), daemon: bool | None = None):
        self._target, self._args = target, args

    def start(self) -> None:
        try:
            self._target(*self._args)
        except Exception as error:  # as in a thread: a failed picture never ends a training
            _LOGGER.warning("WARNING: could not draw %s: %s", self._args[-1:], error)


def _at_once(func: Callable[..., Any]) -> Callable[..., Any]:
    """A replacement for the decorator `threaded` of v6.2 and later; upstream's newest imports it from ultralytics."""

    @functools.wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        kwargs.pop("threaded", None)  # the switch that ultralytics' decorator takes
        _Inline(functools.partial(func, **kwargs), args).start()

    return wrapper


def _has_decorator(code: Code) -> bool:
    return code.defines(_DECORATOR) or code.imports("ultralytics", _DECORATOR, within_function=False)


def _draws_in_threads(code: Code) -> bool:
    targets = [keyword(call, "target") for call in code.calls("Thread")]
    return any(target is not None and dotted(target) == "plot_images" for target in targets)


def _apply(module: SourceModule, patches: Patches) -> None:
    if _has_decorator(module.code):
        patches.set(module.module, _DECORATOR, _at_once)
    else:
        patches.set(module.module, "Thread", _Inline)


PICTURES_IN_ORDER = Quirk(
    name="pictures-in-order",
    symptom="val_batch*.jpg and train_batch*.jpg missing, cut off or overexposed after short runs",
    versions="all",
    needed=lambda module: _has_decorator(module.code) or _draws_in_threads(module.code),
    reason="images are drawn in threads that share a batch",
    apply=_apply,
)
