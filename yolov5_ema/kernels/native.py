"""The library of C++ kernels: that of the wheel, or compiled on first use and cached. Without both there is none.

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

from yolov5_ema.kernels import prebuilt
from yolov5_ema.kernels.compiler import FLAGS, Library, build, contents, version_of
from yolov5_ema.kernels.ownership import cache_folder, is_private_file, is_private_folder

_COMPILERS = ("c++", "g++", "clang++")
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


@functools.cache
def library() -> Library:
    """The library of kernels, compiled if it is neither in the wheel nor in the cache. Never raises."""
    try:
        return _find_or_build()
    except (OSError, subprocess.SubprocessError) as error:
        return Library(None, f"no C++ kernels: {error}", has_failed=True)


def _find_or_build() -> Library:
    packaged = prebuilt.find()
    if packaged.handle is not None:
        return packaged
    if sys.platform == "win32":
        return Library(None, "on Windows the C++ kernels are not compiled on first use, only for wheels")
    compiler = _compiler()
    if compiler is None:
        return Library(None, f"no C++ compiler found ({', '.join(_COMPILERS)}, or CXX); {packaged.reason}")
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
        build(compiler, compile_flags, link_flags, folder / name)
    if folder is not None and is_private_file(folder / name):
        return folder / name, ctypes.CDLL(str(folder / name))
    with tempfile.TemporaryDirectory(prefix="yolov5-ema-") as scratch:
        file = Path(scratch).resolve() / name
        if not is_private_folder(file.parent):
            raise PermissionError(f"others can replace {file.parent}, where the kernels would be built")
        build(compiler, compile_flags, link_flags, file)
        return file, ctypes.CDLL(str(file))


def _compiler() -> str | None:
    for name in (os.environ.get("CXX", ""), *_COMPILERS):
        if name and shutil.which(name):
            return name
    return None


def _fingerprint(compiler: str, compile_flags: tuple[str, ...], link_flags: tuple[str, ...]) -> str:
    parts = [version_of(compiler), repr((FLAGS, compile_flags, link_flags, platform.machine())).encode(), processor()]
    return hashlib.sha256(b"\0".join([*parts, contents()])).hexdigest()[:20]


def processor() -> bytes:
    """The properties of the processor that -march=native depends on, as far as the system gives them."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor().encode()
    lines = info.read_bytes().splitlines()
    return b"\n".join(sorted({line for line in lines if line.startswith((b"flags", b"Features", b"model name"))}))
