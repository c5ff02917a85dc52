"""Finding the YOLOv5 to work with: the PyPI package ``yolov5`` or a clone of the repository."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import importlib.util
import os
import re
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from yolov5_ema.errors import EngineNotFoundError
from yolov5_ema.settings import VARIABLES, read
from yolov5_ema.upstream.patching import holding
from yolov5_ema.upstream.source_code import code_in, dotted, value_of

_HOW_TO_GET_ONE = (
    "Install one (pip install 'yolov5-ema[v6]', or [v7]), point to a clone with --yolov5 PATH "
    f"or the environment variable {VARIABLES['yolov5']}, or run the command inside a clone."
)

_NEWEST = (7, 0)
_OF_OTHERS = {"site-packages", "dist-packages"}

_working_folder_counts: ContextVar[bool] = ContextVar("working folder counts", default=True)


@functools.cache
def _without_links(folder: str) -> str:
    """A folder's real path. It is cached: it is needed for each loaded module, and many modules share a folder."""
    return os.path.realpath(folder)


@dataclass(frozen=True)
class Engine:
    """One YOLOv5 on this machine.

    Attributes:
        root: folder that holds ``models/``, ``utils/`` and ``train.py``.
        kind: ``package`` (modules are called ``yolov5.models.yolo``) or ``clone`` (``models.yolo``).
        version: such as ``6.0.7``; for a clone, the release that its files look like, such as ``6.1``.
    """

    root: Path
    kind: str
    version: str

    # the files whose names its parser of model YAMLs can see
    _NAMES_FOR_ROWS: ClassVar[tuple[str, ...]] = ("models/yolo.py", "models/common.py", "models/experimental.py")

    def module_name(self, relative: str) -> str:
        """The import name of a module whose name is given relative to the root: ``models.yolo``, ``train``."""
        return f"yolov5.{relative}" if self.kind == "package" else relative

    def module(self, relative: str) -> Any:
        """Import one of its modules, given as for `module_name`."""
        return importlib.import_module(self.module_name(relative))

    @property
    def release(self) -> tuple[int, int]:
        """The release as two numbers, such as (6, 0); a version without a number counts as the newest."""
        numbers = re.match(r"(\d+)\.(\d+)", self.version)
        return (int(numbers[1]), int(numbers[2])) if numbers else _NEWEST

    def relative_name(self, module_name: str) -> str | None:
        """The inverse of `module_name`; None for a module that is not this YOLOv5's."""
        if self.kind == "clone":
            return module_name
        return module_name[len("yolov5.") :] if module_name.startswith("yolov5.") else None

    def owns(self, path: str | None) -> bool:
        """Whether a source file lies below the root, but not in a virtual environment inside a clone."""
        if not path or not os.path.isabs(path):  # torch has modules whose __file__ is a bare "_ops.py"
            return False
        folder, name = os.path.split(path)
        file = os.path.join(_without_links(folder), name)
        root = os.path.join(self.root, "")
        names = (path, file, os.path.realpath(file) if os.path.islink(file) else file)
        # of the three paths, because single files may be links into the root or out of it
        below = (name[len(root) :] for name in names if name.startswith(root))
        return any(not _OF_OTHERS & set(rest.split(os.sep)) for rest in below)

    def sources(self) -> list[Path]:
        """Its source files, sorted by path."""
        return [file for file in sorted(self.root.rglob("*.py")) if self.owns(str(file))]

    def names_for_rows(self) -> frozenset[str]:
        """The names that its parser of model YAMLs can see, according to the source code; more than its modules."""
        files = (self.root / name for name in self._NAMES_FOR_ROWS)
        return frozenset().union(*(code_in(file).own_names for file in files if file.is_file()))

    @property
    def import_root(self) -> Path:
        """The folder that must be on ``sys.path`` so that the modules can be imported."""
        return self.root.parent if self.kind == "package" else self.root

    def has_script(self, relative: str) -> bool:
        """Whether there is a script such as ``train`` or ``segment.train``."""
        return self.script_file(relative).is_file()

    def script_named(self, script: str) -> str | None:
        """The dotted name of one of its scripts that is named by its path, such as ``segment/train.py``, or None."""
        path = Path(script)
        if not path.is_file() and (self.root / script).is_file():
            path = self.root / script
        if not path.is_file() or not self.owns(str(path.resolve())):
            return None
        return ".".join(path.resolve().relative_to(self.root).with_suffix("").parts)

    def has_flags(self, relative: str) -> bool:
        """Whether the text of a script shows that it takes flags; other scripts do their work when imported."""
        return code_in(self.script_file(relative)).defines("parse_opt", "main")

    def script_file(self, relative: str) -> Path:
        """The file of a script such as ``train`` or ``segment.train``, whether or not it is there."""
        return (self.root / Path(*relative.split("."))).with_suffix(".py")

    def __str__(self) -> str:
        what = "PyPI package" if self.kind == "package" else "clone"
        return f"YOLOv5 {self.version} ({what}, {self.root})"


