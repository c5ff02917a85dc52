"""Windows on a screen: without a display, OpenCV's Qt ends the whole process when a window is opened."""

from __future__ import annotations

import functools
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from yolov5_ema.engine.quirks.base import Quirk

_LOGGER = logging.getLogger(__name__)

_PROBE = "import cv2, numpy; cv2.imshow('probe', numpy.zeros((1, 1, 3))); cv2.waitKey(1)"


@functools.lru_cache(maxsize=1)
def has_display() -> bool:
    """Whether OpenCV can open a window: tried in a separate process, because a failure ends the process."""
    named = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"))
    if sys.platform.startswith("linux") and not named:
        return False
    try:
        done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _if_there_is_a_display(check_imshow: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
    if has_display():
        return bool(check_imshow(*args, **kwargs))
    _LOGGER.info("no display here: no window is opened, results are saved")
    return False


DISPLAY = Quirk(
    name="display",
    symptom="detect on a webcam, rtsp or http source ends with 'could not connect to display' and code 134",
    versions="all",
    needed=lambda module: module.code.defines("check_imshow"),
    reason="it opens a window to see whether that works, which ends the process if there is no display",
    apply=lambda module, patches: patches.wrap(module.module, "check_imshow", _if_there_is_a_display),
)
