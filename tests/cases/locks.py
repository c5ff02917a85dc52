"""Processes that hold a lock until they are told to end, or that are killed while they write."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path


def holds_a_lock(place: Path) -> None:
    """Say "held", and hold the lock until standard input is closed."""
    from yolov5_ema.files import locked

    with locked(place, "busy"):
        print("held", flush=True)
        sys.stdin.read()


def holds_a_run_folder(parent: Path) -> None:
    """Say "held", and write to a new run folder until standard input is closed."""
    from yolov5_ema.runs import run_folder

    with run_folder(parent):
        print("held", flush=True)
        sys.stdin.read()


def is_killed_while_writing(file: Path) -> None:
    from yolov5_ema.files import replacement

    with replacement(file) as draft:
        draft.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def writes(file: Path) -> None:
    from yolov5_ema.files import write_whole

    write_whole(file, "x")


def ends_with_its_starter() -> None:
    """Say "up"; say "never" if the process that started this one has not ended within a minute."""
    from yolov5_ema.scripts.leash import end_with_parent

    end_with_parent()
    print("up", flush=True)
    time.sleep(60)
    print("never")
