"""The files of a run, which may be anybody's: read if they lie in its folder, up to a size, and never waited for."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yolov5_ema.data.yaml_files import read_yaml
from yolov5_ema.errors import UserError
from yolov5_ema.files import open_regular

_MOST_JSON = 32 * 2**20
_MOST_DIGITS = 20
_DEEPEST = 32
_SECRET_NAME = re.compile(r"token|secret|passw|credential|api_?key|access_?key|private_?key", re.IGNORECASE)
_SECRET_TEXT = re.compile(r"\b(hf_|ghp_|gho_|github_pat_|glpat-|sk-|xox[abp]-|AKIA|AIza|eyJ)[\w-]{12,}")
_LOGIN = re.compile(r"(?<=://)[^/\s@]*:[^/\s@]*@")
HIDDEN = "(not shown)"


def file_of(folder: Path, name: str) -> Path | None:
    """A file of a run by its name; None if there is none.

    Raises:
        UserError: it is a link to outside of the folder: whatever it leads to would get into the page; or no file.
    """
    file = folder / name
    try:
        if not os.path.lexists(file):
            return None
        inside = os.path.realpath(file).startswith(os.path.realpath(folder) + os.sep)
    except (OSError, ValueError):
        return None
    if not inside:
        raise UserError(
            f"{file} is a link to outside of the run's folder; it is not read. Put a copy in its place"
        )
    if file.exists() and not file.is_file():
        raise UserError(f"{file} is no file")
    return file if file.exists() else None


def bytes_of(file: Path, most: int) -> bytes:
    """The content of a file.

    Raises:
        UserError: it cannot be read, is no regular file, or is larger than ``most``.
    """
    try:
        with open_regular(file) as stream:
            raw = stream.read(most + 1)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error
    if len(raw) > most:
        raise UserError(f"{file} is larger than {most // 2**20} MiB: no file of a run")
    return raw


def json_of(file: Path) -> Any:
    """What a JSON file holds: no number in it is infinite, or of more digits than a count has.

    Raises:
        UserError: it cannot be read, is too large, too deep, or no JSON; names the place.
    """
    try:
        text = bytes_of(file, _MOST_JSON).decode("utf-8-sig")
        content = json.loads(text, parse_constant=_no_number, parse_int=_whole)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise UserError(f"{file} is no JSON, or cut off: {place}") from error
    except RecursionError as error:
        raise UserError(f"{file} is nested too deeply to be what is needed") from error
    except ValueError as error:
        raise UserError(f"{file} is no JSON of a run: {str(error)[:200]}") from error
    return content


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON's")


def _whole(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def settings_of_yaml(file: Path) -> dict[str, Any]:
    """Settings by their names out of a YAML file, without what is secret.

    Raises:
        UserError: it is no YAML, or no such settings.
    """
    content = read_yaml(file)
    if not isinstance(content, dict):
        raise UserError(f"{file} must hold settings by their names; it is damaged, or another file")
    return without_secrets({str(key): value for key, value in content.items()})


def without_secrets(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without tokens, passwords and keys, whichever they are known by: their name, or how they look."""
    return {
        key: HIDDEN if _SECRET_NAME.search(key) and value not in (None, "", False) else _masked(value)
        for key, value in settings.items()
    }


def _masked(value: Any, depth: int = 0) -> Any:
    if isinstance(value, str):
        return _SECRET_TEXT.sub(HIDDEN, _LOGIN.sub("…@", value))
    if depth > _DEEPEST:
        return HIDDEN
    if isinstance(value, (list, tuple, set)):
        return [_masked(part, depth + 1) for part in value]
    if isinstance(value, dict):
        held = {str(key): _masked(part, depth + 1) for key, part in value.items()}
        return {key: HIDDEN if _SECRET_NAME.search(key) and part else part for key, part in held.items()}
    return value
