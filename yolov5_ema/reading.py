"""Reading files that nobody has checked: regular files only, and never more than a given number of bytes."""

from __future__ import annotations

import json
import os
import re
from pathlib import PurePosixPath
from typing import Any

from yolov5_ema.errors import UserError
from yolov5_ema.files import open_regular

MOST_TEXT = 256 * 2**20
"""Limit in bytes for a text file: enough for a list of millions of lines. A JSON file of annotations may be larger."""
MOST_JSON = 4 * 2**30


def read_bytes(file: str | os.PathLike[str], most: int = MOST_TEXT) -> bytes:
    """The content of a regular file of at most ``most`` bytes.

    Raises:
        OSError: as ``open`` does.
        UserError: it is not a regular file, or is larger.
    """
    with open_regular(file) as stream:
        if os.fstat(stream.fileno()).st_size <= most:
            # the file may have grown since its size was read
            content = stream.read(most + 1)
            if len(content) <= most:
                return content
    raise UserError(f"{os.fspath(file)} is larger than {_in_words(most)}, the limit for such a file")


def read_text(
    file: str | os.PathLike[str], most: int = MOST_TEXT, *, encoding: str = "utf-8", errors: str = "strict"
) -> str:
    """The content of a regular text file of at most ``most`` bytes, with every line ending as ``\\n``.

    Raises:
        OSError: as ``open`` does.
        UnicodeDecodeError: it is not text in this encoding.
        UserError: it is not a regular file, or is larger.
    """
    text = read_bytes(file, most).decode(encoding, errors)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(file: str | os.PathLike[str], most: int = MOST_TEXT) -> Any:
    """The value in a JSON file of at most ``most`` bytes.

    Raises:
        OSError: as ``open`` does.
        ValueError: it is not valid JSON.
        UserError: it is not a regular file, or is larger.
    """
    return parse_json(read_bytes(file, most))


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not valid JSON, is nested too deeply, or needs more memory than there is.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except MemoryError:
        raise ValueError("it holds more than fits into memory") from None


def leads_outside(name: object) -> bool:
    """Whether a name from an archive, a journal or a manifest could lead out of the folder it is meant for.

    A name that is not text, is empty, or has more than 4096 characters counts as one that could.

    Example:
        >>> leads_outside("val/a.jpg"), leads_outside("../a.jpg"), leads_outside("C:/a"), leads_outside(3)
        (False, True, True, True)
    """
    if not isinstance(name, str) or not name or "\0" in name or len(name) > 4096:
        return True
    plain = name.replace("\\", "/")
    return plain.startswith("/") or bool(re.match("[A-Za-z]:", plain)) or ".." in PurePosixPath(plain).parts


def _in_words(size: int) -> str:
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:g} {name}"
    return f"{size} bytes"
