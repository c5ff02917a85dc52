"""Signals after models of OpenVINO have come and gone."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any


def signal_after_two(kind: str) -> None:
    """Print ``alive`` after a signal, once two users of OpenVINO have ended, the first one first.

    Args:
        kind: "own", each with a Core of its own; "shared", through this project's function; "ultralytics", as that
            package makes them, each in a block of `in_float32`.
    """
    import openvino

    from yolov5_ema.scripts.precision import in_float32
    from yolov5_ema.upstream.openvino_core import openvino_core

    def of_ultralytics() -> Any:
        with in_float32(Path("best_openvino_model")):
            return openvino.Core()

    signal.signal(signal.SIGUSR1, lambda *_: None)
    makers: dict[str, Callable[[], Any]] = {
        "own": openvino.Core,
        "shared": openvino_core,
        "ultralytics": of_ultralytics,
    }
    first, second = makers[kind](), makers[kind]()
    for core in (first, second):
        core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")  # which loads the plugin
    del core, first
    del second
    os.kill(os.getpid(), signal.SIGUSR1)
    print("alive")
