"""Compiles the C++ kernels on first use, and caches them for later processes. Without a compiler they are not used.

The sources (``cpp/``) do not include headers of torch or Python, so compiling takes two seconds and the library works
with any version of either. The library is built for this processor. Its file name contains a hash of sources, compiler,
flags and processor, so another machine that shares the folder builds its own.

Loading a library runs its code. So a cached library is used only if no other user can have put it there
(`yolov5_ema.kernels.ownership`); otherwise it is built again, in a temporary folder.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from yolov5_ema.kernels.ownership import cache_folder, is_private_file, is_private_folder

_SOURCES = Path(__file__).parent / "cpp"
_COMPILERS = ("c++", "g++", "clang++")
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
_TIMEOUT_S = 300
# rows of maps are short, so wider vectors would leave a longer remainder
_NATIVE = ("-march=native", "-mprefer-vector-width=256")
# Compile flags and link flags; the first variant that compiles and loads is used. Without -fopenmp among the link flags
# the library uses the OpenMP runtime that torch has loaded; two runtimes would compete for the cores.
_VARIANTS = (
    ((*_NATIVE, "-fopenmp"), ()),
    (("-march=native", "-fopenmp"), ()),
    (("-march=native", "-fopenmp"), ("-fopenmp",)),
    (("-march=native",), ()),
    ((), ()),
)


class Library(NamedTuple):
    """The loaded library and where it came from, or None and why there is none.

    ``has_failed`` says whether there is none although there is a compiler.
    """

    handle: ctypes.CDLL | None
    reason: str
    has_failed: bool = False


@functools.cache
def library() -> Library:
    """The library of kernels, compiled if it is not in the cache. Never raises."""
    try:
        return _find_or_build()
    except (OSError, subprocess.SubprocessError) as error:
        return Library(None, f"no C++ kernels: {error}", has_failed=True)


def _find_or_build() -> Library:
    if sys.platform == "win32":
        # the flags are those of GCC and Clang
        return Library(None, "the C++ kernels are not built on Windows")
    compiler = _compiler()
    if compiler is None:
        return Library(None, f"no C++ compiler found ({', '.join(_COMPILERS)}, or CXX)")
    reason = "no variant was tried"
    for variant in _VARIANTS:
        try:
            file, handle = _load(compiler, *variant)
            return Library(handle, f"{file}, by {compiler} {' '.join(variant[0])}")
        except subprocess.CalledProcessError as error:
            reason = f"{compiler} fails: {(error.stderr or 'without a word').strip().splitlines()[-1]}"
        except FileNotFoundError:
            reason = f"{compiler} fails: it wrote no library"
        except OSError as error:
            reason = f"the compiled library does not load: {error}"
    return Library(None, reason, has_failed=True)


def _load(compiler: str, compile_flags: tuple[str, ...], link_flags: tuple[str, ...]) -> tuple[Path, ctypes.CDLL]:
    """Load a library that no other user can have written: from the cache, or newly built in a temporary folder."""
    name = f"kernels-{_fingerprint(compiler, compile_flags, link_flags)}.so"
    folder = cache_folder()
    if folder is not None and not os.path.lexists(folder / name):
        _build(compiler, compile_flags, link_flags, folder / name)
    if folder is not None and is_private_file(folder / name):
        return folder / name, ctypes.CDLL(str(folder / name))
    with tempfile.TemporaryDirectory(prefix="yolov5-ema-") as scratch:
        file = Path(scratch).resolve() / name
        if not is_private_folder(file.parent):
            raise PermissionError(f"others can replace {file.parent}, where the kernels would be built")
        _build(compiler, compile_flags, link_flags, file)
        return file, ctypes.CDLL(str(file))


def _compiler() -> str | None:
    for name in (os.environ.get("CXX", ""), *_COMPILERS):
        if name and shutil.which(name):
            return name
    return None


def _fingerprint(compiler: str, compile_flags: tuple[str, ...], link_flags: tuple[str, ...]) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=_TIMEOUT_S).stdout
    parts = [version, repr((_FLAGS, compile_flags, link_flags, platform.machine())).encode(), processor()]
    parts += [file.read_bytes() for file in sorted(_SOURCES.iterdir()) if file.suffix in (".cpp", ".h")]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:20]


def processor() -> bytes:
    """The properties of the processor that -march=native depends on, as far as the system gives them."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor().encode()
    lines = info.read_bytes().splitlines()
    return b"\n".join(sorted({line for line in lines if line.startswith((b"flags", b"Features", b"model name"))}))


def _build(compiler: str, compile_flags: tuple[str, ...], link_flags: tuple[str, ...], file: Path) -> None:
    """Compile in the same folder and then rename to ``file``, so that other processes never see an incomplete file."""
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".build-") as folder:
        objects = []
        for source in sorted(_SOURCES.glob("*.cpp")):
            objects.append(str(Path(folder) / f"{source.stem}.o"))
            _run([compiler, *_FLAGS, *compile_flags, "-c", str(source), "-o", objects[-1]])
        draft = Path(folder) / file.name
        _run([compiler, "-shared", *link_flags, *objects, "-o", str(draft)])
        # independent of the umask
        draft.chmod(0o700)
        os.replace(draft, file)


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S, stdin=subprocess.DEVNULL)
