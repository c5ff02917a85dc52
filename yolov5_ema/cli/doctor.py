"""``yolov5-ema doctor``: what is installed, which YOLOv5 is used, which quirks are on and why."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from yolov5_ema import __version__
from yolov5_ema.cli._yolov5 import load_plugins
from yolov5_ema.errors import UserError
from yolov5_ema.settings import VARIABLES, read

if TYPE_CHECKING:
    from yolov5_ema.engine.activation import Finding
    from yolov5_ema.engine.quirks import Quirk

SUMMARY = "print versions, the YOLOv5 found, which implementations and quirks are on and why"

_PACKAGES = (
    "torch", "torchvision", "numpy", "opencv-python", "Pillow", "pandas", "matplotlib", "setuptools", "PyYAML",
    "pycocotools", "onnx", "onnxruntime", "yolov5", "ultralytics",
)  # fmt: skip
_OPENCVS = (
    *("opencv-python", "opencv-python-headless"),
    *("opencv-contrib-python", "opencv-contrib-python-headless"),
)


def main(argv: Sequence[str]) -> int:
    """Print the report; exit code 2 if there is no YOLOv5."""
    parser = argparse.ArgumentParser(
        prog="yolov5-ema doctor",
        description="Report versions, the YOLOv5 that commands will use, and what is mended in it here.",
    )
    parser.parse_args(argv)
    print(f"yolov5-ema     {__version__}")
    print(f"Python         {platform.python_version()} on {platform.platform()}")
    for name in _PACKAGES:
        print(f"{name:<15}{_version(name)}")
    _print_second_opencv()
    _print_torch()
    _print_implementations()
    load_plugins()
    return _print_engine()


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "-"


def _print_second_opencv() -> None:
    """Two of OpenCV's packages write to one folder: the one installed last is used, and removing one breaks both."""
    both = [name for name in _OPENCVS if _version(name) != "-"]
    if len(both) > 1:
        print(f"               {' and '.join(both)} are installed over each other. One alone:")
        print(f"               pip uninstall -y {' '.join(both)}; pip install opencv-python")


def _print_torch() -> None:
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    print(f"GPU            {gpu}")
    print(f"CPU threads    {torch.get_num_threads()}")


def _print_implementations() -> None:
    from yolov5_ema.kernels import dispatch

    asked = read("implementation")
    if asked:
        print(f"{VARIABLES['implementation']}={asked}")
    for device, (name, reason) in dispatch.survey("EMA").items():
        print(f"EMA on {device:<8}{name}: {reason}")


def _print_quirk(quirk: Quirk, found: Finding) -> None:
    if found.places:
        modules = ", ".join(module for module, _ in found.places)
        lines = [f"on: {found.places[0][1]}", f"in {modules}; without it: {quirk.symptom}"]
    elif found.is_settled:
        lines = ["off: not needed"]
    else:
        lines = ["off, and not known whether it is needed: what it mends was not found in this YOLOv5,"]
        lines += [f"or is written anew. If it is needed: {quirk.symptom}"]
    for start, line in zip((quirk.name, ""), lines):
        print(f"  {start:<26}{line}")


def _print_engine() -> int:
    from yolov5_ema.blocks import list_blocks
    from yolov5_ema.engine import activation, shim
    from yolov5_ema.engine.guards import GUARDS
    from yolov5_ema.engine.quirks import QUIRKS
    from yolov5_ema.upstream.locate import clone_here, locate

    here = clone_here()
    engine = locate()
    print(f"YOLOv5         {engine}")
    if here is not None and here.root == Path.cwd().resolve() != engine.root:
        print(f"               {here}: train, val, detect and others that run YOLOv5 take this one,")
        print(
            "               for you stand in it; its code is not run here unless you name it: --yolov5 PATH"
        )
    print(f"blocks         {', '.join(list_blocks())}\n\nquirks")
    for quirk, found in zip(QUIRKS, activation.findings(engine, QUIRKS)):
        _print_quirk(quirk, found)
    guards = activation.findings(engine, GUARDS)
    print(f"\nguards         {', '.join(guard.name for guard in guards if guard.places)}")
    unknown = [guard.name for guard in guards if not guard.is_settled]
    if unknown:
        print(
            f"not known      {', '.join(unknown)}: what they guard was not found in this YOLOv5, or is written anew"
        )
    try:
        shim.install()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{engine} cannot be imported: {type(error).__name__}: {error}") from error
    print(f"\n{engine} imports, and its parse_model knows the blocks.")
    return 0
