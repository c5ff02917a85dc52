"""Run a test case in a separate process: a process can import only one release of YOLOv5.

One process for each release installs the shim and imports YOLOv5; the cases run in copies of it. A case that tests the
import itself runs in a copy of a process without YOLOv5.
"""

from __future__ import annotations

import functools
import inspect
import json
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import fresh_process
import torch
from warm_python import run_warm

from yolov5_ema.settings import VARIABLES

_LONGEST_S = 120
# the modules that cases import, if the release has them
_IMPORTED = ("train", "val", "detect", "export", "utils.plots", "utils.autoanchor", "segment.train", "classify.train")


def run_in_release(
    case: Callable[..., object],
    given: Mapping[str, object],
    *,
    without: str = "",
    is_fresh: bool = False,
    env: Mapping[str, str] | None = None,
) -> str:
    """Call a function of ``tests/cases`` where the shim is installed for a YOLOv5.

    Args:
        case: the function. In it, `yolov5_ema.install` returns the YOLOv5.
        given: the function's arguments by the names of its parameters. ``root``, the folder of the YOLOv5, and
            ``folder``, an empty folder that is also the user's home, are needed in any case.
        without: the names of quirks and guards to leave out, separated by spaces.
        is_fresh: run where nothing of YOLOv5 is imported yet, except what the shim imports.
        env: environment variables to add to those of the tests.

    Returns:
        The traceback if the function raises something, else an empty string.
    """
    texts = [str(given[name]) for name in inspect.signature(case).parameters]
    task = json.dumps([str(given["root"]), without.split(), fresh_process.name_of(case), *texts])
    home = {"HOME": str(given["folder"])}
    prepared = () if is_fresh else ("release_case:prepare", str(given["root"]))
    environment = _environment({**home, **(env or {})})
    done = run_warm("release_case", task, cwd=Path.cwd(), env=environment, longest_s=_LONGEST_S, prepared=prepared)
    return f"exit code {done.returncode}\n{done.stderr}" if done.returncode else ""


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, fresh_process.PATHS)), **env}
    # Each case has another HOME; without this, the kernels would be compiled for each.
    environment.setdefault(VARIABLES["cache"], str(Path.home() / ".cache/yolov5-ema"))
    environment.pop("YOLOV5_CONFIG_DIR", None)
    return environment


def prepare(root: str) -> None:
    """Install the shim for a YOLOv5, and import what its cases import."""
    from yolov5_ema.engine import activation, shim

    _settle()
    # so that cases that install the shim again, without a quirk, need not parse the sources again
    activation._source_module = functools.cache(activation._source_module)
    engine = shim.install(root)
    for name in filter(engine.has_script, _IMPORTED):
        engine.module(name)


def _no_network(url: str, *args: object, **kwargs: object) -> None:
    raise OSError(f"downloaded {url}")


def _settle() -> None:
    warnings.simplefilter("error", FutureWarning)
    warnings.filterwarnings("error", message=".*(randrange|has_cuda|non-integer).*")
    multiprocessing.set_start_method("fork", force=True)
    sys.modules["onnxscript"] = None  # type: ignore[assignment]  # as if not installed, which is so for most users
    torch.hub.download_url_to_file = _no_network
    inspect.stack = functools.partial(inspect.stack, 0)  # 7.0.14 asks for the source lines too, which takes 2 s


def _run(root: str, left_out: list[str], name: str, *texts: str) -> None:
    from yolov5_ema.engine import activation, shim

    _settle()
    if left_out:
        shim.uninstall()
        activation.QUIRKS = tuple(quirk for quirk in activation.QUIRKS if quirk.name not in left_out)
        activation.GUARDS = tuple(guard for guard in activation.GUARDS if guard.name not in left_out)
    shim.install(root)
    fresh_process.call(name, *texts)


if __name__ == "__main__":
    _run(*json.loads(sys.argv[1]))
