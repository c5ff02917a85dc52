"""Errors that YOLOv5 and ultralytics raise because of a user's mistake."""

from __future__ import annotations

import errno
import linecache
import re
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb

from yolov5_ema.errors import UserError, causes
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.ultralytics import NAME as ULTRALYTICS

_NO_GPU = "CUDA unavailable, invalid device"
_DATA_MODULES = ("datasets", "dataloaders")
_AXES = {"0": "batch size", "2": "height", "3": "width"}
_NO_SPACE = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}

# what ultralytics raises for a user's mistake
_MISTAKES = (
    *(AssertionError, ConnectionError, FileNotFoundError, ModuleNotFoundError, NotImplementedError, PermissionError),
    *(RuntimeError, SyntaxError, TypeError, ValueError),
)
_LOADERS = "torch.utils.data."  # its loaders check the batch size and the number of workers
_PICTURE = re.compile(r"[^\x00-\u25ff]\s*")
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_RAISES = re.compile(r"\s*(raise|assert)\b")


@contextmanager
def errors_as_user_errors(engine: Engine) -> Iterator[None]:
    """Turn the errors with which YOLOv5 or ultralytics reports a user's mistake into UserErrors."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        for cause in causes(error):  # a UserError that YOLOv5 caught and wrapped
            if isinstance(cause, UserError):
                raise cause from error
        message = _message_for(error, engine)
        if message:
            raise UserError(message) from error
        raise


def _message_for(error: Exception, engine: Engine) -> str:
    """The message for the user's mistake behind an error; "" if no such mistake is known."""
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        what = error.filename or "a file"
        return f"{what} cannot be written: {error.strerror}. Files that were saved before are complete."
    if isinstance(error, urllib.error.URLError) or type(error).__module__.startswith("requests."):
        return f"a download has failed: {error}. Fetch the file by other means and name its path"
    if type(error).__module__.startswith("onnxruntime") and "invalid dimensions for input" in str(error):
        return _other_size(str(error))
    return (_message_of_ultralytics if engine.kind == ULTRALYTICS else _message_of_yolov5)(error, engine)


def _message_of_yolov5(error: Exception, engine: Engine) -> str:
    file = [None, *(frame.f_code.co_filename for frame, _ in walk_tb(error.__traceback__))][-1]
    module = Path(str(file)).stem if engine.owns(file) else ""
    if isinstance(error, ModuleNotFoundError) and error.name and module:
        package = error.name.split(".")[0]
        return f"this needs the package {package}, which is not installed: pip install {package}"
    if module in _DATA_MODULES and str(error).startswith("not enough values to unpack"):
        return "no image of the data set can be used; the warnings above say why"
    if module == "metrics" and isinstance(error, IndexError):
        return "a label has a class that the data set does not have; 'yolov5-ema data stats' names the file and the row"
    if isinstance(error, ValueError) and "zero-size array" in str(error) and _is_called_by(engine, error, "train"):
        return (
            "no image of train has an object: nothing can be learned. The labels of images/…/NAME.jpg are read from "
            "labels/…/NAME.txt; 'yolov5-ema data stats DATA.yaml' counts them"
        )
    if not module or type(error) not in (AssertionError, Exception):
        return ""
    said = str(error)
    # later releases say what to do themselves
    return f"{said}: torch sees no such GPU here. Leave --device out, or give cpu" if _NO_GPU in said else said


def _is_called_by(engine: Engine, error: Exception, script: str) -> bool:
    """Whether an error came out of a function of one of YOLOv5's scripts."""
    files = (frame.f_code.co_filename for frame, _ in walk_tb(error.__traceback__))
    return any(engine.owns(file) and Path(file).stem == script for file in files)


def _other_size(said: str) -> str:
    """The message for images that do not have the size that an exported model needs."""
    sides = re.findall(r"index: (\d) Got: (\d+) Expected: (\d+)", said)
    listed = ", ".join(f"{_AXES.get(axis, 'channels')} {expected}, not {got}" for axis, got, expected in sides)
    return (
        f"the exported model was made for another image size: {listed}. Give --img its size (and --batch-size 1), or "
        "export it again with --dynamic"
    )


def _message_of_ultralytics(error: Exception, engine: Engine) -> str:
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"{error.filename}: there is no such file"
    if isinstance(error, _MISTAKES) and _is_raised_by(engine, error):
        return _plain(str(error)) or type(error).__name__
    if isinstance(error, ValueError) and _raising_module(error).startswith(_LOADERS):
        return str(error)
    return ""


def _is_raised_by(engine: Engine, error: Exception) -> bool:
    """Whether the line that raised the error is a ``raise`` or ``assert`` in the package's own source."""
    frames = list(walk_tb(error.__traceback__))
    frame, line = frames[-1]
    file = frame.f_code.co_filename
    return engine.owns(str(Path(file))) and _RAISES.match(linecache.getline(file, line)) is not None


def _raising_module(error: Exception) -> str:
    frames = list(walk_tb(error.__traceback__))
    return str(frames[-1][0].f_globals.get("__name__"))


def _plain(text: str) -> str:
    """The message without the pages of help that ultralytics appends to some, and without its pictures and colours."""
    said = re.split(r"\n\s*\n|\n\s+Arguments received", text, maxsplit=1)[0]
    return _PICTURE.sub("", _COLOUR.sub("", said)).strip()
