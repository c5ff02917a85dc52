"""Folders of runs, named as YOLOv5 names them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from yolov5_ema.errors import UserError
from yolov5_ema.files import locked
from yolov5_ema.scripts.run_folder import MadeFolder, busy_message


def fresh_folder(project: Path, name: str = "exp", exist_ok: bool = False) -> Path:
    """Make ``project/name``, or ``name2``, ``name3`` … if it is taken and ``exist_ok`` is off.

    Raises:
        UserError: it cannot be made.
    """
    return _fresh(project, name, exist_ok)[0]


def _fresh(project: Path, name: str, exist_ok: bool) -> tuple[Path, MadeFolder | None]:
    """A folder, and what was made for it; None if it was there."""
    number = 1
    while True:
        folder = project / f"{name}{number if number > 1 else ''}"
        try:
            return folder, MadeFolder(folder)
        except FileExistsError:
            if exist_ok and folder.is_dir():
                return folder, None
            if exist_ok:
                raise UserError(f"cannot make {folder}: there is a file of that name") from None
            number += 1
        except OSError as error:
            raise UserError(f"cannot make {folder}: {error.strerror or error}") from error


@contextmanager
def run_folder(
    project: Path, name: str = "exp", exist_ok: bool = False, parts: Collection[str] = ()
) -> Iterator[Path]:
    """`fresh_folder` for the length of a ``with`` block; if the block fails, what it made is removed again.

    Args:
        project, name, exist_ok: as in `fresh_folder`.
        parts: names of the folders that the run makes in its own; others are another process's, and stay.
    """
    folder, made = _fresh(project, name, exist_ok)
    with held(folder):
        try:
            yield folder
        except BaseException:
            if made is not None:
                made.remove(parts)
            raise


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other runs out of a run folder for the length of a ``with`` block.

    Raises:
        UserError: another run is at work there.
    """
    with locked(folder, busy_message(folder)):
        yield
