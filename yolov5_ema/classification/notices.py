"""Warnings: once, also where several processes build the same model."""

from __future__ import annotations

import logging
import os

_LOGGER = logging.getLogger(__name__)


def say(text: str) -> None:
    """Log a warning, unless this is another process than the first of several."""
    if os.environ.get("RANK", "0") in ("0", "-1"):
        _LOGGER.warning(text)
