"""The one ``openvino.Core`` of this process."""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def openvino_core() -> Any:
    """OpenVINO's ``Core``: it reads and compiles models, and lives as long as the process.

    With each ``Core`` OpenVINO's plugin for CPUs gives the thread that makes it a stack for signal handlers, and frees
    that stack with the ``Core``. Of two, the one that goes last puts back the stack of the one that went first: the
    next signal, as Ctrl-C or the end of a data loader's worker, then ends the process (seen with OpenVINO 2026.4).
    """
    import openvino

    return openvino.Core()
