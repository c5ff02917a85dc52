"""Where a data YAML's images are, as the YOLOv5 at hand sees it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yolov5_ema.data.dataset import dataset_root
from yolov5_ema.engine.locate import Engine


def image_root(content: Mapping[str, Any], file: Path, engine: Engine) -> Path:
    """The folder that a data YAML's splits are relative to; see `dataset_root`.

    A relative ``path`` means, in v6.0, one from the working directory, and from v6.1 on one from
    YOLOv5's own folder, which for the PyPI package is inside site-packages.
    """
    return dataset_root(content, file, relative_bases(engine))


def relative_bases(engine: Engine) -> list[Path]:
    """Folders that a relative ``path`` may start from, beside the working directory and the YAML's own."""
    return [] if engine.version.startswith("6.0") else [engine.root]
