"""What `yolov5_ema.checkpoints.conversion` needs to know of the models of the package `ultralytics`."""

from __future__ import annotations

import copy
import importlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from yolov5_ema.checkpoints.described import (
    as_json,
    check_shapes,
    checked_names,
    common_facts,
    fill,
    header_or_defaults,
    plain_cfg,
)
from yolov5_ema.checkpoints.ultralytics_models import KEPT, task_of
from yolov5_ema.checkpoints.ultralytics_models import built as built_from
from yolov5_ema.checkpoints.ultralytics_state import faults
from yolov5_ema.errors import CheckpointError
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.ultralytics import is_cfg_of_ultralytics
from yolov5_ema.weights.names import TASKS

_TRAINING = ("train_args", *KEPT)
_SECTIONS = ("backbone", "head")
# of the class branch of a head: its width and its number of classes
_CLASS_OUTPUT = re.compile(r"model\.\d+\.(?:one2one_)?cv3\.0\.\d+\.weight")
_STEPS = "torchvision.transforms.transforms"
_INTERPOLATION = "torchvision.transforms.functional"


def facts(checkpoint: Any, model: Any, source: Path, engine: Engine) -> dict[str, Any]:
    """Everything besides the tensors that the header of a converted file holds."""
    head = model.model[-1]
    return {
        **common_facts(checkpoint, model, source, engine, _TRAINING),
        "engine": "ultralytics",
        "task": str(getattr(model, "task", None) or task_of(type(model).__name__)),
        "end2end": vars(head).get("_end2end"),
        "args": as_json(dict(_args_of(model))),
        "transforms": _transforms_as_json(getattr(model, "transforms", None)),
    }


def _args_of(model: Any) -> Mapping[str, Any]:
    args = getattr(model, "args", None) or {}
    return args if isinstance(args, Mapping) else vars(args)


def _transforms_as_json(transforms: Any) -> list[Any] | None:
    """The steps by which a classifier prepares an image: the class and the settings of each."""
    if transforms is None:
        return None
    return [[type(step).__name__, _settings_of(step)] for step in transforms.transforms]


def _settings_of(step: Any) -> dict[str, Any]:
    kept = ("size", "mean", "std", "interpolation", "max_size", "antialias")
    found = {name: vars(step)[name] for name in kept if name in vars(step)}
    plain = {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in found.items()}
    return {name: as_json(getattr(value, "value", value)) for name, value in plain.items()}


def _transforms_from(steps: Any, source: Path) -> Any:
    try:
        home = importlib.import_module(_STEPS)
        made = [getattr(home, _step(name))(**_read(settings)) for name, settings in steps]
    except (ImportError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{source}: the transforms in its metadata are invalid: {error}") from None
    return home.Compose(made)


def _step(name: Any) -> str:
    if name not in ("Normalize", "Resize", "CenterCrop", "ToTensor"):
        raise ValueError(f"there is no step {str(name)[:60]!r}")
    return str(name)


def _read(settings: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a step, of the types that ultralytics gives it."""
    found = {name: torch.tensor(value) if name in ("mean", "std") else value for name, value in settings.items()}
    if "interpolation" in found:
        found["interpolation"] = importlib.import_module(_INTERPOLATION).InterpolationMode(found["interpolation"])
    return found


def built(facts: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], source: Path, engine: Engine) -> Any:
    """The model that a cfg builds, filled with these tensors.

    Raises:
        CheckpointError: the tensors do not fit the cfg, or the header has values that no model has.
        ConfigError: the cfg is invalid.
    """
    cfg = facts["cfg"]
    model = built_from(cfg, None, engine, source)
    _widen(model, cfg, tensors, source, engine)
    check_shapes(model.state_dict(), tensors, source)
    if all(tensor.dtype == torch.float16 for tensor in tensors.values() if tensor.is_floating_point()):
        model.half()
    fill(model, tensors, source)
    model.names = dict(facts["names"]) if facts["names"] else model.names
    model.task = facts["task"] or model.task
    model.args = {"task": model.task, **copy.deepcopy(facts["args"])}
    if facts["end2end"] is not None:
        vars(model.model[-1])["_end2end"] = facts["end2end"]
    if facts["transforms"] is not None:
        model.transforms = _transforms_from(facts["transforms"], source)
    fault = next(faults(model, model.model[-1]), None)
    if fault:
        raise CheckpointError(f"{source}: its metadata do not describe a model: {fault}")
    return model.eval()


def _widen(
    model: Any, cfg: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], source: Path, engine: Engine
) -> None:
    """Make the class branch of the head as wide as in the file.

    Its width depends on the number of classes, and ultralytics keeps that of the pretrained model.
    """
    head = model.model[-1]
    state = model.state_dict()
    name = next((name for name in tensors if _CLASS_OUTPUT.fullmatch(name)), None)
    if name is None or name not in state or tensors[name].dim() != 4 or state[name].dim() != 4:
        return
    width = tensors[name].shape[1]
    if width == state[name].shape[1] or not 0 < width <= 100:
        return
    wide = built_from(cfg, width, engine, source).model[-1]
    for branch in ("cv3", "one2one_cv3"):
        if getattr(wide, branch, None) is not None:
            for level in getattr(wide, branch):
                level[-1] = nn.Conv2d(level[-1].in_channels, head.nc, 1)
            setattr(head, branch, getattr(wide, branch))


def facts_from(header: Any, cfg: Mapping[str, Any] | None, source: Path) -> dict[str, Any]:
    """The content of the header, checked. A cfg from the user replaces the one in the header."""
    given = header_or_defaults(header, cfg, source)
    found = {**{"task": None, "end2end": None, "args": {}, "transforms": None}, **given}
    if cfg is not None:
        found.update(cfg={key: value for key, value in cfg.items() if key != "names"}, names=cfg.get("names"))
    shape_is_fine = (
        isinstance(found["cfg"], dict)
        and is_cfg_of_ultralytics(found["cfg"])
        and isinstance(found["cfg"].get("nc"), int)
        and isinstance(found["training"], dict)
        and isinstance(found["args"], dict)
        and found["task"] in (None, *TASKS)
        and found["end2end"] in (None, True, False)
        and isinstance(found["transforms"], (list, type(None)))
    )
    if not shape_is_fine:
        raise CheckpointError(f"{source}: its metadata does not have the form that 'yolov5-ema convert' writes")
    names = checked_names(found["names"], found["cfg"]["nc"], source)
    found["names"] = [[i, name] for i, name in enumerate(names or ())] if _is_list(names) else names
    return found


def _is_list(names: Any) -> bool:
    return not names or isinstance(names[0], str)


def yaml_text(model: Any, engine: Engine, header: Sequence[str], source: Path) -> str:
    """The model YAML as text, with one size only."""
    cfg = {key: value for key, value in plain_cfg(model.yaml, source).items() if key not in ("yaml_file", "scale")}
    scale = model.yaml.get("scale")
    if cfg.get("scales") and scale in cfg["scales"]:
        cfg["scales"] = {scale: cfg["scales"][scale]}
    cfg["names"] = [str(name) for name in model.names.values()]
    lines = [f"# {line}" for line in header]
    for key, value in cfg.items():
        if key in _SECTIONS:
            lines += ["", f"{key}:", *(f"  - {_flow(row)}" for row in value)]
        else:
            lines.append(f"{key}: {_flow(value)}")
    return "\n".join(lines) + "\n"


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False, allow_unicode=True)
    return text.removesuffix("...\n").strip()
