"""Reading no more of a file than can be used, whatever it is and whoever gave it."""

from __future__ import annotations

import json
import os
import re
from pathlib import PurePosixPath
from typing import Any

from yolov5_ema.errors import UserError
from yolov5_ema.files import open_regular

MOST_TEXT = 256 * 2**20
"""Bytes of a text file, such as a list of millions of lines; a JSON of annotations is allowed more."""
MOST_JSON = 4 * 2**30


def read_bytes(file: str | os.PathLike[str], most: int = MOST_TEXT) -> bytes:
    """The content of a regular file that has no more bytes than ``most``.

    Raises:
        OSError: as ``open`` does.
        UserError: it is no regular file, or larger.
    """
    with open_regular(file) as stream:
        if os.fstat(stream.fileno()).st_size <= most:
            content = stream.read(most + 1)  # it may grow meanwhile
            if len(content) <= most:
                return content
    raise UserError(f"{os.fspath(file)} is larger than {_in_words(most)}, more than such a file can have")


def read_text(
    file: str | os.PathLike[str], most: int = MOST_TEXT, *, encoding: str = "utf-8", errors: str = "strict"
) -> str:
    """The same as text, with any ends of lines as ``\\n``.

    Raises:
        OSError: as ``open`` does.
        UnicodeDecodeError: it is no text.
        UserError: it is no regular file, or larger.
    """
    text = read_bytes(file, most).decode(encoding, errors)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(file: str | os.PathLike[str], most: int = MOST_TEXT) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: as ``open`` does.
        ValueError: it is no JSON.
        UserError: it is no regular file, or larger.
    """
    return parse_json(read_bytes(file, most))


def parse_json(text: str | bytes) -> Any:
    """What a JSON text holds; a text that Python's reader cannot end with is no JSON either.

    Raises:
        ValueError: it is none, is nested too deeply, or has more in it than this machine can hold.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except MemoryError:
        raise ValueError("it holds more than fits into memory") from None


def leads_outside(name: object) -> bool:
    """Whether a name out of an archive, a journal or a manifest is none of a file within a folder.

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
