"""Values in a model YAML: what kind they are, and how they are written."""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Mapping
from typing import Any

import yaml

_LONGEST_NAME = 200
_PLAIN_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
# Strings in args that the parsers evaluate to a value: written without quotes, as in their own YAMLs.
_EVALUATED = frozenset({"None", "nc", "anchors", "kpt_shape"})


def is_plain_name(text: Any) -> bool:
    """Whether ``text`` is a module name such as ``C3`` or ``nn.Upsample``, not other code."""
    return isinstance(text, str) and len(text) <= _LONGEST_NAME and _PLAIN_NAME.fullmatch(text) is not None


def is_int(value: Any) -> bool:
    """Whether a value of a YAML is a whole number; ``true`` is not one."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value of a YAML is a finite number; ``true`` is not one."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def copied(value: Any) -> Any:
    """A copy of a value that shares no mapping and no list with it."""
    if isinstance(value, Mapping):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [copied(item) for item in value]
    return value


def shown(value: Any, most: int = 300) -> str:
    """A value from the file, shortened for a message."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def kind_of(value: Any) -> str:
    """What a value is, for a message."""
    if value is None:
        return "nothing"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    return f"{type(value).__name__} {reprlib.repr(value)}"


def flow(value: Any) -> str:
    """YAML for a value on one line, in the manner of YOLOv5's own files."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key_text(k)}: {flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(flow(item) for item in value) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "True", False: "False"}[value]
    if isinstance(value, str):
        return _flow_text(value)
    return yaml.safe_dump(value).split("\n")[0]


def key_text(key: Any) -> str:
    """YAML for a key of a mapping."""
    bare = is_plain_name(key) and yaml.safe_load(key) == key
    return key if bare else flow(key)


def _flow_text(text: str) -> str:
    if text in _EVALUATED or (is_plain_name(text) and text.startswith("nn.")):
        return text
    return "'" + text.replace("'", "''") + "'" if text.isprintable() else json.dumps(text)
