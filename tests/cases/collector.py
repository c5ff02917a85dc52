"""How a program ends, in a process of its own."""

from __future__ import annotations

import atexit
import gc
import sys


def ends(how: str) -> None:
    """Run a command as a program or by a call; at the end, print whether its objects are left to the system."""
    from yolov5_ema.cli.main import main

    # the process that this one is a copy of has frozen what it had loaded
    gc.unfreeze()
    # what is registered first runs last
    atexit.register(lambda: print(f"left: {gc.get_freeze_count() > 0}"))
    line = ["info", "yolov5n-ema.yaml"]
    if how == "call":
        assert main(line) == 0
        return
    sys.argv = ["yolov5-ema", *line]
    assert main() == 0
