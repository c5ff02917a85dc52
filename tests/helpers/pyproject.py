"""The content of pyproject.toml: the requirements, and what is packaged."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest depends on it for Python 3.10

CONTENT: dict[str, Any] = tomllib.loads(
    (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8")
)
PROJECT: dict[str, Any] = CONTENT["project"]
