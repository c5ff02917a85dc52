"""``models/tf.py`` rebuilds a model in TensorFlow from the rows in a checkpoint, which are checked here as well.

Its `parse_model` evaluates the names of modules and arguments, as that of ``models/yolo.py`` does. It needs each module
by its name, because it puts ``TF`` before the name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from yolov5_ema.blocks.registry import block_of
from yolov5_ema.cfgs.rows import checked_model
from yolov5_ema.engine.quirks.base import Quirk, SourceModule
from yolov5_ema.errors import ConfigError

_WHERE = "the model's own YAML"


def _checked(
    parse_model: Callable[..., Any], module: SourceModule, d: dict[str, Any], *args: Any, **kwargs: Any
) -> Any:
    model = checked_model(d, module.engine.module("models.yolo"), where=_WHERE)
    return parse_model(_with_names(model, d, vars(module.module)), *args, **kwargs)


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


TENSORFLOW = Quirk(
    name="tensorflow",
    symptom="export to a TensorFlow format runs the code in the rows of a checkpoint's YAML",
    versions="all",
    needed=lambda module: module.name == "models.tf" and module.code.defines("parse_model"),
    reason="it evaluates the rows in a checkpoint",
    apply=lambda module, patches: patches.wrap(module.module, "parse_model", _checked, module),
)
