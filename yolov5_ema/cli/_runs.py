"""Folders of runs, named as YOLOv5 names them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from yolov5_ema.engine.run_folder import busy_message
from yolov5_ema.errors import UserError
from yolov5_ema.files import locked


def fresh_folder(project: Path, name: str = "exp", exist_ok: bool = False) -> Path:
    """Make ``project/name``, or ``name2``, ``name3`` … if it is taken and ``exist_ok`` is off.

    Raises:
        UserError: it cannot be made.
    """
    number = 1
    while True:
        folder = project / f"{name}{number if number > 1 else ''}"
        try:
            folder.mkdir(parents=True, exist_ok=exist_ok)
            return folder
        except FileExistsError:
            if exist_ok:
                raise UserError(f"cannot make {folder}: there is a file of that name") from None
            number += 1
        except OSError as error:
            raise UserError(f"cannot make {folder}: {error.strerror or error}") from error


@contextmanager
def run_folder(project: Path, name: str = "exp", exist_ok: bool = False) -> Iterator[Path]:
    """`fresh_folder` for the length of a ``with`` block; removed again if the block fails, unless it was there."""
    first_made = project
    while not first_made.parent.exists():
        first_made = first_made.parent
    was_there = project.exists()
    target = project / name
    kept = exist_ok and target.exists()
    folder = fresh_folder(project, name, exist_ok)
    with held(folder):
        try:
            yield folder
        except BaseException:
            if not kept:
                shutil.rmtree(folder if was_there else first_made, ignore_errors=True)
            raise


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other runs out of a run folder for the length of a ``with`` block.

    Raises:
        UserError: another run is at work there.
    """
    with locked(folder, busy_message(folder)):
        yield
