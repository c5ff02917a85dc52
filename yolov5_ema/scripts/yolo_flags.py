"""YOLOv5's flags as arguments of the package `ultralytics`, for commands that take them with models of both."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from yolov5_ema.errors import UserError

_SHARED: dict[tuple[str, ...], dict[str, Any]] = {
    ("--imgsz", "--img", "--img-size"): {"dest": "imgsz", "type": int},
    ("--batch-size", "--batch"): {"dest": "batch", "type": int},
    ("--device",): {"dest": "device"},
    ("--workers",): {"dest": "workers", "type": int},
    ("--single-cls",): {"dest": "single_cls", "action": "store_true"},
}
_FLAGS = {
    "val": {
        **_SHARED,
        ("--conf-thres", "--conf"): {"dest": "conf", "type": float},
        ("--iou-thres", "--iou"): {"dest": "iou", "type": float},
        ("--half",): {"dest": "half", "action": "store_true"},
        ("--augment",): {"dest": "augment", "action": "store_true"},
    },
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
"""By script: the spellings of each flag, and how argparse reads it; ``dest`` is ultralytics' name."""


def options_of(script: str, flags: Sequence[str]) -> dict[str, Any]:
    """The arguments of ultralytics for flags of one of YOLOv5's scripts, without those that were not given.

    Args:
        script: ``train`` or ``val``.
        flags: the flags, each in full.

    Raises:
        UserError: ultralytics has no such argument, or a value is invalid.
    """
    parser = _Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for spellings, options in _FLAGS[script].items():
        parser.add_argument(*spellings, **options)
    found, unknown = parser.parse_known_args(list(flags))
    if unknown:
        known = ", ".join(spellings[0] for spellings in _FLAGS[script])
        raise UserError(f"{' '.join(unknown)}: with a model of ultralytics, {script} takes {known}")
    return vars(found)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)
