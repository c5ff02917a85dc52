"""The folder that a YOLOv5 script uses for its run, found by watching the script's call of `increment_path`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from yolov5_ema.errors import UserError
from yolov5_ema.runs import RunFolder
from yolov5_ema.upstream.patching import Patches

_SETTINGS = {"opt.yaml", "hyp.yaml"}


class WatchedRunFolder:
    """The folder that one run of a YOLOv5 script uses, from the script's call of `increment_path`.

    The folder is made within that call. Otherwise two runs could find the same name free.
    """

    def __init__(self) -> None:
        self._made: list[RunFolder] = []
        self._held: set[Path] = set()
        self._locks = contextlib.ExitStack()

    @classmethod
    def watched(cls, module: ModuleType, patches: Patches) -> WatchedRunFolder:
        """Watch the `increment_path` that a script module uses."""
        made = cls()
        increment_path = getattr(module, "increment_path", None)
        # all ranks use the folder of the first
        if increment_path is None or int(os.environ.get("RANK", "-1")) > 0:
            return made

        def noted(*args: Any, **kwargs: Any) -> Path:
            may_exist, is_made = _asked(*args, **kwargs)
            path = Path(increment_path(*args, **kwargs))
            while not (is_made or made._make(path) or may_exist):
                following = Path(increment_path(*args, **kwargs))
                if following == path:
                    break
                path = following
            if may_exist:
                made._hold(path)
            return path

        patches.set(module, "increment_path", noted)
        return made

    @contextlib.contextmanager
    def removed_if_refused(self) -> Iterator[None]:
        """On a UserError, remove the run's folder if it holds only settings, and the parent folders made for it."""
        with self._locks:
            try:
                yield
            except UserError:
                for made in self._made:
                    _remove_without_results(made)
                raise

    def _make(self, path: Path) -> bool:
        """Try to make the folder and return whether it was made; if not, YOLOv5 tries again and reports the reason."""
        with contextlib.suppress(OSError):
            self._made.append(RunFolder.make(path.absolute()))
            return True
        return False

    def _hold(self, path: Path) -> None:
        """Lock the folder: with ``--exist-ok``, two runs could write into it, and the second one is refused."""
        if path in self._held:
            return
        with contextlib.suppress(OSError):
            self._locks.enter_context(RunFolder(path).held())
            self._held.add(path)


def _remove_without_results(made: RunFolder) -> None:
    if not made.path.is_dir():
        return
    entries = list(made.path.iterdir())
    settings = [entry for entry in entries if entry.name in _SETTINGS or "tfevents" in entry.name]
    inner = [entry for entry in entries if entry.is_dir()]
    if len(settings) + len(inner) < len(entries) or any(any(folder.iterdir()) for folder in inner):
        return
    with contextlib.suppress(OSError):
        for folder in inner:  # weights/ or labels/
            folder.rmdir()
        for file in settings:
            file.unlink()
    made.remove_if_empty()


def _asked(path: Any, exist_ok: bool = False, sep: str = "", mkdir: bool = False) -> tuple[bool, bool]:
    """From the arguments of `increment_path`: whether the folder may already exist, and whether the call makes it."""
    return bool(exist_ok), bool(mkdir)
