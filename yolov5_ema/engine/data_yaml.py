"""Where a data YAML's images are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yolov5_ema.engine.locate import Engine

SPLITS = ("train", "val", "test")


def image_root(content: Mapping[str, Any], file: Path, engine: Engine) -> Path:
    """The folder that a data YAML's splits are relative to.

    A relative ``path`` means, in v6.0, one from the working directory, and from v6.1 on one from
    YOLOv5's own folder, which for the PyPI package is inside site-packages. The first of these that holds
    a split is taken; failing that, the folder of the YAML itself.
    """
    path = Path(content.get("path") or "")
    if path.is_absolute():
        return path
    bases = [Path(), engine.root, file.resolve().parent]
    if engine.version.startswith("6.0"):
        bases.remove(engine.root)
    candidates = [base / path for base in bases]
    first_entries = [_first(content[split]) for split in SPLITS if content.get(split)]
    for candidate in candidates:
        if any((candidate / entry).exists() for entry in first_entries):
            return candidate
    return candidates[0]


def _first(entry: Any) -> str:
    return str(entry[0] if isinstance(entry, list) and entry else entry)
