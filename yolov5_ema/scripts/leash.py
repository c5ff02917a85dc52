"""Ending a process when the process that started it has ended, even if that one was killed."""

from __future__ import annotations

import os
import sys
import threading

from yolov5_ema.settings import take


def end_with_parent() -> None:
    """If the setting ``leash`` is on, end this process as soon as its standard input is closed.

    Standard input is a pipe from the process that started this one, so it is closed when that process ends. Otherwise,
    after ``compare`` was killed, its training would continue to write into the folder that the next call resumes.
    """
    if take("leash"):  # this also clears the setting, so that worker processes do not inherit it
        threading.Thread(target=_watch, args=(sys.stdin.fileno(),), daemon=True).start()


def _watch(stdin: int) -> None:
    while os.read(stdin, 64):
        pass
    os._exit(1)  # sys.exit would end only this thread
