"""The one ``openvino.Core`` of this process."""

from __future__ import annotations

import functools
import threading
from typing import Any

_LOCK = threading.Lock()


def openvino_core() -> Any:
    """OpenVINO's ``Core``: it reads and compiles models, and lives as long as the process.

    With each ``Core`` OpenVINO's plugin for CPUs gives the thread that makes it a stack for signal handlers, and frees
    that stack with the ``Core``. Of two, the one that goes last puts back the stack of the one that went first: the
    next signal, as Ctrl-C or the end of a data loader's worker, then ends the process (seen with OpenVINO 2026.4).
    """
    with _LOCK:  # threads that ask at the same time would each make one
        return _made()


@functools.cache
def _made() -> Any:
    import openvino

    return openvino.Core()
