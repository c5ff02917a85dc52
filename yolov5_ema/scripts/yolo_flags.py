"""YOLOv5's flags as arguments of the package `ultralytics`, for commands that take them with models of both."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any, NoReturn

from yolov5_ema.errors import UserError

_Table = dict[tuple[str, ...], dict[str, Any]]
"""The spellings of each flag, and how argparse reads it; ``dest`` is ultralytics' name."""


def _place(text: str) -> str:
    """What ``--source`` names; a file or folder by its full path, because ultralytics reads ``2024_01`` as a number."""
    return os.path.abspath(text) if os.path.exists(text) and not text.isnumeric() else text


_SHARED: _Table = {
    ("--imgsz", "--img", "--img-size"): {"dest": "imgsz", "type": int},
    ("--batch-size", "--batch"): {"dest": "batch", "type": int},
    ("--device",): {"dest": "device"},
    ("--workers",): {"dest": "workers", "type": int},
    ("--single-cls",): {"dest": "single_cls", "action": "store_true"},
}
_DETECTING: _Table = {
    ("--conf-thres", "--conf"): {"dest": "conf", "type": float},
    ("--iou-thres", "--iou"): {"dest": "iou", "type": float},
    ("--half",): {"dest": "half", "action": "store_true"},
    ("--augment",): {"dest": "augment", "action": "store_true"},
}
_FLAGS: dict[str, _Table] = {
    "val": {**_SHARED, **_DETECTING},
    "train": {
        **_SHARED,
        ("--epochs",): {"dest": "epochs", "type": int},
        ("--patience",): {"dest": "patience", "type": int},
        ("--optimizer",): {"dest": "optimizer"},
        ("--adam",): {"dest": "optimizer", "action": "store_const", "const": "Adam"},
        ("--cache", "--cache-images"): {"dest": "cache", "nargs": "?", "const": "ram"},
        ("--weights",): {"dest": "pretrained"},
        ("--rect",): {"dest": "rect", "action": "store_true"},
        ("--cos-lr",): {"dest": "cos_lr", "action": "store_true"},
        ("--save-period",): {"dest": "save_period", "type": int},
        ("--noval",): {"dest": "val", "action": "store_false"},
        ("--noplots",): {"dest": "plots", "action": "store_false"},
    },
}
"""The flags that commands pass on to a script."""

_OF_BOTH: _Table = {
    ("--weights",): {"dest": "model", "nargs": "+"},
    ("--data",): {"dest": "data"},
    ("--max-det",): {"dest": "max_det", "type": int},
    ("--save-txt",): {"dest": "save_txt", "action": "store_true"},
    ("--save-conf",): {"dest": "save_conf", "action": "store_true"},
    ("--project",): {"dest": "project", "type": os.path.abspath},  # ultralytics puts others into a folder of its own
    ("--name",): {"dest": "name"},
    ("--exist-ok",): {"dest": "exist_ok", "action": "store_true"},
    ("--dnn",): {"dest": "dnn", "action": "store_true"},
}
LINES: dict[str, _Table] = {
    "val": {
        **_FLAGS["val"],
        **_OF_BOTH,
        ("--task",): {"dest": "split", "choices": ("train", "val", "test")},
        ("--verbose",): {"dest": "verbose", "action": "store_true"},
        ("--save-json",): {"dest": "save_json", "action": "store_true"},
    },
    "detect": {
        ("--source",): {"dest": "source", "type": _place},
        ("--imgsz", "--img", "--img-size"): {"dest": "imgsz", "type": int, "nargs": "+"},
        ("--device",): {"dest": "device"},
        **_DETECTING,
        **_OF_BOTH,
        ("--view-img",): {"dest": "show", "action": "store_true"},
        ("--visualize",): {"dest": "visualize", "action": "store_true"},
        ("--save-crop",): {"dest": "save_crop", "action": "store_true"},
        ("--nosave",): {"dest": "save", "action": "store_false"},
        ("--classes",): {"dest": "classes", "type": int, "nargs": "+"},
        ("--agnostic-nms",): {"dest": "agnostic_nms", "action": "store_true"},
        ("--line-thickness",): {"dest": "line_width", "type": int},
        ("--hide-labels",): {"dest": "show_labels", "action": "store_false"},
        ("--hide-conf",): {"dest": "show_conf", "action": "store_false"},
        ("--vid-stride",): {"dest": "vid_stride", "type": int},
    },
}
"""The flags of whole command lines."""


def weights_in(line: Sequence[str]) -> list[str]:
    """The files after ``--weights`` in a command line of one of YOLOv5's scripts."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--weights", nargs="*", default=[])
    found: list[str] = parser.parse_known_args(list(line))[0].weights
    return found


def words_of(script: str, line: Sequence[str]) -> list[str]:
    """A command line of YOLOv5's ``val`` or ``detect`` as ultralytics writes it: ``["model=best.pt", "imgsz=640"]``.

    Args:
        script: ``val`` or ``detect``.
        line: the arguments, with ``--weights``; flags in full.

    Raises:
        UserError: as `options_of`, or there are several models.
    """
    options = _options(LINES[script], script, line)
    if len(options["model"]) > 1:
        raise UserError("--weights: ultralytics detects with one model at a time")
    if options.get("device") == "":  # YOLOv5's default: the first GPU, or the CPU
        del options["device"]
    return [f"{name}={_written(value)}" for name, value in options.items()]


def _written(value: Any) -> str:
    """A value as it is typed; a list of one item as that item. Spaces would separate arguments."""
    if not isinstance(value, list):
        return str(value)
    return str(value[0]) if len(value) == 1 else f"[{','.join(map(str, value))}]"


def options_of(script: str, flags: Sequence[str]) -> dict[str, Any]:
    """The arguments of ultralytics for flags of one of YOLOv5's scripts, without those that were not given.

    Args:
        script: ``train`` or ``val``.
        flags: the flags, each in full.

    Raises:
        UserError: ultralytics has no such argument, or a value is invalid.
    """
    return _options(_FLAGS[script], script, flags)


def _options(table: _Table, script: str, flags: Sequence[str]) -> dict[str, Any]:
    parser = _Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for spellings, options in table.items():
        parser.add_argument(*spellings, **options)
    found, unknown = parser.parse_known_args(list(flags))
    if unknown:
        known = ", ".join(spellings[0] for spellings in table)
        raise UserError(f"{' '.join(unknown)}: with a model of ultralytics, {script} takes {known}")
    return vars(found)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)
