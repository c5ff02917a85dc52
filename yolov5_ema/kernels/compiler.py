"""Compiles the C++ kernels (``cpp/``) to a library. Imports neither torch nor anything else outside Python's own."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

SOURCES = Path(__file__).parent / "cpp"
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
TIMEOUT_S = 300
# of Microsoft's compiler and of clang-cl, which takes the same flags
_MSVC = ("cl", "clang-cl")
_MSVC_FLAGS = ("/nologo", "/std:c++17", "/O2", "/EHsc", "/LD")


class Library(NamedTuple):
    """The loaded library and where it came from, or None and why there is none.

    ``has_failed`` says whether there is none although there is a compiler.
    """

    handle: ctypes.CDLL | None
    reason: str
    has_failed: bool = False


def contents() -> bytes:
    """The text of all source files."""
    files = (file for file in sorted(SOURCES.iterdir()) if file.suffix in (".cpp", ".h"))
    return b"\0".join(file.read_bytes() for file in files)


def hash_of_sources() -> str:
    """A hash of all source files; differences in the ends of lines do not count."""
    return hashlib.sha256(contents().replace(b"\r\n", b"\n")).hexdigest()


def is_msvc(compiler: str) -> bool:
    """Whether a compiler takes the flags of Microsoft's."""
    return Path(compiler).stem.lower() in _MSVC


def build(compiler: str, compile_flags: Sequence[str], link_flags: Sequence[str], file: Path) -> None:
    """Compile in the same folder and then rename to ``file``, so that other processes never see an incomplete file.

    Raises:
        subprocess.CalledProcessError: the compiler fails; ``stderr`` holds its message.
        OSError: the compiler cannot be started, or wrote no library.
    """
    sources = sorted(map(str, SOURCES.glob("*.cpp")))
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".build-") as folder:
        draft = Path(folder) / file.name
        if is_msvc(compiler):
            _run([compiler, *_MSVC_FLAGS, *compile_flags, *sources, f"/Fe:{draft}", f"/Fo{folder}{os.sep}"])
        else:
            objects = [str(Path(folder) / f"{Path(source).stem}.o") for source in sources]
            for source, compiled in zip(sources, objects):
                _run([compiler, *FLAGS, *compile_flags, "-c", source, "-o", compiled])
            _run([compiler, "-shared", *link_flags, *objects, "-o", str(draft)])
        # independent of the umask
        draft.chmod(0o700)
        os.replace(draft, file)


def version_of(compiler: str) -> bytes:
    """What the compiler prints about its version."""
    command = [compiler] if is_msvc(compiler) else [compiler, "--version"]
    done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL)
    return done.stdout or done.stderr


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL)
