"""How OpenVINO runs the exported models of the package `ultralytics`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from yolov5_ema.checkpoints.exported_models import form_of
from yolov5_ema.upstream.openvino_core import openvino_core
from yolov5_ema.upstream.patching import Patches

_LOCK = threading.RLock()


@contextmanager
def in_float32(file: Path) -> Iterator[None]:
    """Let ultralytics load a model for float32 in this block, as the other runtimes do, and with the one ``Core``.

    By default OpenVINO computes in bfloat16 or float16 on CPUs that can, and detections differ from torch's. Why there
    is one ``Core``: see `openvino_core`; ultralytics would make one for each model.

    Args:
        file: the model; only one for OpenVINO is concerned.
    """
    if form_of(file) != "openvino":
        yield
        return
    import openvino

    core = openvino_core()
    # of two threads, the one that came first would put back what the other still needs
    with _LOCK, Patches() as patches:
        patches.wrap(type(core), "compile_model", _compiled_for_float32)
        patches.set(openvino, "Core", lambda: core)
        yield


def _compiled_for_float32(compile_model: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    config = {**(kwargs.pop("config", None) or {}), "INFERENCE_PRECISION_HINT": "f32"}
    return compile_model(*args, config=config, **kwargs)
