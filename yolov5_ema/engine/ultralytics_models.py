"""Builds models of the package `ultralytics` from their YAMLs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from yolov5_ema.cfgs.dry_run import check_builds, quiet
from yolov5_ema.cfgs.graph import Graph
from yolov5_ema.checkpoints.ultralytics_models import class_of
from yolov5_ema.data.yaml_files import load_yaml
from yolov5_ema.engine import ultralytics_adapter
from yolov5_ema.errors import ConfigError
from yolov5_ema.upstream.ultralytics import is_cfg_of_ultralytics, size_in


def read_cfg(name: str, file: Path) -> dict[str, Any]:
    """The content of a model YAML, with the size that its name asks for under ``scale``.

    Args:
        name: the name by which the YAML was called; the letter of the size may be missing in the file's own name.
        file: the file.

    Raises:
        ConfigError: it is not a model YAML of ultralytics, or does not have this size.
    """
    content = load_yaml(file)
    if not is_cfg_of_ultralytics(content):
        raise ConfigError(f"{name} is not a model YAML of ultralytics; if it is one of YOLOv5, leave --engine out")
    Graph.from_cfg(content, name, of_ultralytics=True)
    sizes = list(content.get("scales") or ())
    letter = size_in(name)
    if letter and len(sizes) > 1 and letter not in sizes:
        raise ConfigError(f"{name}: there is no size {letter}; {file.name} has {', '.join(sizes)}")
    scale = letter if letter in sizes else next(iter(sizes), "")
    return {**content, "scale": scale, "yaml_file": name}


def build(content: Mapping[str, Any], nc: int | None = None) -> torch.nn.Module:
    """Build a model, after its rows were checked and built without memory.

    Args:
        content: what `read_cfg` returns.
        nc: number of classes, used instead of the YAML's.

    Raises:
        ConfigError: a row cannot be used or built, the rows do not fit together, or the model is too large.
    """
    tasks = ultralytics_adapter.install().module("nn.tasks")
    cfg = {**content, **({} if nc is None else {"nc": nc})}
    cls = class_of(cfg, tasks)
    check_builds(cfg, tasks, str(cfg["yaml_file"]), model_class=cls)
    with quiet():
        model: torch.nn.Module = cls(cfg, ch=cfg.get("ch", 3), nc=nc, verbose=False)
    return model
