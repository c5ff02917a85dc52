"""Run programs in copies of a Python process that has already loaded the large libraries. ``os.fork`` makes the copies.

Importing the libraries takes 8 s in each process, longer than most tests of a command. The project itself is not
loaded beforehand: ``yolov5_ema`` and ``yolov5`` are imported as in a fresh process.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

LIBRARIES = (
    *("torch", "torchvision", "torch.utils.tensorboard", "thop", "cv2", "requests", "boto3", "setuptools"),
    *("pandas", "seaborn", "matplotlib.pyplot", "scipy.optimize"),
)
# threads that spin while they wait make trainings on a busy CPU many times slower
THREADS = {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}
_STREAMS = ("stdout", "stderr")


class _Server:
    """The Python process with the libraries. It runs one program at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env={**os.environ, **THREADS},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        atexit.register(self.close)

    def run(self, task: dict[str, Any]) -> int:
        """Run a program and return its exit code; a negative code is the number of a signal."""
        assert self._process.stdin and self._process.stdout
        print(json.dumps(task), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, "the server of warm processes has died"
        return int(answer)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@functools.cache
def _server() -> _Server:
    return _Server()


def run_warm(
    module: str,
    *args: object,
    cwd: Path,
    env: Mapping[str, str],
    longest_s: int = 600,
    are_drawn: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m MODULE ARGS`` in a process with the libraries; stdout and stderr are text.

    Args:
        module: the module, such as ``yolov5_ema``.
        args: its command line.
        cwd: the working directory.
        env: the whole environment. Variables that the libraries read when they are imported have no effect, except
            OMP_NUM_THREADS.
        longest_s: the number of seconds after which SIGALRM ends the program.
        are_drawn: False makes the pictures that matplotlib saves empty. They take half the time of a small training.
    """
    words = [str(arg) for arg in args]
    with tempfile.TemporaryDirectory() as folder:
        files = {name: str(Path(folder, name)) for name in _STREAMS}
        task = {"module": module, "args": words, "cwd": str(cwd), "env": dict(env), "longest_s": longest_s}
        code = _server().run({**task, **files, "are_drawn": are_drawn})
        texts = [Path(file).read_text() for file in files.values()]
    return subprocess.CompletedProcess([sys.executable, "-m", module, *words], code, *texts)


def _serve() -> None:
    for library in LIBRARIES:
        with contextlib.suppress(ImportError):  # each release of YOLOv5 needs only some of them
            importlib.import_module(library)
    gc.freeze()  # so that garbage collection in the copies skips what was loaded before
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _become(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _become(task: dict[str, Any]) -> NoReturn:
    """Run a program in this process until it ends."""
    signal.alarm(task["longest_s"])
    for number, name in enumerate(_STREAMS, 1):
        os.dup2(os.open(task[name], os.O_WRONLY | os.O_CREAT), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(task["cwd"])
    os.environ.clear()
    os.environ.update(task["env"])
    if "OMP_NUM_THREADS" in os.environ:
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if not task["are_drawn"]:
        _leave_figures_empty()
    sys.path[:1] = [task["cwd"], *filter(None, task["env"].get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = [task["module"], *task["args"]]
    code = _code_of(lambda: runpy.run_module(task["module"], run_name="__main__", alter_sys=True))
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # Python's own exit takes a second, because it frees everything that was loaded


def _leave_figures_empty() -> None:
    from matplotlib.figure import Figure

    Figure.draw = lambda self, renderer: None
    Figure.tight_layout = lambda self, **options: None


def _code_of(run: Callable[[], object]) -> int:
    try:
        run()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    _serve()
