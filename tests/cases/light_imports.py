"""The libraries that are loaded by commands that should not need them."""

from __future__ import annotations

import sys
from pathlib import Path


def runs(*lines: str) -> None:
    """Run commands, all of which end well; the last line printed lists the large libraries that were loaded."""
    from yolov5_ema.cli.main import main

    for line in lines:
        try:
            main(line.split())
        except SystemExit as end:
            assert not end.code
    libraries = {"torch", "cv2", "numpy", "matplotlib", "pycocotools", "ray", "pyarrow"}
    print(sorted(libraries & set(sys.modules)))


def inspects(file: Path) -> None:
    """Print the kind of a weights file; the last line lists the large libraries that were loaded."""
    from yolov5_ema.weights.inspection import inspect_file

    print(inspect_file(file).kind)
    print(sorted({"torch", "yolov5", "models", "numpy"} & set(sys.modules)))
