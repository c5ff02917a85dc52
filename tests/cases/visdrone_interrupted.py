"""The conversion as users run it, but with pauses, so that it can be killed in the middle."""

from __future__ import annotations

import sys
import time
from typing import Any

from yolov5_ema.cli.main import main
from yolov5_ema.data import visdrone

_convert = visdrone.convert_chunk


def _convert_slowly(task: Any) -> Any:
    time.sleep(0.05)
    return _convert(task)


def converts_slowly(*flags: str) -> None:
    theirs: Any = visdrone
    theirs._CHUNK, theirs.convert_chunk = 10, _convert_slowly
    sys.exit(main(["data", "visdrone", *flags]))
