"""Remarks on stderr: once, also where several processes build the same model."""

from __future__ import annotations

import os
import sys


def say(text: str) -> None:
    """Print a line on stderr, unless this is another process than the first of several."""
    if os.environ.get("RANK", "0") in ("0", "-1"):
        print(text, file=sys.stderr)
