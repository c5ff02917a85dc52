"""``models/tf.py`` rebuilds a model in TensorFlow from the rows in a checkpoint, which are checked here as well.

Its `parse_model` evaluates the names of modules and arguments, as that of ``models/yolo.py`` does. It needs each module
by its name, because it puts ``TF`` before the name.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from yolov5_ema.blocks.registry import block_of
from yolov5_ema.cfgs.rows import checked_model
from yolov5_ema.engine.quirks.base import Quirk, SourceModule
from yolov5_ema.errors import ConfigError
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.patching import Patches

_WHERE = "the model's own YAML"


def _checked(parse_model: Callable[..., Any], known: dict[str, Any], engine: Engine) -> Callable[..., Any]:
    @functools.wraps(parse_model)
    def wrapper(d: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        yolo = engine.module("models.yolo")
        return parse_model(_with_names(checked_model(d, yolo, where=_WHERE), d, known), *args, **kwargs)

    return wrapper


def _with_names(model: dict[str, Any], rows: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """Return a checked model with plain module names again, each of which must have a TensorFlow counterpart."""
    for section in ("backbone", "head"):
        for index, (checked, raw) in enumerate(zip(model[section], rows[section])):
            module, name = checked[2], raw[2]
            counterpart = f"TF{str(name).replace('nn.', '')}"
            if not isinstance(name, str) or block_of(module) or counterpart not in known:
                raise ConfigError(
                    f"{_WHERE}, {section} row {index}: YOLOv5 has no {name} for TensorFlow. "
                    "Export onnx and convert that file instead."
                )
            checked[2] = name
    return model


def _needed(module: SourceModule) -> str | None:
    if module.name == "models.tf" and module.code.defines("parse_model"):
        return "it evaluates the rows in a checkpoint"
    return None


def _apply(module: SourceModule, patches: Patches) -> None:
    theirs = module.module
    patches.set(theirs, "parse_model", _checked(theirs.parse_model, vars(theirs), module.engine))


TENSORFLOW = Quirk(
    name="tensorflow",
    symptom="export to a TensorFlow format runs the code in the rows of a checkpoint's YAML",
    versions="all",
    needed=_needed,
    apply=_apply,
)
