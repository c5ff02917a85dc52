"""Read the files of a run safely, because the run may come from somebody else.

Files are read only from the run's own folder and only up to a limited size, and reading never blocks.
"""

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
    """The path of a run's file; None if it does not exist.

    Raises:
        UserError: it is not a file, or it is a link to outside of the folder, whose content would get into the page.
    """
    file = folder / name
    try:
        if not os.path.lexists(file):
            return None
        inside = os.path.realpath(file).startswith(os.path.realpath(folder) + os.sep)
    except (OSError, ValueError):
        return None
    if not inside:
        raise UserError(f"{file} is a link to outside of the run's folder; it is not read. Put a copy in its place")
    if file.exists() and not file.is_file():
        raise UserError(f"{file} is not a file")
    return file if file.exists() else None


def bytes_of(file: Path, most: int) -> bytes:
    """The content of a file.

    Raises:
        UserError: it cannot be read, is not a regular file, or is larger than ``most`` bytes.
    """
    try:
        with open_regular(file) as stream:
            raw = stream.read(most + 1)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error
    if len(raw) > most:
        raise UserError(f"{file} is larger than {most // 2**20} MiB: not a file of a run")
    return raw


def json_of(file: Path) -> Any:
    """The content of a JSON file. Infinite numbers and numbers with too many digits are refused.

    Raises:
        UserError: it cannot be read, is too large, is nested too deeply, or is not JSON. Names the place.
    """
    try:
        text = bytes_of(file, _MOST_JSON).decode("utf-8-sig")
        content = json.loads(text, parse_constant=_no_number, parse_int=_whole)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise UserError(f"{file} is not JSON, or is cut off: {place}") from error
    except RecursionError as error:
        raise UserError(f"{file} is nested too deeply to be what is needed") from error
    except ValueError as error:
        raise UserError(f"{file} is not a JSON file of a run: {str(error)[:200]}") from error
    return content


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")


def _whole(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def settings_of_yaml(file: Path) -> dict[str, Any]:
    """The settings in a YAML file, by name, without secrets.

    Raises:
        UserError: it is not YAML, or does not hold settings.
    """
    content = read_yaml(file)
    if not isinstance(content, dict):
        raise UserError(f"{file} must hold settings by their names; it is damaged, or another file")
    return without_secrets({str(key): value for key, value in content.items()})


def without_secrets(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without tokens, passwords and keys, which are recognized by their names or by their values."""
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
