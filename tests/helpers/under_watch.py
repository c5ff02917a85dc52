"""Run a command on a malicious file, with limits on time and memory, and check that no code of the file runs."""

from __future__ import annotations

import contextlib
import faulthandler
import io
import os
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from yolov5_ema.errors import UserError

SECONDS = 20
MEMORY = 6 * 2**30
"""The bytes of address space that a case may use in addition to what the process has."""

_STARTS = {
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "subprocess.Popen", "pty.spawn"),
    *("webbrowser.open", "socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname"),
    *("urllib.Request", "ftplib.connect", "smtplib.connect", "code.__new__"),
}
_CHANGES = {
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
}
_CHANGES |= {"shutil.rmtree", "shutil.move", "shutil.copyfile"}
_NAMES_OF_ROWS = {"nc", "anchors", "ch", "f"}
"""The names that YOLOv5's own `eval` of an argument may read, in addition to the activation's torch.nn class."""

_PACKAGE = str(Path(__import__("yolov5_ema").__file__).resolve().parent)


class Hang(BaseException):
    """A case took longer than `SECONDS`."""


class _Watch:
    """The audit hook. It can never be removed, so it can be switched off; while it is on, it records events."""

    def __init__(self) -> None:
        self.on = False
        self.folder = ""
        self.seen: list[str] = []
        self.hooked = False

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in _STARTS and not _asks_git(args) and not (event == "code.__new__" and _is_installed(args[1])):
            self.seen.append(f"{event} {args!r}"[:300])
        elif event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            self._changed("open for writing", args[0])
        elif event in _CHANGES:
            self._changed(event, args[0])
        elif event == "exec":
            self._evaluated(args[0])

    def _changed(self, event: str, path: Any) -> None:
        if isinstance(path, int) or path is None:
            return
        place = os.path.abspath(os.fsdecode(path))
        harmless = place == os.devnull or "__pycache__" in place
        if not harmless and not (place + os.sep).startswith(self.folder + os.sep):
            self.seen.append(f"{event} {place}")

    def _evaluated(self, code: Any) -> None:
        caller = sys._getframe(2).f_code.co_filename
        names = set(code.co_names) - _NAMES_OF_ROWS
        is_activation = "nn" in names and len(names) == 2 and code.co_names[0] == "nn"
        if f"{os.sep}models{os.sep}yolo" in caller and names and not is_activation:
            self.seen.append(f"eval of {sorted(names)} in {caller}")


def _asks_git(args: tuple[Any, ...]) -> bool:
    """Whether YOLOv5 asks git for its own version, which it does for any file."""
    return "git -C " in str(args[:2]) and "describe --tags" in str(args[:2])


def _is_installed(file: Any) -> bool:
    """Whether a file is one of an installed library: some make code of their own when they are imported."""
    return isinstance(file, str) and file.startswith(sys.prefix + os.sep)


_watch = _Watch()


@contextmanager
def watched(folder: Path) -> Iterator[list[str]]:
    """Limit time and memory inside the ``with`` block. Yields what was wrongly started, changed or evaluated."""
    if not _watch.hooked:
        sys.addaudithook(_watch)
        _watch.hooked = True
    _watch.folder, _watch.seen = str(folder.resolve()), []

    def too_long(*_: Any) -> None:
        raise Hang(f"still running after {SECONDS} s")

    before = resource.getrlimit(resource.RLIMIT_AS)
    previous = signal.signal(signal.SIGALRM, too_long)
    faulthandler.dump_traceback_later(3 * SECONDS, exit=True)  # in case C code delays the alarm
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MEMORY, before[1]))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    _watch.on = True
    try:
        yield _watch.seen
    finally:
        _watch.on = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, previous)
        resource.setrlimit(resource.RLIMIT_AS, before)


def _address_space() -> int:
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[0]) * resource.getpagesize()


def called(function: Callable[[], Any], folder: Path, watch: bool = True) -> tuple[int, str]:
    """Call a function inside `watched`, and capture stdout and stderr.

    Returns:
        An exit code (the returned number, or 0 for another result, or 2 for a UserError), and what was printed.

    Raises:
        AssertionError: code of the file ran, the function hung, or it raised something else than a UserError.
    """
    said = io.StringIO()
    code, error = 0, None
    place = watched(folder) if watch else contextlib.nullcontext([])
    with place as seen, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            result = function()
            code = result if isinstance(result, int) else 0
        except UserError as refusal:
            code = 2
            said.write(f"error: {refusal}")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException as other:
            error = other
    if isinstance(error, KeyboardInterrupt):
        raise error
    assert not seen, f"ran: {seen}"
    if error is not None:
        frames = "".join(traceback.format_exception(type(error), error, error.__traceback__)[-12:])
        raise AssertionError(f"{type(error).__name__} instead of a message:\n{frames}") from None
    return code, said.getvalue()


def command(*argv: object, folder: Path, watch: bool = True) -> tuple[int, str]:
    """Run a command of yolov5-ema in this process. Its exit code must be 0, 1 or 2; with 2 it must print an error."""
    from yolov5_ema.cli.main import main

    code, said = called(lambda: main([str(arg) for arg in argv]), folder, watch)
    assert code in (0, 1, 2), f"exit code {code}\n{said}"
    assert "Traceback" not in said, said
    assert code != 2 or "error: " in said, f"exit code 2 without a message\n{said}"
    return code, said


@contextmanager
def own_place() -> Iterator[Path]:
    """Change to an empty folder; afterwards change back and restore the environment."""
    before, environment = os.getcwd(), dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield Path(folder).resolve()
        finally:
            os.chdir(before)
            os.environ.clear()
            os.environ.update(environment)


def peak_memory() -> int:
    """The largest number of bytes that the process has had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
