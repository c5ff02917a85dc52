"""Compiles the C++ kernels into the wheel if YOLOV5_EMA_COMPILE=1; pyproject.toml holds everything else.

Without the variable, the wheel is for any platform and contains the sources; a machine with a compiler compiles them on
first use. CXX names the compiler, and YOLOV5_EMA_MACHINE the machine that it compiles for, if that is another one.
"""

import os
import shutil
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).resolve().parent))

from yolov5_ema.kernels import prebuilt

IS_COMPILED = os.environ.get("YOLOV5_EMA_COMPILE", "0") not in ("", "0")
COMPILER = os.environ.get("CXX") or ("cl" if sys.platform == "win32" else "c++")


class BuildWithKernels(build_py):
    """Copies the package as usual, and puts the libraries next to it."""

    def run(self) -> None:
        super().run()
        folder = Path(self.build_lib, prebuilt.FOLDER.relative_to(Path(__file__).resolve().parent))
        shutil.rmtree(folder, ignore_errors=True)
        if IS_COMPILED and not self.editable_mode:
            prebuilt.build(folder, COMPILER, os.environ.get("YOLOV5_EMA_MACHINE", ""))


class WheelOfThePlatform(bdist_wheel):
    """A wheel with libraries is for one platform, but for every Python and every torch."""

    def get_tag(self) -> tuple[str, str, str]:
        found = super().get_tag()
        return ("py3", "none", found[2]) if IS_COMPILED else found


class WithLibraries(Distribution):
    """What tells setuptools that the wheel is for one platform."""

    def has_ext_modules(self) -> bool:
        return IS_COMPILED


setup(distclass=WithLibraries, cmdclass={"build_py": BuildWithKernels, "bdist_wheel": WheelOfThePlatform})
