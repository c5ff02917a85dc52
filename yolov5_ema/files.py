"""Writing files so that they are there whole or not at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from yolov5_ema.errors import UserError


def open_regular(file: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading, if it is one: a named pipe or a device would be waited for, or never end.

    Raises:
        OSError: as ``open`` does.
        UserError: it is a folder, a pipe, a socket or a device.
    """
    descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{file} is no file that can be read, but a folder, a pipe, a socket or a device")
    return os.fdopen(descriptor, "rb")


def write_whole(file: Path, text: str, *, parents: bool = False) -> None:
    """Write a text file beside its place and move it there; one that was there is replaced.

    Args:
        file: the place.
        text: its content.
        parents: make the folders above it that lack.

    Raises:
        UserError: it cannot be written; what was there still is.
    """
    draft = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        if parents:
            file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(draft, "w", encoding="utf-8", newline="\n") as stream:
                stream.write(text)
            os.replace(draft, file)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror or error}") from error


@contextmanager
def replacement(file: str | os.PathLike[str]) -> Iterator[Path]:
    """A draft beside the place of a file, moved there in the end: whoever reads sees the old one or the new one, whole.

    The draft has the same name each time, so that one which a killed process left is written over by the next.

    Raises:
        UserError: it cannot be written; what was there still is.
    """
    place = Path(os.path.realpath(file))
    draft = place.with_name(f".{place.name}.tmp")
    try:
        yield draft
        with open(
            draft, "rb+"
        ) as stream:  # a computer that goes down must not find the name before the content
            os.fsync(stream.fileno())
        os.replace(draft, place)
    except OSError as error:
        there = "; the one that was there is whole" if place.is_file() else ""
        raise UserError(f"{file} cannot be written: {error.strerror or error}{there}") from error
    finally:
        draft.unlink(missing_ok=True)


def refuse_present(files: Sequence[Path], force: bool) -> None:
    """Refuse to write over what is there.

    Raises:
        UserError: one of the files exists and ``force`` was not said, or is a folder.
    """
    for file in files:
        if file.is_dir():
            raise UserError(f"{file} is a folder; name a file with -o")
        if file.exists() and not force:
            raise UserError(f"{file} is there already; --force replaces it, -o names another")


@contextmanager
def whole_files(files: Sequence[Path]) -> Iterator[list[Path]]:
    """Drafts beside the places of files; all are moved there in the end, or none is left.

    Raises:
        UserError: they cannot be written.
    """
    drafts = [file.with_name(f".{file.name}.{os.getpid()}.tmp") for file in files]
    with ExitStack() as stack:
        for draft in drafts:
            stack.callback(draft.unlink, missing_ok=True)
        try:
            yield drafts
            for draft, file in zip(drafts, files):
                os.replace(draft, file)
        except (
            OSError,
            RuntimeError,
        ) as error:  # torch and safetensors raise their own for a folder that lacks
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise UserError(f"{files[0]} cannot be written: {reason}") from error
