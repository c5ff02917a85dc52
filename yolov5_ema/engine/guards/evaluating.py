"""``eval`` and ``exec`` of YOLOv5's modules: literals, the few forms of a checked row, and nothing else.

Each module that says ``eval`` or ``exec`` gets functions of that name among its own globals, which Python finds before
the built-in ones.
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

_LOCAL_NAMES = ("nc", "anchors")  # what parse_model has under these names, which YAMLs use as arguments
_LONGEST = 1_000_000  # characters of a literal
_NO_LITERAL = (SyntaxError, ValueError, TypeError, MemoryError, RecursionError)


def evaluate(source: Any, *scopes: Any) -> Any:
    """``eval``, for what can run nothing: see the module's head. ``scopes`` are not looked at.

    Raises:
        ConfigError: the text is anything else.
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
        if _is_unknown_word(text, frame):  # parse_model goes on with the text itself: "nearest"
            raise NameError(f"name {text!r} is not defined")
    raise ConfigError(
        f"{reprlib.repr(source)} would be run as code by {_place(frame)}; only texts, numbers and lists of them are "
        "taken out of a file. Nothing was run."
    )


def _is_known(text: str, frame: FrameType) -> bool:
    """Whether a text is one of the forms that a checked row, or its activation, has in ``parse_model``."""
    if text == "ch[f]":
        return frame.f_code.co_name == "parse_model"
    if text in _LOCAL_NAMES:
        return text in frame.f_locals
    return is_layer_of_literals(text) or _is_layer(text, frame)


def _is_layer(text: str, frame: FrameType) -> bool:
    """Whether a plain name, or ``nn.`` and one, is that of a kind of layers."""
    if not re.fullmatch(r"(nn\.)?[A-Za-z_]\w*", text):
        return False
    found = getattr(nn, text[3:], None) if text.startswith("nn.") else frame.f_globals.get(text)
    if not isinstance(found, type) or found.__name__ in WRAPPERS:
        return False
    of_tensorflow = found.__name__.startswith("TF") and found.__module__ == frame.f_globals.get("__name__")
    return issubclass(found, nn.Module) or of_tensorflow


def execute(source: Any, *scopes: Any) -> None:
    """``exec``, for the downloads of YOLOv5's own data YAMLs.

    Raises:
        ConfigError: the text is anything else.
    """
    if approved_download(source):
        exec(source, *scopes)
        return
    raise ConfigError(
        f"{_place(sys._getframe(1))} would run code out of a file: {reprlib.repr(source)}. Nothing was run. "
        "If you know where the file comes from, run it yourself."
    )


def _is_unknown_word(text: str, frame: FrameType) -> bool:
    scopes = (frame.f_locals, frame.f_globals, vars(builtins))
    return text.isidentifier() and not any(text in scope for scope in scopes)


def _place(frame: FrameType) -> str:
    return f"{frame.f_globals.get('__name__', 'YOLOv5')}.{frame.f_code.co_name}"


def _needed(module: SourceModule) -> str | None:
    return "it evaluates texts" if {"eval", "exec"} & module.code.names else None


def _apply(module: SourceModule, patches: Patches) -> None:
    patches.set(module.module, "eval", evaluate)
    patches.set(module.module, "exec", execute)


EVALUATING = Quirk(
    name="evaluating",
    symptom="code in a data YAML, a model YAML, a checkpoint or an exported model's metadata runs",
    versions="all",
    needed=_needed,
    settled=by_absence,
    apply=_apply,
)
