"""The folder that a run makes for itself: gone again if the run was refused before it had results.

Other processes work beside it and, if somebody names such a ``--project``, within it. So what is taken away is what the
run made, and a folder above it only if the run made it and it is empty.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from yolov5_ema.errors import UserError
from yolov5_ema.files import locked
from yolov5_ema.upstream.patching import Patches

_SETTINGS = {"opt.yaml", "hyp.yaml"}


class MadeFolder:
    """A folder that this process made, and the folders above it that it made for it."""

    def __init__(self, folder: Path) -> None:
        """Make the folder.

        Raises:
            OSError: it cannot be made; a FileExistsError where there is one, whoever made it and when.
        """
        self.folder = folder.absolute()
        self._made = _make(self.folder)

    def remove(self, parts: Collection[str] = ()) -> None:
        """Take away the files right in the folder, these of the folders in it, and what is empty then.

        Args:
            parts: names of folders that go with all that is in them.
        """
        with contextlib.suppress(OSError):
            for entry in list(os.scandir(self.folder)):
                if entry.is_symlink() or not entry.is_dir():
                    os.unlink(entry.path)
                elif entry.name in parts:
                    shutil.rmtree(entry.path, ignore_errors=True)
        self.remove_if_empty()

    def remove_if_empty(self) -> None:
        """Take the folder away, and those above it that were made for it, as far as they are empty."""
        _remove_empty(self._made)


def _make(folder: Path) -> list[Path]:
    """Make a folder and what is missing above it; returns what this call made, the outermost first."""
    missing = [folder]
    while not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    made: list[Path] = []
    try:
        for above in reversed(missing[1:]):
            with contextlib.suppress(FileExistsError):  # another process was first: it is not ours
                above.mkdir()
                made.append(above)
        folder.mkdir()
    except BaseException:
        _remove_empty(made)
        raise
    return [*made, folder]


def _remove_empty(made: list[Path]) -> None:
    with contextlib.suppress(OSError):
        for folder in reversed(made):
            folder.rmdir()


class RunFolder:
    """What one run of a YOLOv5 script made, as its own call of `increment_path` says.

    The folder is made at once: had the script made it a little later, two runs could have found the same name free.
    """

    def __init__(self) -> None:
        self._made: list[MadeFolder] = []
        self._held: set[Path] = set()
        self._locks = contextlib.ExitStack()

    @classmethod
    def watched(cls, module: ModuleType, patches: Patches) -> RunFolder:
        """Watch the `increment_path` that a script module uses."""
        made = cls()
        increment_path = getattr(module, "increment_path", None)
        if increment_path is None or int(os.environ.get("RANK", "-1")) > 0:  # the first rank's is for all
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
        """On a UserError, remove the run's folder if it holds settings only, and the folders above that it made."""
        with self._locks:
            try:
                yield
            except UserError:
                for made in self._made:
                    _remove_without_results(made)
                raise

    def _make(self, path: Path) -> bool:
        """Whether the folder was made now; YOLOv5 makes it too, and says why it cannot."""
        with contextlib.suppress(OSError):
            self._made.append(MadeFolder(path))
            return True
        return False

    def _hold(self, path: Path) -> None:
        """With ``--exist-ok`` two runs could write into one folder: the second is refused."""
        if path in self._held:
            return
        with contextlib.suppress(OSError):
            self._locks.enter_context(locked(path, busy_message(path)))
            self._held.add(path)


def _remove_without_results(made: MadeFolder) -> None:
    if not made.folder.is_dir():
        return
    entries = list(made.folder.iterdir())
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


def busy_message(folder: Path) -> str:
    """What is said of a run folder that another run is writing to."""
    return f"another run is writing to {folder}; wait for its end, or choose another --name"


def _asked(path: Any, exist_ok: bool = False, sep: str = "", mkdir: bool = False) -> tuple[bool, bool]:
    """Whether `increment_path` is to take a folder that may be there already, and whether it makes it itself."""
    return bool(exist_ok), bool(mkdir)
