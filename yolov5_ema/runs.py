"""The folder that a run makes for itself: named as YOLOv5 names it, held while the run works, gone if the run fails.

Other processes work beside it and, if somebody names such a ``--project``, within it. So what is taken away is what the
run made, and a folder above it only if the run made it and it is empty.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from yolov5_ema.errors import UserError
from yolov5_ema.files import free_names, locked


class RunFolder:
    """The folder of a run. Use `RunFolder.make` or `RunFolder.fresh`.

    Attributes:
        path: of the folder.
    """

    def __init__(self, path: Path, made: Sequence[Path] = ()) -> None:
        """A folder that is there.

        Args:
            path: of the folder.
            made: what this process made of it and of the folders above it, the outermost first.
        """
        self.path = path
        self._made = made

    @classmethod
    def make(cls, path: Path) -> RunFolder:
        """Make the folder, and what is missing above it.

        Raises:
            OSError: it cannot be made; a FileExistsError where there is one, whoever made it and when.
        """
        return cls(path, _make(path.absolute()))

    @classmethod
    def fresh(cls, project: Path, name: str = "exp", exist_ok: bool = False) -> RunFolder:
        """Make ``project/name``, or ``name2``, ``name3`` … if it is taken.

        Args:
            project: the folder of all runs.
            name: of this one.
            exist_ok: use a folder of that name that is there.

        Raises:
            UserError: it cannot be made.
        """
        names = free_names(name, joint="")
        while True:
            path = project / next(names)
            try:
                return cls.make(path)
            except FileExistsError:
                if exist_ok and path.is_dir():
                    return cls(path)
                if exist_ok:
                    raise UserError(f"cannot make {path}: there is a file of that name") from None
            except OSError as error:
                raise UserError(f"cannot make {path}: {error.strerror or error}") from error

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other runs out of the folder for the length of a ``with`` block.

        Raises:
            UserError: another run is at work there.
        """
        with locked(
            self.path, f"another run is writing to {self.path}; wait for its end, or choose another --name"
        ):
            yield

    def remove(self, parts: Collection[str] = ()) -> None:
        """If this process made the folder, take away the files right in it, and then what is empty.

        Args:
            parts: names of folders in it that go with all that is in them; others are another process's, and stay.
        """
        if not self._made:
            return
        with contextlib.suppress(OSError):
            for entry in list(os.scandir(self._made[-1])):
                if entry.is_symlink() or not entry.is_dir():
                    os.unlink(entry.path)
                elif entry.name in parts:
                    shutil.rmtree(entry.path, ignore_errors=True)
        self.remove_if_empty()

    def remove_if_empty(self) -> None:
        """Take away the folder and those above it that were made for it, as far as they are empty."""
        _remove_empty(self._made)


@contextmanager
def run_folder(
    project: Path, name: str = "exp", exist_ok: bool = False, parts: Collection[str] = ()
) -> Iterator[Path]:
    """A folder of `RunFolder.fresh`, held for the length of a ``with`` block and removed if the block fails.

    Args:
        project, name, exist_ok: as in `RunFolder.fresh`.
        parts: as in `RunFolder.remove`: the folders that the run makes in its own.
    """
    folder = RunFolder.fresh(project, name, exist_ok)
    with folder.held():
        try:
            yield folder.path
        except BaseException:
            folder.remove(parts)
            raise


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


def _remove_empty(made: Sequence[Path]) -> None:
    with contextlib.suppress(OSError):
        for folder in reversed(made):
            folder.rmdir()
