"""``eval`` and ``exec`` in YOLOv5's modules: they accept literals and the few forms of a checked row, nothing else.

Each module that uses ``eval`` or ``exec`` gets functions of these names in its globals, which Python finds before the
built-in ones.
"""

from __future__ import annotations

import ast
import builtins
import re
import reprlib
import sys
from types import FrameType
from typing import Any

from torch import nn

from yolov5_ema.cfgs.rows import WRAPPERS, is_layer_of_literals
from yolov5_ema.engine.quirks.base import Quirk, SourceModule, by_absence
from yolov5_ema.errors import ConfigError
from yolov5_ema.upstream.data_yaml import approved_download
from yolov5_ema.upstream.patching import Patches

_LOCAL_NAMES = ("nc", "anchors")  # local variables of parse_model that YAMLs use as arguments
_LONGEST = 1_000_000  # characters of a literal
_NO_LITERAL = (SyntaxError, ValueError, TypeError, MemoryError, RecursionError)


def evaluate(source: Any, *scopes: Any) -> Any:
    """A replacement for ``eval`` that cannot run code, see the head of this module. ``scopes`` are ignored.

    Raises:
        ConfigError: the text is neither a literal nor a form of a checked row.
    """
    frame = sys._getframe(1)
    text = source.strip() if isinstance(source, str) else ""
    if isinstance(source, str) and len(text) <= _LONGEST:
        try:
            return ast.literal_eval(text)
        except _NO_LITERAL:
            pass
        if _is_known(text, frame):
            return eval(text, frame.f_globals, frame.f_locals)
        if _is_unknown_word(text, frame):  # parse_model then uses the text itself, such as "nearest"
            raise NameError(f"name {text!r} is not defined")
    raise ConfigError(
        f"{reprlib.repr(source)} would be run as code by {_place(frame)}; only texts, numbers and lists of them are "
        "read from a file. Nothing was run."
    )


def _is_known(text: str, frame: FrameType) -> bool:
    """Whether a text is one of the forms that ``parse_model`` evaluates for a checked row or its activation."""
    if text == "ch[f]":
        return frame.f_code.co_name == "parse_model"
    if text in _LOCAL_NAMES:
        return text in frame.f_locals
    return is_layer_of_literals(text) or _is_layer(text, frame)


def _is_layer(text: str, frame: FrameType) -> bool:
    """Whether a plain name, with or without ``nn.``, is the name of a layer class."""
    if not re.fullmatch(r"(nn\.)?[A-Za-z_]\w*", text):
        return False
    found = getattr(nn, text[3:], None) if text.startswith("nn.") else frame.f_globals.get(text)
    if not isinstance(found, type) or found.__name__ in WRAPPERS:
        return False
    of_tensorflow = found.__name__.startswith("TF") and found.__module__ == frame.f_globals.get("__name__")
    return issubclass(found, nn.Module) or of_tensorflow


def execute(source: Any, *scopes: Any) -> None:
    """A replacement for ``exec`` that runs only the downloads of approved data YAMLs, see `approved_download`.

    Raises:
        ConfigError: the text is anything else.
    """
    if approved_download(source):
        exec(source, *scopes)
        return
    raise ConfigError(
        f"{_place(sys._getframe(1))} would run code from a file: {reprlib.repr(source)}. Nothing was run. "
        "If you trust the source of the file, run the code yourself."
    )


def _is_unknown_word(text: str, frame: FrameType) -> bool:
    scopes = (frame.f_locals, frame.f_globals, vars(builtins))
    return text.isidentifier() and not any(text in scope for scope in scopes)


def _place(frame: FrameType) -> str:
    return f"{frame.f_globals.get('__name__', 'YOLOv5')}.{frame.f_code.co_name}"


def _apply(module: SourceModule, patches: Patches) -> None:
    patches.set(module.module, "eval", evaluate)
    patches.set(module.module, "exec", execute)


EVALUATING = Quirk(
    name="evaluating",
    symptom="code in a data YAML, a model YAML, a checkpoint or an exported model's metadata runs",
    versions="all",
    needed=lambda module: {"eval", "exec"} & module.code.names,
    reason="it runs texts with eval or exec",
    settled=by_absence,
    apply=_apply,
)
