"""Running a function over chunks of a data set on all cores, with a progress bar."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from tqdm import tqdm

from yolov5_ema.errors import UserError

T = TypeVar("T")
R = TypeVar("R")
_WINDOW = 4  # chunks in flight a worker: results come in order, so a slow one must not let the others pile up


def run_chunks(
    function: Callable[[T], R],
    chunks: Sequence[T],
    sizes: Sequence[int],
    *,
    workers: int,
    title: str = "",
    quiet: bool = False,
) -> Generator[R, None, None]:
    """Results of ``function`` for every chunk, in order. Close it (`contextlib.closing`) to be sure that
    no worker is at work any more.

    Args:
        function: at the top level of a module, so that it can be sent to a worker.
        chunks: its arguments.
        sizes: images in each chunk, for the progress bar.
        workers: processes; with 1 all is done in this one.
        title: in front of the bar.
        quiet: no bar. There is none either if standard error is no terminal.

    Raises:
        UserError: a worker was killed.
    """
    workers = min(workers, len(chunks))
    if workers <= 1:
        with _bar(sizes, title, quiet) as bar:
            for chunk, size in zip(chunks, sizes):
                yield function(chunk)
                bar.update(size)
        return
    pool = ProcessPoolExecutor(workers, _context(), _start_worker, (os.getpid(),))
    try:
        waiting = iter(chunks)
        futures: deque[Future[R]] = deque()
        for chunk in waiting:
            futures.append(pool.submit(function, chunk))
            if len(futures) == _WINDOW * workers:
                break
        with _bar(sizes, title, quiet) as bar:  # after the workers, for it starts a thread
            for size in sizes:
                result = futures.popleft().result()
                for chunk in waiting:
                    futures.append(pool.submit(function, chunk))
                    break
                yield result
                bar.update(size)
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, most likely for want of memory; what is done is kept: "
            "run the command again, with --workers 1 if it happens again"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def all_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def chunked(items: Sequence[T], size: int) -> list[list[T]]:
    """The items in lists of at most ``size``."""
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def _bar(sizes: Sequence[int], title: str, quiet: bool) -> Any:
    return tqdm(total=sum(sizes), desc=title, unit=" images", disable=True if quiet else None, leave=False)


def _context() -> Any:
    """Forked workers start in no time, but a fork of a process with several threads may hang."""
    can_fork = sys.platform == "linux" and threading.active_count() == 1
    return multiprocessing.get_context("fork" if can_fork else "spawn")


def _start_worker(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent lets workers end their chunk
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: int) -> None:
    """End this worker when its parent was killed; it would wait for work forever."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
