"""A process that ends when the one that started it is gone, however that ended."""

from __future__ import annotations

import os
import sys
import threading

from yolov5_ema.settings import take


def end_with_parent() -> None:
    """If the settings ask for it, end this process as soon as its standard input, a pipe, is closed by its starter.

    A training left behind by a killed ``compare`` would go on writing where the next one resumes.
    """
    if take("leash"):  # workers of this process are not on that leash
        threading.Thread(target=_watch, args=(sys.stdin.fileno(),), daemon=True).start()


def _watch(stdin: int) -> None:
    while os.read(stdin, 64):
        pass
    os._exit(1)  # at once: from a thread, nothing gentler ends the others
