"""Ending a process when the process that started it has ended, even if that one was killed."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from yolov5_ema.settings import take

_is_on = False

_IN_EVERY_RANK = """\
import sys

sys.path[:] = {path!r}

from yolov5_ema.scripts import leash

leash.watch()

"""


def end_with_parent() -> None:
    """If the setting ``leash`` is on, end this process as soon as its standard input is closed.

    Standard input is a pipe from the process that started this one, so it is closed when that process ends. Otherwise,
    after ``compare`` was killed, its training would continue to write into the folder that the next call resumes.
    """
    global _is_on
    if take("leash"):  # this also clears the setting, so that worker processes do not inherit it
        _is_on = True
        watch()


def is_on() -> bool:
    """Whether this process ends when its standard input is closed."""
    return _is_on


def watch() -> None:
    """End this process as soon as its standard input is closed."""
    threading.Thread(target=_watch, args=(sys.stdin.fileno(),), daemon=True).start()


def in_every_rank(generate_ddp_file: Callable[..., str], *args: Any, **kwargs: Any) -> str:
    """Around ultralytics' ``generate_ddp_file``: processes that run the file end when standard input is closed."""
    file = Path(generate_ddp_file(*args, **kwargs))
    file.write_text(_IN_EVERY_RANK.format(path=sys.path) + file.read_text(encoding="utf-8"), encoding="utf-8")
    return str(file)


def _watch(stdin: int) -> None:
    while os.read(stdin, 64):
        pass
    os._exit(1)  # sys.exit would end only this thread
