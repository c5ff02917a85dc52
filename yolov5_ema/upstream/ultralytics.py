"""The package `ultralytics` (YOLOv8, YOLO11 and later): where it is, and which files belong to it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from yolov5_ema.errors import EngineNotFoundError
from yolov5_ema.resources import models_dir
from yolov5_ema.upstream.locate import Engine

NAME = "ultralytics"
_SIZE = re.compile(r"(?P<family>yolo(e-)?v?\d+)(?P<size>[nslmx])(?=[-.])")
_OTHER_SIZE = re.compile(r"(?P<family>yolo(e-)?v?\d+)[a-z](?=[-.])")
_NO_SIZE = re.compile(r"(?P<family>yolo(e-)?v?\d+)(?=[-.])")


class Ultralytics(Engine):
    """The installed package `ultralytics`: ``root``, ``kind`` (``ultralytics``) and ``version``."""

    _NAMES_FOR_ROWS: ClassVar[tuple[str, ...]] = ("nn/tasks.py",)

    def module_name(self, relative: str) -> str:
        """Import name of a module given relative to the root: ``nn.tasks``."""
        return f"{NAME}.{relative}"

    def relative_name(self, module_name: str) -> str | None:
        """The inverse of `module_name`; None for a module that is not this package's."""
        return module_name[len(NAME) + 1 :] if module_name.startswith(f"{NAME}.") else None

    def __str__(self) -> str:
        return f"ultralytics {self.version} ({self.root})"


def names_ultralytics(yolo: Any) -> bool:
    """Whether an argument of `yolov5_ema.install` means the package `ultralytics`."""
    if isinstance(yolo, ModuleType):
        return yolo.__name__.split(".")[0] == NAME
    return isinstance(yolo, str) and yolo == NAME


def located() -> Ultralytics:
    """The installed package, which is not imported.

    Raises:
        EngineNotFoundError: it is not installed.
    """
    spec = importlib.util.find_spec(NAME)
    if spec is None or spec.origin is None:
        raise EngineNotFoundError("the package ultralytics is not installed: pip install 'yolov5-ema[ultralytics]'")
    try:
        version = importlib.metadata.version(NAME)
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    return Ultralytics(Path(spec.origin).resolve().parent, NAME, version)


def at_hand() -> Ultralytics | None:
    """The installed package, which is not imported; None if it is not installed."""
    try:
        return located()
    except EngineNotFoundError:
        return None


def is_cfg_of_ultralytics(content: Any) -> bool:
    """Whether the content of a model YAML has the form of this package, not YOLOv5's.

    Such a YAML lists several sizes under ``scales``, and has no anchors. YOLOv5's has ``depth_multiple`` and
    ``anchors``. The package's own YAMLs for YOLOv3, which have ``depth_multiple`` but no anchors, are told from a
    YOLOv5 YAML without its anchors by the arguments of the last row.

    Example:
        >>> is_cfg_of_ultralytics({"nc": 80, "scales": {"n": [0.5, 0.25, 1024]}})
        True
    """
    if not isinstance(content, Mapping) or ("backbone" not in content and "scales" not in content):
        return False
    if "scales" in content or "anchors" in content:
        return "scales" in content
    head = content.get("head")
    last = head[-1] if isinstance(head, list) and head else None
    return not (isinstance(last, list) and len(last) == 4 and "anchors" in str(last[3]))


def find_cfg(name: str, engine: Engine | None) -> Path | None:
    """The model YAML that a name or path means to ultralytics; None if there is none.

    The user's own file comes first, then those of this project, then those of ultralytics (without an engine, these are
    not looked up). A letter of the size in the name need not be in the file's name: ``yolo26n.yaml`` is
    ``yolo26.yaml``.
    """
    given = Path(name)
    if not given.name:
        return None
    own = (file for file in (given, given.with_name(without_size(given.name))) if file.is_file())
    return next(own, None) or shipped_cfg(name) or (own_cfg(name, engine) if engine else None)


def shipped_cfg(name: str) -> Path | None:
    """The YAML of this project for ultralytics with a bare name, with the letter of a size or without it."""
    return _in_folder(models_dir() / NAME, name)


def own_cfg(name: str, engine: Engine) -> Path | None:
    """The YAML of a bare name that ships with ultralytics: ``yolo26n.yaml`` is its ``yolo26.yaml``."""
    return _in_folder(engine.root / "cfg" / "models", name)


def size_in(name: str) -> str:
    """The letter of the size in the name of a YAML; an empty string if there is none.

    Example:
        >>> size_in("yolo11n-ema.yaml"), size_in("yolo11-ema.yaml"), size_in("yolov9c.yaml")
        ('n', '', '')
    """
    found = _SIZE.search(Path(name).name)
    return found["size"] if found else ""


def without_size(name: str) -> str:
    """The name of a YAML without the letter of the size.

    Example:
        >>> without_size("yolo11n-ema.yaml"), without_size("yolov8x-p2.yaml")
        ('yolo11-ema.yaml', 'yolov8-p2.yaml')
    """
    return _SIZE.sub(r"\g<family>", name, count=1)


def with_size(name: str, letter: str) -> str:
    """The name of a YAML with the letter of a size, as ultralytics reads it; unchanged if it cannot have one.

    Example:
        >>> with_size("yolo26-ema.yaml", "x"), with_size("mine.yaml", "x")
        ('yolo26x-ema.yaml', 'mine.yaml')
    """
    return _NO_SIZE.sub(rf"\g<family>{letter}", name, count=1)


def sizes_beside(name: str, engine: Engine | None) -> str:
    """The letters of all sizes, if a name has a letter that is none, and is that of a YAML without it."""
    bare = _OTHER_SIZE.sub(r"\g<family>", name, count=1)
    return "nsmlx" if bare != name and find_cfg(bare, engine) else ""


def _in_folder(folder: Path, name: str) -> Path | None:
    if not name or Path(name).name != name:
        return None
    files = {file.name: file for file in sorted(folder.rglob("*.yaml"))}
    return files.get(name) or files.get(without_size(name))
