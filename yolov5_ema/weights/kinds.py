"""Recognizes pickle files that are not YOLOv5 checkpoints, and says what can be done with them.

Every command that takes weights uses this. It looks at the pickle as `inert_pickle` has followed it; nothing is
unpickled.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolov5_ema.errors import CheckpointError
from yolov5_ema.texts import suggested
from yolov5_ema.weights.checkpoint_files import PickleFile
from yolov5_ema.weights.foreign_names import shown_names
from yolov5_ema.weights.inert_modules import is_module
from yolov5_ema.weights.inert_pickle import class_name, class_of_old_file, lookup, pairs_of
from yolov5_ema.weights.inert_tensors import tensor_of
from yolov5_ema.weights.mistaken import TORCHSCRIPT
from yolov5_ema.weights.names import OF_YOLOV5

STATE_DICT_KEYS = ("", "state_dict", "model", "model_state_dict", "ema", "ema_state_dict")
"""Where a file may hold a dict of tensors: at the top, or under one of the usual keys."""

_OF_SCRIPTS = re.compile(r"__torch__\..*|torch\.jit\._pickle\..*")
_OF_ULTRALYTICS = re.compile(r"ultralytics\..*")
_NOTHING = re.compile(r"(?!)")
_WHAT_YOLOV5_IS = (
    "a YOLOv5 checkpoint, which the package ultralytics cannot run: use 'yolov5-ema detect' and the other commands, or "
    "YOLOv5 itself"
)


@dataclass(frozen=True)
class Kind:
    """A kind of file that is not a YOLOv5 checkpoint.

    Attributes:
        what: what the file is and what to do, as the end of a sentence that begins with the file's name and "is".
        names: the names of classes that files of this kind hold in addition to those of checkpoints.
        convertible: whether 'convert --cfg' can turn it into a checkpoint.
    """

    what: str
    names: re.Pattern[str] = _NOTHING
    convertible: bool = False

    def error(self, path: Path) -> CheckpointError:
        """The error for a command that needs a checkpoint."""
        return CheckpointError(f"{path} is {self.what}")


def other_kind(opened: PickleFile, path: Path) -> Kind | None:
    """The kind of a file that is not a YOLOv5 checkpoint; None for a checkpoint, or if the kind is unknown."""
    root = opened.root.value
    if opened.script:
        return of_script(opened)
    modules = models_in(root)
    if is_of_ultralytics(opened):
        return _of_ultralytics(class_name(modules[0]))
    if is_module(root):
        return _bare_module(class_name(root), path) if OF_YOLOV5.fullmatch(class_name(root)) else None
    if modules:
        return None
    if isinstance(lookup(root, "model"), str):
        return Kind(
            f"a weights file of the classifier {lookup(root, 'model')[:80]!r}, not a YOLOv5 model; use it with "
            "'yolov5-ema classify val' or 'classify predict'"
        )
    key = key_of_state_dict(root)
    return None if key is None else state_dict(key, path)


def models_in(root: Any) -> list[Any]:
    """The models at the top of a checkpoint: the average of the training's weights first, if there is one."""
    models = [root] if is_module(root) else [lookup(root, key) for key in ("ema", "model")]
    return [model for model in models if is_module(model)]


def is_of_ultralytics(opened: PickleFile) -> bool:
    """Whether a file holds a model of the package ultralytics."""
    return any(_OF_ULTRALYTICS.match(class_name(model)) for model in models_in(opened.root.value))


def of_script(opened: PickleFile) -> Kind | None:
    """The kind of a TorchScript archive; None for another file."""
    return Kind(TORCHSCRIPT, _OF_SCRIPTS) if opened.script else None


def of_yolov5(opened: PickleFile) -> Kind | None:
    """The kind of a YOLOv5 checkpoint for a program that cannot run it; None for another file."""
    names = {name for one in opened.pickles for name in one.names if OF_YOLOV5.fullmatch(name)}
    return Kind(_WHAT_YOLOV5_IS, OF_YOLOV5) if names else None


def names_layers_of_an_old_file(opened: PickleFile) -> bool:
    """Whether the file has torch's format from before 1.6, which stores layers together with their source code."""
    return any(class_of_old_file(value) for value in opened.root.stored)


def key_of_state_dict(root: Any) -> str | None:
    """The key that holds a dict of tensors, or an empty string for the top; None if there is no such dict."""
    at_top = [tensor_of(value) is not None for _, value in pairs_of(root)]
    if at_top and all(at_top):
        return ""
    for key in STATE_DICT_KEYS[1:]:
        if any(tensor_of(value) for _, value in pairs_of(lookup(root, key))):
            return key
    return None


def _of_ultralytics(cls: str) -> Kind:
    return Kind(
        f"a checkpoint of the package ultralytics (YOLOv8, YOLO11 and later), of class {shown_names([cls])}, which "
        "YOLOv5 cannot run. Use it with 'yolov5-ema train', 'val', 'detect' or 'export' as model=FILE, or with that "
        "package itself; yolov5_ema.install('ultralytics') makes the blocks known to it",
        _OF_ULTRALYTICS,
    )


def _bare_module(cls: str, path: Path) -> Kind:
    return Kind(
        f"a bare model (of class {shown_names([cls])}), without the dict around it that YOLOv5 expects. "
        + _to_convert(path),
        convertible=True,
    )


def state_dict(key: str, path: Path) -> Kind:
    """The kind of a file that holds a state dict under a key, or at its top if the key is empty."""
    where = f" under the key {key!r}" if key else ""
    return Kind(
        f"a state dict{where}: tensors without a model. {_to_convert(path)}",
        convertible=True,
    )


def _to_convert(path: Path) -> str:
    command = suggested("convert", path, "--cfg", "MODEL.yaml", "-o", f"{path.with_suffix('')}-whole.pt")
    return f"With the YAML of its model it can be turned into a checkpoint: {command}"
