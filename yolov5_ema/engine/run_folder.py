"""The folder that a run makes for itself: gone again if the run was refused before it had results."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from yolov5_ema.engine.patching import Patches
from yolov5_ema.errors import UserError
from yolov5_ema.files import locked

_SETTINGS = {"opt.yaml", "hyp.yaml"}


class RunFolder:
    """What one run of a YOLOv5 script made, as its own call of `increment_path` says.

    Asking the run itself, not the project folder: another run may be making its folder there meanwhile.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._first_made: Path | None = None
        self._held: set[Path] = set()
        self._locks = contextlib.ExitStack()

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
            if _may_exist(*args, **kwargs):
                made._hold(path)
            return path

        patches.set(module, "increment_path", noted)
        return made

    @contextlib.contextmanager
    def removed_if_refused(self) -> Iterator[None]:
        """On a UserError, remove the run's folder if it holds settings only, and the folders above that it made."""
        with self._locks:
            try:
                yield
            except UserError:
                self._remove()
                raise

    def _hold(self, path: Path) -> None:
        """With ``--exist-ok`` two runs could write into one folder: the second is refused."""
        if path in self._held or int(os.environ.get("RANK", "-1")) > 0:
            return
        with contextlib.suppress(OSError):  # YOLOv5 makes it too, and says why it cannot
            path.mkdir(parents=True, exist_ok=True)
            self._locks.enter_context(locked(path, busy_message(path)))
            self._held.add(path)

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


def busy_message(folder: Path) -> str:
    """What is said of a run folder that another run is writing to."""
    return f"another run is writing to {folder}; wait for its end, or choose another --name"


def _may_exist(path: Any, exist_ok: bool = False, *args: Any, **kwargs: Any) -> bool:
    """Whether `increment_path` was asked to take a folder that may be there already."""
    return bool(exist_ok)


def _first_missing(path: Path) -> Path:
    missing = path
    while not missing.parent.exists():
        missing = missing.parent
    return missing
