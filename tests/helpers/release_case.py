"""Run a test case in a separate process: a process can import only one release of YOLOv5."""

from __future__ import annotations

import functools
import inspect
import json
import multiprocessing
import os
import sys
import warnings
from pathlib import Path

import torch
from warm_python import run_warm

from yolov5_ema.settings import VARIABLES

_HERE = Path(__file__).resolve().parent
_LONGEST_S = 120


def run_in_child(code: str, namespace: dict[str, str], without: str | None = None) -> str:
    """Run code with the names in ``namespace``, and with ``ENGINE``, for which the shim is installed.

    Args:
        code: Python source.
        namespace: ``ROOT``, the folder of the YOLOv5 to install the shim for; ``TMP``, a folder; and further strings
            that the code uses.
        without: the names of quirks and guards to leave out.

    Returns:
        The traceback if the code raises something, else an empty string.
    """
    paths = map(str, (_HERE.parents[1], _HERE.parent, _HERE))
    environment = {**os.environ, "HOME": namespace["TMP"], "PYTHONPATH": os.pathsep.join(paths)}
    # Each case has another HOME; without this, the kernels would be compiled for each.
    environment.setdefault(VARIABLES["cache"], str(Path.home() / ".cache/yolov5-ema"))
    environment.pop("YOLOV5_CONFIG_DIR", None)
    case = json.dumps([code, namespace, (without or "").split()])
    done = run_warm("release_case", case, cwd=Path.cwd(), env=environment, longest_s=_LONGEST_S)
    return f"exit code {done.returncode}\n{done.stderr}" if done.returncode else ""


def _no_network(url: str, *args: object, **kwargs: object) -> None:
    raise OSError(f"downloaded {url}")


def _run(code: str, namespace: dict[str, str], left_out: list[str]) -> None:
    warnings.simplefilter("error", FutureWarning)
    warnings.filterwarnings("error", message=".*(randrange|has_cuda|non-integer).*")
    multiprocessing.set_start_method("fork", force=True)
    sys.modules["onnxscript"] = None  # type: ignore[assignment]  # as if not installed, which is so for most users
    torch.hub.download_url_to_file = _no_network
    inspect.stack = functools.partial(inspect.stack, 0)  # 7.0.14 asks for the source lines too, which takes 2 s
    from yolov5_ema.engine import activation, shim

    activation.QUIRKS = tuple(quirk for quirk in activation.QUIRKS if quirk.name not in left_out)
    activation.GUARDS = tuple(guard for guard in activation.GUARDS if guard.name not in left_out)
    engine = shim.install(namespace["ROOT"])
    exec(code, {"ENGINE": engine, **namespace})


if __name__ == "__main__":
    _run(*json.loads(sys.argv[1]))
