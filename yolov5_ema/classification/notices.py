"""Warnings that are logged only once, even if several processes build the same model."""

from __future__ import annotations

import logging
import os

_LOGGER = logging.getLogger(__name__)


def say(text: str) -> None:
    """Log a warning if this is the only process or the first of several."""
    if os.environ.get("RANK", "0") in ("0", "-1"):
        _LOGGER.warning(text)
