"""The output folder of a run: named as YOLOv5 names it, locked during the run, and removed if the run fails.

Other processes may write next to it or, with a suitable ``--project``, into it. A failed run therefore removes only
what it made, and a parent folder only if the run made it and it is empty.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from yolov5_ema.errors import UserError
from yolov5_ema.files import free_names, locked, why_not_written, why_unwritable


class RunFolder:
    """The folder of a run. Use `RunFolder.make` or `RunFolder.fresh`.

    Attributes:
        path: of the folder.
    """

    def __init__(self, path: Path, made: Sequence[Path] = ()) -> None:
        """Describe an existing folder.

        Args:
            path: the path of the folder.
            made: the folders, out of this one and its parents, that this process made; the outermost first.
        """
        self.path = path
        self._made = made

    @classmethod
    def make(cls, path: Path) -> RunFolder:
        """Make the folder and its missing parents.

        Raises:
            OSError: it cannot be made; a FileExistsError if it already exists.
        """
        return cls(path, _make(path.absolute()))

    @classmethod
    def fresh(cls, project: Path, name: str = "exp", exist_ok: bool = False) -> RunFolder:
        """Make ``project/name``, or ``name2``, ``name3`` … if it is taken.

        Args:
            project: the folder of all runs.
            name: the name of this run.
            exist_ok: use an existing folder of this name.

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
                    return cls._existing(path)
                if exist_ok:
                    raise UserError(f"cannot make {path}: there is a file of that name") from None
            except OSError as error:
                raise UserError(f"cannot make {path}: {why_not_written(path, error)}") from error

    @classmethod
    def _existing(cls, path: Path) -> RunFolder:
        said = why_unwritable(path / "new")
        if said is not None:
            raise UserError(f"cannot write to {path}: {said}")
        return cls(path)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the folder against other runs during a ``with`` block.

        Raises:
            UserError: another run is writing to it.
        """
        with locked(self.path, f"another run is writing to {self.path}; wait for its end, or choose another --name"):
            yield

    def remove(self, parts: Collection[str] = ()) -> None:
        """If this process made the folder, remove the files directly in it, then the folders that are empty.

        Args:
            parts: names of subfolders to remove with their content; others belong to other processes and stay.
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
        """Remove the folder and the parents that were made for it, if they are empty."""
        _remove_empty(self._made)


@contextmanager
def run_folder(project: Path, name: str = "exp", exist_ok: bool = False, parts: Collection[str] = ()) -> Iterator[Path]:
    """A folder from `RunFolder.fresh`, locked during a ``with`` block and removed if the block fails.

    Args:
        project, name, exist_ok: as in `RunFolder.fresh`.
        parts: as in `RunFolder.remove`: the subfolders that the run makes.
    """
    folder = RunFolder.fresh(project, name, exist_ok)
    with folder.held():
        try:
            yield folder.path
        except BaseException:
            folder.remove(parts)
            raise


def _make(folder: Path) -> list[Path]:
    """Make a folder and its missing parents; return those that this call made, the outermost first."""
    missing = [folder]
    while not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    made: list[Path] = []
    try:
        for above in reversed(missing[1:]):
            with contextlib.suppress(FileExistsError):  # another process made it first
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
