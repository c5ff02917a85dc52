"""A process that ends when the one that started it is gone, however that ended."""

from __future__ import annotations

import os
import sys
import threading

LEASH_ENV = "YOLOV5_EMA_LEASH"
"""Set to 1 in the environment of a process whose standard input is a pipe that its starter holds open."""


def end_with_parent() -> None:
    """If the environment asks for it, end this process as soon as its standard input is closed.

    A training left behind by a killed ``compare`` would go on writing where the next one resumes.
    """
    if os.environ.pop(LEASH_ENV, "") != "1":  # popped: workers of this process are not on that leash
        return
    threading.Thread(target=_watch, args=(sys.stdin.fileno(),), daemon=True).start()


def _watch(stdin: int) -> None:
    while os.read(stdin, 64):
        pass
    os._exit(1)  # at once: from a thread, nothing gentler ends the others
