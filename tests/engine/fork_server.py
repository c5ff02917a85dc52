"""YOLOv5 is imported once a process: tests of several releases run each case in a process of its own.

They come from a fork server that has the big libraries loaded already.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
from multiprocessing.connection import Connection

import torch
from warm_python import LIBRARIES

_LONGEST_S = 120


def _no_network(url: str, *args: object, **kwargs: object) -> None:
    raise OSError(f"downloaded {url}")


def _in_child(connection: Connection, code: str, without: str | None, namespace: dict[str, str]) -> None:
    import warnings

    warnings.simplefilter("error", FutureWarning)
    warnings.filterwarnings("error", message=".*(randrange|has_cuda|non-integer).*")
    multiprocessing.set_start_method("fork", force=True)  # not by the server again, which takes 10 s
    os.environ.pop("YOLOV5_CONFIG_DIR", None)
    os.environ["HOME"] = namespace["TMP"]
    sys.modules["onnxscript"] = None  # type: ignore[assignment]  # not installed, as on a user's machine
    torch.hub.download_url_to_file = _no_network
    try:
        from yolov5_ema.engine import activation, shim

        left_out = (without or "").split()
        activation.QUIRKS = tuple(quirk for quirk in activation.QUIRKS if quirk.name not in left_out)
        activation.GUARDS = tuple(guard for guard in activation.GUARDS if guard.name not in left_out)
        engine = shim.install(namespace["ROOT"])
        exec(code, {"ENGINE": engine, **namespace})
        connection.send("")
    except BaseException:
        connection.send(traceback.format_exc())


def run_in_child(code: str, namespace: dict[str, str], without: str | None = None) -> str:
    """Run code that knows the names in ``namespace``, and the ``ENGINE`` that the shim was installed for.

    Args:
        code: Python source; what it raises is the result.
        namespace: ``ROOT``, the YOLOv5 to install the shim for, ``TMP``, a folder, and what else the code wants.
        without: quirks and guards to leave out, by their names.

    Returns:
        Nothing, or the traceback.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(LIBRARIES))
    ours, theirs = context.Pipe()
    process = context.Process(target=_in_child, args=(theirs, code, without, namespace))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    finally:
        process.join(_LONGEST_S)
