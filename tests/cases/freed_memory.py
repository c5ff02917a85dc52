"""How often a process gets its memory from the system anew."""

from __future__ import annotations

import contextlib
import io
import resource
import threading

import torch


def prints_page_faults(by: str) -> None:
    """Print the page faults of 20 rounds, each with three blocks of 20 MB that are freed.

    In this thread and in another one; the counts are those before freed memory is kept, and after, in the best of five.

    Args:
        by: what keeps it, ``function`` or ``command``.
    """
    torch.set_num_threads(1)
    before = _faults(), _faults_in_thread()
    if by == "command":
        _command()
    else:
        from yolov5_ema.allocator import keep_freed_memory

        keep_freed_memory()
    # a thread has one of two memories, each of which is filled once
    after = (min(count() for _ in range(5)) for count in (_faults, _faults_in_thread))
    print(*before, *after)


def _command() -> None:
    from yolov5_ema.cli.main import main

    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        main(["doctor", "--help"])


def _faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        blocks = [torch.ones(5_000_000) for _ in range(3)]  # of less, glibc keeps much by itself
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def _faults_in_thread() -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(_faults()))
    thread.start()
    thread.join()
    return found[0]
