"""Code that is shared by the commands that run a YOLOv5."""

from __future__ import annotations

import importlib
import os
import sys

from yolov5_ema.errors import UserError
from yolov5_ema.settings import read


def load_plugins() -> None:
    """Import the modules named with ``--plugin``, also from the working directory.

    Raises:
        UserError: a module cannot be imported.
    """
    for name in read("plugins"):
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        try:
            importlib.import_module(name[:-3].replace("/", ".") if name.endswith(".py") else name)
        except Exception as error:
            raise UserError(f"--plugin {name}: cannot import it: {type(error).__name__}: {error}") from error
