"""The command line ``yolo`` of the package `ultralytics`, with the attention blocks known to it."""

from __future__ import annotations

import linecache
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb

from yolov5_ema.data.yaml_files import load_yaml
from yolov5_ema.engine import ultralytics_adapter
from yolov5_ema.errors import UserError, causes
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.patching import Patches
from yolov5_ema.upstream.ultralytics import find_cfg, is_cfg_of_ultralytics

_ASSIGNMENT = re.compile(r"(?P<key>[A-Za-z_]\w*)=(?P<value>.*)", re.DOTALL)
_MISTAKES = (
    *(AssertionError, ConnectionError, FileNotFoundError, ModuleNotFoundError, NotImplementedError, PermissionError),
    *(RuntimeError, SyntaxError, TypeError, ValueError),
)
_PICTURE = re.compile(r"[^\x00-\u25ff]\s*")
_RAISES = re.compile(r"\s*(raise|assert)\b")


def assignments(words: Sequence[str]) -> dict[str, str]:
    """The words of the form ``model=yolo11n.pt``, as ultralytics writes its arguments, by name."""
    found = (_ASSIGNMENT.fullmatch(word) for word in words)
    return {match["key"]: match["value"] for match in found if match}


def run_yolo(words: Sequence[str]) -> int:
    """Run ``yolo WORDS`` with the adapter installed, and return the exit code.

    Args:
        words: the arguments, such as ``["train", "model=yolo11n-ema.yaml", "data=coco8.yaml"]``.

    Raises:
        UserError: what ultralytics reports as a mistake, or a model of YOLOv5.
    """
    engine = ultralytics_adapter.install()
    _refuse_yolov5(assignments(words).get("model", ""), engine)
    cfg = engine.module("cfg")
    with Patches() as patches, mistakes_as_user_errors(engine):
        patches.set(cfg, "ARGV", ["yolo", *words])
        cfg.entrypoint()
    return 0


def _refuse_yolov5(model: str, engine: Engine) -> None:
    """Refuse a model YAML of YOLOv5. A checkpoint of YOLOv5 is refused when it is read."""
    if not model.endswith((".yaml", ".yml")):
        return
    from yolov5_ema.resources import find_shipped

    file = find_cfg(model, engine) or find_shipped(model)
    if file is None:
        return
    content = load_yaml(file)
    if isinstance(content, dict) and "anchors" in content and not is_cfg_of_ultralytics(content):
        raise UserError(f"model={model} is a model YAML of YOLOv5: use the flags of YOLOv5 instead, --cfg {model} …")


@contextmanager
def mistakes_as_user_errors(engine: Engine) -> Iterator[None]:
    """Turn the errors that ultralytics raises on purpose, in its own source, into UserErrors."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        for cause in causes(error):
            if isinstance(cause, UserError):
                raise cause from error
        if isinstance(error, _MISTAKES) and _is_raised_by(engine, error):
            raise UserError(_plain(str(error)) or type(error).__name__) from error
        raise


def _is_raised_by(engine: Engine, error: Exception) -> bool:
    """Whether the line that raised the error is a ``raise`` or ``assert`` in the package's own source."""
    frames = list(walk_tb(error.__traceback__))
    frame, line = frames[-1]
    file = frame.f_code.co_filename
    return engine.owns(str(Path(file))) and _RAISES.match(linecache.getline(file, line)) is not None


def _plain(text: str) -> str:
    """The message without the pages of help that ultralytics appends to some, and without its pictures."""
    said = re.split(r"\n\s*\n|\n\s+Arguments received", text, maxsplit=1)[0]
    return _PICTURE.sub("", said).strip()
