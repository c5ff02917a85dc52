"""Print the log messages of the library as plain text.

INFO messages go to standard output. Warnings, errors and debugging messages go to standard error.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_LIBRARY = logging.getLogger("yolov5_ema")


class _Console(logging.Handler):
    """Write to the current standard streams, as `print` does. Their errors, such as a closed pipe, are not caught."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stdout if record.levelno == logging.INFO else sys.stderr
        print(self.format(record), file=stream, flush=True)


@contextmanager
def messages_shown(*, quiet: bool = False, verbose: bool = False) -> Iterator[None]:
    """Print the library's log messages inside the ``with`` block, then restore the logger.

    Args:
        quiet: print only warnings and errors.
        verbose: also print debugging messages, unless ``quiet``.
    """
    before = _LIBRARY.level, _LIBRARY.propagate, [*_LIBRARY.handlers]
    # Do not propagate: YOLOv5 adds its own handler to the root logger, which would print everything twice.
    level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
    _LIBRARY.setLevel(level)
    _LIBRARY.propagate = False
    _LIBRARY.handlers = [handler for handler in before[2] if not isinstance(handler, _Console)] + [_Console()]
    try:
        yield
    finally:
        _LIBRARY.setLevel(before[0])
        _LIBRARY.propagate, _LIBRARY.handlers = before[1:]
