"""Finding the files that ship with the package: model YAMLs and dataset YAMLs.

In a wheel they are inside the package (``yolov5_ema/_shipped``). In a checkout or an editable install they are next to
it (``models/``, ``data/``).
"""

from __future__ import annotations

from pathlib import Path

# bytes; file systems raise an error when asked whether a file with a longer name exists
_LONGEST_NAME = 255
_PACKAGE = Path(__file__).resolve().parent


def _shipped_dir(kind: str) -> Path:
    inside = _PACKAGE / "_shipped" / kind
    return inside if inside.is_dir() else _PACKAGE.parent / kind


def models_dir() -> Path:
    """Folder of the model YAMLs that ship with the package."""
    return _shipped_dir("models")


def data_dir() -> Path:
    """Folder of the dataset YAMLs that ship with the package."""
    return _shipped_dir("data")


def find_shipped(name: str) -> Path | None:
    """Path of the shipped YAML called ``name`` (``yolov5s-ema.yaml``, ``visdrone.yaml``), or None.

    Only bare names are looked up: a name that contains a folder is a path of the user's own.
    """
    if not name or Path(name).name != name or len(name.encode()) > _LONGEST_NAME:
        return None
    candidates = (directory / name for directory in (models_dir(), data_dir()))
    return next((path for path in candidates if path.is_file()), None)
