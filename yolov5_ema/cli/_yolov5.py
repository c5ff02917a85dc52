"""Code that is shared by the commands that run a YOLOv5."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING

from yolov5_ema.errors import UserError
from yolov5_ema.settings import read

if TYPE_CHECKING:
    from yolov5_ema.upstream.locate import Engine


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


def start_yolov5() -> Engine:
    """The YOLOv5 in use, with the shim installed and the plugins imported.

    Raises:
        UserError: a plugin cannot be imported, or no YOLOv5 was found.
    """
    load_plugins()
    from yolov5_ema.engine import shim

    return shim.install()
