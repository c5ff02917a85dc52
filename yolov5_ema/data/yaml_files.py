"""Read untrusted YAML files and texts, with a clear message for whatever cannot be used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from yolov5_ema.errors import ConfigError, UserError
from yolov5_ema.files import open_regular

_MOST_BYTES = 2**20
_MOST_VALUES = 100_000
_MOST_TEXT = 4 * 2**20
_MOST_DEPTH = 32
_MOST_BITS = 64


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with a limit on nested brackets, because its time grows with the square of their depth."""

    def fetch_flow_collection_start(self, token: Any) -> None:
        self._check_depth(self.flow_level)
        super().fetch_flow_collection_start(token)

    def add_indent(self, column: int) -> bool:
        self._check_depth(len(self.indents))
        return bool(super().add_indent(column))

    def _check_depth(self, depth: int) -> None:
        if depth > _MOST_DEPTH:
            raise yaml.YAMLError("nested too deeply")

    def whole_number(self, node: Any) -> int:
        """Refuse large numbers: many can share one hash, and a mapping of them takes hours to fill."""
        value: int = self.construct_yaml_int(node)
        if value.bit_length() > _MOST_BITS:
            raise yaml.YAMLError(f"a number of {value.bit_length():,} bits is too large for YOLOv5")
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.whole_number)


def read_yaml(file: Path, *, name: str = "") -> Any:
    """Read a YAML file: lists, mappings and plain values, up to limits that no real model or data set reaches.

    Args:
        file: the file, in UTF-8. Characters of another encoding are ignored in comments and refused otherwise. (YOLOv5
            drops them everywhere, which changes names.)
        name: the name of the file in messages.

    Raises:
        ConfigError: it is missing, unreadable, not YAML, not in UTF-8, or beyond the limits: in its size, its depth,
            or its number of values after aliases are expanded.
    """
    name = name or str(file)
    raw = _content_of(file, name)
    try:
        return parse_yaml(raw.decode("utf-8"), name)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        return _parsed_other_encoding(raw.decode("utf-8", "replace"), name, line)


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that must be a mapping.

    Raises:
        ConfigError: the file is missing, unreadable, not YAML, not a mapping, or beyond the limits of `read_yaml`.
    """
    content = read_yaml(path)
    if not isinstance(content, dict):
        kind = "empty" if content is None else f"a {type(content).__name__}"
        raise ConfigError(f"{path} must hold 'key: value' lines, but is {kind}")
    return content


def _parsed_other_encoding(text: str, name: str, line: int) -> Any:
    """Parse a text that is not in UTF-8, if only its comments are not."""
    not_utf8 = ConfigError(
        f"{name} is not valid YAML: it is not in UTF-8 (line {line}), so its text cannot be read. "
        "Save it as UTF-8 in an editor; or, if its encoding is GBK, run iconv -f GBK -t UTF-8"
    )
    try:
        content = parse_yaml(text, name)
    except ConfigError as error:
        raise not_utf8 from error
    if any("\ufffd" in value for value in _values_in(content) if isinstance(value, str)):
        raise not_utf8
    return content


def parse_yaml(text: str, name: str) -> Any:
    """Parse a YAML text, such as one on the command line, with the limits of `read_yaml`.

    Args:
        text: the YAML.
        name: the name of the text in messages.

    Raises:
        ConfigError: it is not YAML, or is beyond the limits.
    """
    if len(text) > _MOST_BYTES:
        raise _too_large(name)
    content = _parsed(text, name)
    _check_extent(content, name)
    return content


def _too_large(name: str) -> ConfigError:
    return ConfigError(
        f"{name} is larger than {_MOST_BYTES // 2**20} MiB, too large for the YAML of a model or a data set"
    )


def _content_of(file: Path, name: str) -> bytes:
    try:
        with open_regular(file) as stream:
            raw = stream.read(_MOST_BYTES + 1)
    except UserError as error:
        raise ConfigError(f"cannot read {name}: {error}") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL in it
        raise ConfigError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}") from error
    if len(raw) > _MOST_BYTES:
        raise _too_large(name)
    return raw


def _parsed(text: str, name: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise ConfigError(f"{name} is not valid YAML for YOLOv5: nested too deeply") from None
    except Exception as error:  # PyYAML's own errors; scalars such as `!!int ''` or 30 February raise others
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        raise ConfigError(f"{name} is not valid YAML: {reason}") from error


def _check_extent(content: Any, name: str) -> None:
    """Check depth and number of values: with aliases, a few hundred bytes can mean a billion values, or a circle."""
    waiting = [(content, 0)]
    values = text = 0
    while waiting:
        value, depth = waiting.pop()
        values += 1
        if isinstance(value, (str, bytes)):
            text += len(value)
        if depth > _MOST_DEPTH:
            raise ConfigError(f"{name}: values are nested more than {_MOST_DEPTH} deep, or contain themselves")
        if values > _MOST_VALUES or text > _MOST_TEXT:
            raise ConfigError(f"{name}: with its aliases expanded it holds more than {_MOST_VALUES:,} values")
        waiting.extend((part, depth + 1) for part in _parts(value))


def _values_in(content: Any) -> Iterator[Any]:
    """Each value in a content, however deep, that `_check_extent` has accepted."""
    yield content
    for part in _parts(content):
        yield from _values_in(part)


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if isinstance(value, tuple):  # a key
        return list(value)
    return list(value) if isinstance(value, (list, set)) else []
