"""Writing files so that they are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from yolov5_ema.errors import UserError


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
