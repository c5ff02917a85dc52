"""Python's garbage collector at the start and at the end of a command.

Importing torch and YOLOv5 makes hundreds of thousands of objects that stay. A collector that looks through them again
and again while they become more, and twice more when the process ends, takes as long as the imports themselves.
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused() -> Iterator[None]:
    """Context manager for importing and loading, in which no garbage is collected.

    What was made in it counts as old afterwards: the collector looks at it when it looks at everything.
    """
    # objects that a caller has frozen would come back below
    if not gc.isenabled() or gc.get_freeze_count():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.unfreeze()
        gc.enable()


def leave_the_rest() -> None:
    """Let this process end without a last search for garbage, for which the system has no need.

    Not for programs in which a file that was never closed may be part of the garbage: its last lines would be lost.
    """
    atexit.register(gc.freeze)
