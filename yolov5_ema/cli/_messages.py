"""How commands show what the library logs: as plain text.

Remarks (INFO) go to standard output; warnings, errors and debugging messages go to standard error.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_LIBRARY = logging.getLogger("yolov5_ema")


class _Console(logging.Handler):
    """Writes to the streams of the moment, as `print` does; what they raise (a closed pipe) goes on."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stdout if record.levelno == logging.INFO else sys.stderr
        print(self.format(record), file=stream, flush=True)


@contextmanager
def messages_shown(*, quiet: bool = False, verbose: bool = False) -> Iterator[None]:
    """For the length of the block, write what the library logs; then all is as it was before.

    Args:
        quiet: warnings only.
        verbose: debugging messages too, if not quiet.
    """
    before = _LIBRARY.level, _LIBRARY.propagate, [*_LIBRARY.handlers]
    # no propagation: YOLOv5 gives the root logger a handler of its own, which would write everything again
    level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
    _LIBRARY.setLevel(level)
    _LIBRARY.propagate = False
    _LIBRARY.handlers = [handler for handler in before[2] if not isinstance(handler, _Console)] + [_Console()]
    try:
        yield
    finally:
        _LIBRARY.setLevel(before[0])
        _LIBRARY.propagate, _LIBRARY.handlers = before[1:]
