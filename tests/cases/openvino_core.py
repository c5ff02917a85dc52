"""Signals after models of OpenVINO have come and gone."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any


def signal_after_two(kind: str) -> None:
    """Print ``alive`` after a signal, once two users of OpenVINO have ended, the first one first.

    Args:
        kind: "own", each with a Core of its own, or "shared", through this project's function.
    """
    import openvino

    from yolov5_ema.upstream.openvino_core import openvino_core

    signal.signal(signal.SIGUSR1, lambda *_: None)
    make: Callable[[], Any] = openvino.Core if kind == "own" else openvino_core
    first, second = make(), make()
    for core in (first, second):
        core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")  # which loads the plugin
    del core, first
    del second
    os.kill(os.getpid(), signal.SIGUSR1)
    print("alive")
