"""Makes reading images slow, so that a prediction can be killed meanwhile. A file called poison kills its reader."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from yolov5_ema.detecting import pipeline as detecting

pipeline: Any = detecting
read = pipeline.read_image


def slowly(file: str) -> Any:
    time.sleep(0.05)
    if "poison" in file:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(file)


pipeline.read_image = slowly
