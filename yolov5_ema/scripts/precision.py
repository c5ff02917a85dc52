"""The precision in which exported models of the package `ultralytics` run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from yolov5_ema.checkpoints.exported_models import form_of
from yolov5_ema.upstream.patching import Patches


@contextmanager
def in_float32(file: Path) -> Iterator[None]:
    """Let ultralytics load a model for float32 in this block, as the other runtimes do.

    By default OpenVINO computes in bfloat16 or float16 on CPUs that can, and detections differ from torch's.

    Args:
        file: the model; only one for OpenVINO is concerned.
    """
    if form_of(file) != "openvino":
        yield
        return
    import openvino

    with Patches() as patches:
        patches.wrap(openvino.Core, "compile_model", _compiled_for_float32)
        yield


def _compiled_for_float32(compile_model: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    config = {**(kwargs.pop("config", None) or {}), "INFERENCE_PRECISION_HINT": "f32"}
    return compile_model(*args, config=config, **kwargs)
