"""YOLOv5 is imported once a process: each case of each release is a process of its own.

What the cases of a release share, that YOLOv5 with the shim installed, is loaded once; each case is a copy of that
process. A case that must see how YOLOv5 is imported asks for a process without it.
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
# what the cases import of a YOLOv5, where it has that
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
        case: the function; what it raises is the result. `yolov5_ema.install` returns the YOLOv5.
        given: ``root``, the YOLOv5; ``folder``, an empty one, which is the user's home as well; and what else the
            function's parameters are called.
        without: quirks and guards to leave out, by their names.
        is_fresh: nothing of YOLOv5 has been imported before but what the shim itself imports.
        env: what the environment has beside that of the tests.

    Returns:
        The traceback if the code raises something, else an empty string.
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
    # not compiled again for each HOME
    environment.setdefault(VARIABLES["cache"], str(Path.home() / ".cache/yolov5-ema"))
    environment.pop("YOLOV5_CONFIG_DIR", None)
    return environment


def prepare(root: str) -> None:
    """Install the shim for a YOLOv5, and import what its cases import."""
    from yolov5_ema.engine import activation, shim

    _settle()
    # read once, for those that install it again without a quirk
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
    inspect.stack = functools.partial(inspect.stack, 0)  # 7.0.14 asks for all lines of it, which takes 2 s


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
