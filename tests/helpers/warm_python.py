"""Run programs in copies of a Python process that has already loaded the large libraries. ``os.fork`` makes the copies.

Importing the libraries takes 8 s in each process, longer than most tests of a command. The project itself is not
loaded beforehand: ``yolov5_ema`` and ``yolov5`` are imported as in a fresh process, unless a program names a function
that prepares them.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import inspect
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

LIBRARIES = (
    *("torch", "torchvision", "torch.utils.tensorboard", "thop", "cv2", "requests", "boto3", "setuptools"),
    *("pandas", "seaborn", "matplotlib.pyplot", "scipy.optimize"),
)
# threads that spin while they wait make trainings on a busy CPU many times slower
THREADS = {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}
# objects that are made before garbage is looked for; with Python's own 700, that takes a tenth of the time
GARBAGE_THRESHOLD = 20_000
_STREAMS = ("stdout", "stderr")


class _Line:
    """The connection to a process that runs programs in copies of itself, one program at a time."""

    def __init__(self, tasks: IO[str], answers: IO[str]) -> None:
        self._tasks, self._answers = tasks, answers

    def run(self, task: Mapping[str, Any]) -> int:
        """Run a program and return its exit code; a negative code is the number of a signal."""
        print(json.dumps(task), file=self._tasks, flush=True)
        answer = self._answers.readline()
        assert answer, "the process that makes copies of itself has died"
        return int(answer)


@functools.cache
def _server() -> _Line:
    """Start the Python process with the libraries."""
    process = subprocess.Popen(
        [sys.executable, __file__],
        env={**os.environ, **THREADS},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    atexit.register(_end, process)
    assert process.stdin and process.stdout
    return _Line(process.stdin, process.stdout)


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_warm(
    module: str,
    *args: object,
    cwd: Path,
    env: Mapping[str, str],
    longest_s: int = 600,
    are_drawn: bool = True,
    prepared: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m MODULE ARGS`` in a process with the libraries; stdout and stderr are text.

    Args:
        module: the module, such as ``yolov5_ema``.
        args: its command line.
        cwd: the working directory.
        env: the whole environment. Variables that the libraries read when they are imported have no effect, except
            OMP_NUM_THREADS.
        longest_s: the number of seconds after which SIGALRM ends the program.
        are_drawn: False makes the pictures that matplotlib saves empty, and leaves the model out of TensorBoard's file.
            They take half the time of a small training.
        prepared: ``MODULE:FUNCTION`` and its arguments. The function is called once, and all programs that name the
            same function and arguments run in copies of that process. ``env`` is added to the environment there.
    """
    words = [str(arg) for arg in args]
    with tempfile.TemporaryDirectory() as folder:
        files = {name: str(Path(folder, name)) for name in _STREAMS}
        task = {"module": module, "args": words, "cwd": str(cwd), "env": dict(env), "longest_s": longest_s}
        code = _server().run({**task, **files, "are_drawn": are_drawn, "prepared": list(prepared)})
        texts = [Path(file).read_text() for file in files.values()]
    return subprocess.CompletedProcess([sys.executable, "-m", module, *words], code, *texts)


def _serve() -> None:
    gc.disable()
    for library in LIBRARIES:
        with contextlib.suppress(ImportError):  # each release of YOLOv5 needs only some of them
            importlib.import_module(library)
    # of a file that is not there, so that all modules are looked up once here, and not in each copy for torch.library
    inspect.getmodule(compile("", "no file", "exec"))
    gc.freeze()  # so that garbage collection in the copies skips what was loaded before
    gc.set_threshold(GARBAGE_THRESHOLD)
    gc.enable()
    _make_copies(sys.stdin, sys.stdout)


def _make_copies(tasks: IO[str], answers: IO[str]) -> None:
    branches: dict[tuple[str, ...], _Line] = {}
    for line in tasks:
        task = json.loads(line)
        prepared = tuple(task["prepared"])
        if prepared and prepared not in branches:
            branches[prepared] = _branch(task)
        if prepared:
            code = branches[prepared].run({**task, "prepared": (), "is_copy_of_branch": True})
        else:
            code = _run_copy(task)
        print(code, file=answers, flush=True)


def _run_copy(task: Mapping[str, Any]) -> int:
    child = os.fork()
    if not child:
        _become(task)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _branch(task: Mapping[str, Any]) -> _Line:
    """Make a copy of this process that calls the preparing function, and then runs programs in copies of itself."""
    tasks, to_branch = os.pipe()
    from_branch, answers = os.pipe()
    if not os.fork():
        os.close(to_branch), os.close(from_branch)
        failure = _prepare(task)
        with open(tasks) as lines, open(answers, "w") as codes:
            if failure:
                _fail(lines, codes, failure)
            _make_copies(lines, codes)
        os._exit(0)
    os.close(tasks), os.close(answers)
    return _Line(open(to_branch, "w"), open(from_branch))


def _prepare(task: Mapping[str, Any]) -> str:
    """Call the preparing function. Returns its traceback if it fails, else an empty string."""
    silence = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(silence, number)
    _settle(task)
    module, _, function = task["prepared"][0].partition(":")
    signal.alarm(task["longest_s"])
    try:
        getattr(importlib.import_module(module), function)(*task["prepared"][1:])
    except BaseException:
        return traceback.format_exc()
    signal.alarm(0)
    gc.freeze()
    return ""


def _fail(tasks: IO[str], answers: IO[str], failure: str) -> NoReturn:
    """Give every program the traceback of the failed preparation."""
    for line in tasks:
        Path(json.loads(line)["stderr"]).write_text(failure)
        print(1, file=answers, flush=True)
    os._exit(1)


def _become(task: Mapping[str, Any]) -> NoReturn:
    """Run a program in this process until it ends."""
    signal.alarm(task["longest_s"])
    for number, name in enumerate(_STREAMS, 1):
        os.dup2(os.open(task[name], os.O_WRONLY | os.O_CREAT), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    _settle(task)
    if "OMP_NUM_THREADS" in os.environ:
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if not task["are_drawn"]:
        leave_figures_empty()
    sys.argv = [task["module"], *task["args"]]
    code = _code_of(lambda: runpy.run_module(task["module"], run_name="__main__", alter_sys=True))
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # Python's own exit takes a second, because it frees everything that was loaded


def _settle(task: Mapping[str, Any]) -> None:
    """Set the working directory and the environment of a program."""
    os.chdir(task["cwd"])
    if not task.get("is_copy_of_branch"):
        os.environ.clear()
        sys.path[:1] = [task["cwd"], *filter(None, task["env"].get("PYTHONPATH", "").split(os.pathsep))]
    os.environ.update(task["env"])


def leave_figures_empty(put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Make the pictures that matplotlib saves empty, and leave the model out of TensorBoard's file.

    Args:
        put: sets an attribute.
    """
    import seaborn
    import torch
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter

    put(Figure, "draw", lambda self, renderer: None)
    put(Figure, "tight_layout", lambda self, **options: None)
    for name in ("pairplot", "histplot"):
        put(seaborn, name, lambda *data, **options: None)
    put(SummaryWriter, "add_graph", lambda self, model, inputs: None)
    put(torch.jit, "trace", functools.partial(_traced_for_others, torch.jit.trace))


def _traced_for_others(trace: Callable[..., Any], model: Any, *args: Any, **options: Any) -> Any:
    """`torch.jit.trace`, unless YOLOv5 asks for the graph that it gives to TensorBoard: that takes seconds."""
    caller = sys._getframe(1).f_globals["__name__"]
    return model if caller.endswith("utils.loggers") else trace(model, *args, **options)


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
