"""What a name means that YOLOv5, or a fork of it, has for a module of its own and this package for a block.

One answer for all that reads a cfg. It stands in the environment, so that processes which are started have the same.
"""

from __future__ import annotations

import os

from yolov5_ema.cfgs.rows import CHOICES
from yolov5_ema.errors import UserError

CONFLICTS_ENV = "YOLOV5_EMA_CONFLICTS"


def conflicts_choice(said: str | None = None) -> str:
    """``error``, ``ours`` or ``theirs``: what is said, else what `install` or ``--conflicts`` said before.

    Raises:
        UserError: it is none of these.
    """
    choice = said or os.environ.get(CONFLICTS_ENV) or "error"
    if choice not in CHOICES:
        raise UserError(f"conflicts must be one of {', '.join(CHOICES)}, not {choice!r}")
    return choice


def set_choice(choice: str | None) -> None:
    """Put a choice into the environment; None: take it out."""
    if choice is None:
        os.environ.pop(CONFLICTS_ENV, None)
    else:
        os.environ[CONFLICTS_ENV] = choice
