"""The folder that a run makes for itself: gone again if the run was refused before it had results."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from yolov5_ema.engine.patching import Patches
from yolov5_ema.errors import UserError

_SETTINGS = {"opt.yaml", "hyp.yaml"}


class RunFolder:
    """What one run of a YOLOv5 script made, as its own call of `increment_path` says.

    Asking the run itself, not the project folder: another run may be making its folder there meanwhile.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._first_made: Path | None = None

    @classmethod
    def watched(cls, module: ModuleType, patches: Patches) -> RunFolder:
        """Watch the `increment_path` that a script module uses."""
        made = cls()
        increment_path = getattr(module, "increment_path", None)
        if increment_path is None:
            return made

        def noted(*args: Any, **kwargs: Any) -> Path:
            path = Path(increment_path(*args, **kwargs))
            if made._folder is None and not path.exists():
                made._folder, made._first_made = path, _first_missing(path)
            return path

        patches.set(module, "increment_path", noted)
        return made

    @contextlib.contextmanager
    def removed_if_refused(self) -> Iterator[None]:
        """On a UserError, remove the run's folder if it holds settings only, and the folders above that it made."""
        try:
            yield
        except UserError:
            self._remove()
            raise

    def _remove(self) -> None:
        if self._folder is None or self._first_made is None or not self._folder.is_dir():
            return
        files = [path for path in self._folder.rglob("*") if path.is_file()]
        if any(path.name not in _SETTINGS and "tfevents" not in path.name for path in files):
            return
        shutil.rmtree(self._folder)
        for parent in self._folder.parents:
            if parent == self._first_made.parent or any(parent.iterdir()):
                break
            parent.rmdir()


def _first_missing(path: Path) -> Path:
    missing = path
    while not missing.parent.exists():
        missing = missing.parent
    return missing
