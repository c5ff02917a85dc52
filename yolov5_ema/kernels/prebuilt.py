"""The libraries of C++ kernels that a wheel carries, for machines without a compiler.

``setup.py`` calls `build`; `find` loads the library for this processor. A checkout, and a wheel for any platform, have
no libraries; then the kernels are compiled on first use (`yolov5_ema.kernels.native`). The libraries are compiled
without linking an OpenMP runtime: they use the one that torch has loaded.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yolov5_ema.kernels import compiler as compiling
from yolov5_ema.kernels.compiler import Library

FOLDER = Path(__file__).parent / "compiled"
_ABOUT = "about.json"
_GNU: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    # exactly the instructions that torch looks for before it reports the level
    "x86_64": {
        "avx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=256"),
        "avx2": ("-mavx2", "-mfma"),
        "baseline": (),
    },
    "aarch64": {"baseline": ()},
}
_MSVC: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "x86_64": {"avx512": ("/arch:AVX512",), "avx2": ("/arch:AVX2",), "baseline": ()},
    "aarch64": {"baseline": ()},
}
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
# by what torch calls the processor
_LEVELS = {"AVX512": ("avx512", "avx2", "baseline"), "AVX2": ("avx2", "baseline")}
_SUFFIX = ".dll" if sys.platform == "win32" else ".so"


def build(folder: Path, compiler: str, machine: str = "") -> None:
    """Compile one library for each level of processors.

    Args:
        folder: where to write the libraries, and a file that describes them.
        compiler: the compiler; one for another machine is fine.
        machine: the machine that it compiles for; empty for this one.

    Raises:
        subprocess.CalledProcessError: the compiler fails.
        OSError: the compiler cannot be started, or wrote no library.
        KeyError: there are no flags for this machine.
    """
    machine = _known(machine or platform.machine())
    is_msvc = compiling.is_msvc(compiler)
    levels = (_MSVC if is_msvc else _GNU)[machine]
    openmp = ("-fopenmp",) if not is_msvc and sys.platform == "linux" else ()
    folder.mkdir(parents=True, exist_ok=True)
    for level, flags in levels.items():
        compiling.build(compiler, (*flags, *openmp), (), _file(folder, level))
        _file(folder, level).chmod(0o755)
    first_line, *_ = compiling.version_of(compiler).decode(errors="replace").splitlines() or [compiler]
    about = {"sources": compiling.hash_of_sources(), "machine": machine, "compiler": first_line}
    (folder / _ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def find() -> Library:
    """The packaged library for this processor, if there is one of the sources as they are now. Never raises."""
    about = _about()
    if about is None:
        return Library(None, "this installation carries no compiled kernels")
    if about.get("machine") != _known(platform.machine()) or about.get("sources") != compiling.hash_of_sources():
        return Library(None, "the compiled kernels of this installation are of other sources, or for another machine")
    reason = "no file is there"
    for level in _levels_here():
        file = _file(FOLDER, level)
        try:
            return Library(ctypes.CDLL(str(file)), f"{file}, from the wheel, for {level}, by {about.get('compiler')}")
        except OSError as error:
            reason = str(error)
    return Library(None, f"the compiled kernels of this installation do not load: {reason}")


def _levels_here() -> tuple[str, ...]:
    import torch

    return _LEVELS.get(torch.backends.cpu.get_cpu_capability(), ("baseline",))


def _about() -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((FOLDER / _ABOUT).read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else None
    return None


def _known(machine: str) -> str:
    return _MACHINES.get(machine.lower(), machine.lower())


def _file(folder: Path, level: str) -> Path:
    return folder / f"kernels-{level}{_SUFFIX}"