def is_yolov5_root(path: Path) -> bool:
    """Whether a folder holds a YOLOv5: ``models/yolo.py``, ``utils/general.py`` and ``train.py``."""
    return all((path / part).is_file() for part in ("models/yolo.py", "utils/general.py", "train.py"))


def engine_at(path: Path) -> Engine:
    """Return the YOLOv5 in a folder.

    Raises:
        EngineNotFoundError: the folder does not exist or holds no YOLOv5.
    """
    root = path.expanduser().resolve()
    if not root.is_dir():
        raise EngineNotFoundError(f"no such folder for --yolov5: {path}. {_HOW_TO_GET_ONE}")
    if not is_yolov5_root(root):
        raise EngineNotFoundError(
            f"{path} is not a YOLOv5: models/yolo.py, utils/general.py or train.py is missing. {_HOW_TO_GET_ONE}"
        )
    if code_in(root / "models/yolo.py").imports("yolov5", within_function=False):
        return Engine(root, "package", _package_version(root))
    return Engine(root, "clone", _clone_version(root))


def ignoring_working_folder() -> AbstractContextManager[None]:
    """Inside the ``with`` block, `locate` ignores a clone in the working directory.

    This is for commands that only look at files, which may come from anybody, as may the directory around them.
    """
    return holding(_working_folder_counts, False)


def locate(path: str | os.PathLike[str] | None = None) -> Engine:
    """Find the YOLOv5 to use.

    It is looked for in this order: ``path``; the settings (``--yolov5``); the working directory, if it is a clone; the
    installed package ``yolov5``; a clone in ``./yolov5``. Within `ignoring_working_folder`, the working directory
    and ``./yolov5`` are skipped.

    Raises:
        EngineNotFoundError: none was found; the message says how to get or name one.
    """
    named = path or read("yolov5")
    if named:
        return engine_at(Path(named))
    here = clone_here()
    if here is not None and here.root == Path.cwd().resolve() and _working_folder_counts.get():
        return here
    package = _installed_package()
    if package is not None:
        return engine_at(package)
    if here is not None and _working_folder_counts.get():
        return here
    hint = (
        f"{here} is not used by commands that only look at files; if you trust its code, name it with --yolov5. "
        if here is not None
        else ""
    )
    raise EngineNotFoundError(f"no YOLOv5 found. {hint}{_HOW_TO_GET_ONE}")


def clone_here() -> Engine | None:
    """The clone that is the working directory, or that lies in it as ``./yolov5``."""
    here = Path.cwd()
    places = [place for place in (here, here / "yolov5") if is_yolov5_root(place)]
    return engine_at(places[0]) if places else None


def _installed_package() -> Path | None:
    spec = importlib.util.find_spec("yolov5")
    if spec is None or spec.origin is None:
        return None
    root = Path(spec.origin).parent
    return root if is_yolov5_root(root) else None


def _package_version(root: Path) -> str:
    for line in code_in(root / "__init__.py").all(ast.Assign):
        declared = value_of(line.value)
        if isinstance(declared, str) and "__version__" in map(dotted, line.targets):
            return declared
    try:
        return importlib.metadata.version("yolov5")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _clone_version(root: Path) -> str:
    """The release that a clone's files look like: upstream's files do not contain their version."""
    if (root / "segment/train.py").is_file():
        return "7.0+" if code_in(root / "utils/general.py").imports("ultralytics") else "7.0"
    if (root / "classify/train.py").is_file() or (root / "utils/dataloaders.py").is_file():
        return "6.2"
    return "6.1" if code_in(root / "models/common.py").defines("DetectMultiBackend") else "6.0"
