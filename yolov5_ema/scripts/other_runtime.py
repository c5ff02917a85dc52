"""The ``val`` of a YOLO around a model that another runtime runs; all else that ``val`` does stays its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.patching import Patches

Forward = Callable[[torch.Tensor], torch.Tensor]
"""A model: from a batch of images, float32 of shape (N, 3, H, W), RGB, 0 to 1, to its first output."""

_LOADERS = ("attempt_load", "DetectMultiBackend")


@contextmanager
def model_in_val(engine: Engine, forward: Forward | None) -> Iterator[None]:
    """Within a ``with`` block, YOLOv5's ``val`` loads its checkpoint as before, but ``forward`` computes its output.

    Args:
        engine: the YOLOv5, with the shim installed.
        forward: the model; None for that of the checkpoint.
    """
    val = engine.module("val")

    def load(loader: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        loaded = loader(*args, **kwargs)
        # DetectMultiBackend, of v6.1 and later, holds the checkpoint's model as `model`; a model of v6.0 its layers
        inner = getattr(loaded, "model", loaded)
        replace_forward(loaded if isinstance(inner, torch.nn.Sequential) else inner, forward)
        return loaded

    with Patches() as patches:
        for name in _LOADERS if forward is not None else ():
            if hasattr(val, name):
                patches.wrap(val, name, load)
        yield


def replace_forward(model: Any, forward: Forward | None) -> None:
    """Let ``forward`` compute what a torch model returns first; ``val`` needs nothing else of it, unless it trains."""
    if forward is not None:
        model.forward = lambda images, *_, **__: (forward(images), None)
