"""Run a function over the chunks of a data set on all cores, with a progress bar."""

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
# chunks in progress for each worker: results come in order, and must not pile up behind a slow chunk
_WINDOW = 4


def run_chunks(
    function: Callable[[T], R],
    chunks: Sequence[T],
    sizes: Sequence[int],
    *,
    workers: int,
    title: str = "",
    quiet: bool = False,
) -> Generator[R, None, None]:
    """Yield the result of ``function`` for every chunk, in order.

    Close the generator (`contextlib.closing`) to be sure that all workers have ended.

    Args:
        function: a function at the top level of a module, so that it can be sent to a worker.
        chunks: its arguments.
        sizes: the number of images in each chunk, for the progress bar.
        workers: the number of processes; 1 runs everything in this process.
        title: the text before the bar.
        quiet: show no bar. None is shown either if standard error is not a terminal.

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
        with _bar(sizes, title, quiet) as bar:  # after the workers, because it starts a thread
            for size in sizes:
                result = futures.popleft().result()
                for chunk in waiting:
                    futures.append(pool.submit(function, chunk))
                    break
                yield result
                bar.update(size)
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, probably because memory ran out. Finished work is kept: "
            "run the command again, and if it happens again, with --workers 1"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def all_cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def chunked(items: Sequence[T], size: int) -> list[list[T]]:
    """Split the items into lists of at most ``size``."""
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def _bar(sizes: Sequence[int], title: str, quiet: bool) -> Any:
    return tqdm(total=sum(sizes), desc=title, unit=" images", disable=True if quiet else None, leave=False)


def _context() -> Any:
    """Use fork, which starts workers fast, unless the process has several threads: then a fork may hang."""
    can_fork = sys.platform == "linux" and threading.active_count() == 1
    return multiprocessing.get_context("fork" if can_fork else "spawn")


def _start_worker(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent lets workers finish their chunk
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    """End this worker when its parent is killed; otherwise it would wait for work forever."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
