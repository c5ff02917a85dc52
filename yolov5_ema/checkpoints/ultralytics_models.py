"""Models of the package `ultralytics`: finds them in checkpoints, builds them from YAMLs, makes checkpoints of them.

The counterpart of `yolov5_ema.checkpoints.models`. The adapter must be installed wherever a model is built.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from yolov5_ema.cfgs.dry_run import quiet
from yolov5_ema.checkpoints.ultralytics_state import is_of_ultralytics
from yolov5_ema.errors import CheckpointError, ConfigError, UserError
from yolov5_ema.resources import find_shipped
from yolov5_ema.texts import first_line
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.ultralytics import is_cfg_of_ultralytics
from yolov5_ema.weights.heads import Names
from yolov5_ema.weights.transfer import Transfer, fill_model_of_ultralytics

# the class of the model for each last row, and its task
_OF_HEADS = {
    **dict.fromkeys(("Detect", "v10Detect"), ("DetectionModel", "detect")),
    **dict.fromkeys(("Segment", "Segment26"), ("SegmentationModel", "segment")),
    **dict.fromkeys(("Pose", "Pose26"), ("PoseModel", "pose")),
    **dict.fromkeys(("OBB", "OBB26"), ("OBBModel", "obb")),
    "Classify": ("ClassificationModel", "classify"),
    "RTDETRDecoder": ("RTDETRDetectionModel", "detect"),
    "SemanticSegment": ("SemanticSegmentationModel", "semantic"),
}
# what a stripped checkpoint keeps, besides the model
KEPT = ("date", "version", "git", "train_metrics", "train_results")
_LICENSE = {"license": "AGPL-3.0 (https://ultralytics.com/license)", "docs": "https://docs.ultralytics.com"}


def model_of(checkpoint: Any, source: Path) -> Any:
    """The model of a checkpoint that ultralytics would run: ``ema`` if there is one, else ``model``.

    Raises:
        CheckpointError: the checkpoint holds no model, one that was not built from a YAML, or a fused one.
    """
    values = [checkpoint.get(key) for key in ("ema", "model")] if isinstance(checkpoint, Mapping) else [checkpoint]
    model: Any = next((value for value in values if isinstance(value, nn.Module)), None)
    if model is None:
        raise CheckpointError(f"{source} does not hold a model ('yolov5-ema inspect' shows what it holds)")
    if not is_of_ultralytics(model) or not isinstance(getattr(model, "yaml", None), Mapping):
        raise CheckpointError(
            f"{source} holds a {type(model).__name__}, not a model that ultralytics builds from a YAML"
        )
    if model.is_fused():
        raise CheckpointError(f"{source}: a fused model has no BatchNorms: use the checkpoint that it was made from")
    return model


def content_of(cfg: str | Path, engine: Engine) -> dict[str, Any]:
    """The content of a model YAML, as ultralytics reads it: with ``scale``, the letter of the size in the name.

    Raises:
        ConfigError: there is no such file, or it is a model YAML of YOLOv5.
    """
    tasks = engine.module("nn.tasks")
    try:
        content: dict[str, Any] = tasks.yaml_model_load(str(cfg))
    except FileNotFoundError:
        if find_shipped(str(cfg)) is None:
            raise ConfigError(f"{cfg}: no such file here, among the YAMLs of yolov5-ema or of {engine}") from None
        content = {}
    if not is_cfg_of_ultralytics(content):
        raise ConfigError(f"{cfg} is a model YAML of YOLOv5; the weights are those of a model of ultralytics")
    return content


def head_of(content: Mapping[str, Any], where: object) -> tuple[str, str]:
    """The class of the model that the last row of a YAML needs, and its task.

    Raises:
        ConfigError: no model of ultralytics that is built from a YAML alone ends in such a row.
    """
    rows = content.get("head")
    last = rows[-1] if isinstance(rows, list) and rows else None
    name = last[2] if isinstance(last, list) and len(last) == 4 else None
    if name not in _OF_HEADS:
        raise ConfigError(f"{where}: its last row is {str(name)[:60]!r}; such models cannot be built from a YAML alone")
    return _OF_HEADS[name]


def built(content: Mapping[str, Any], nc: int | None, engine: Engine, where: object) -> Any:
    """The model of a YAML.

    Args:
        content: of the YAML.
        nc: number of classes; None: that of the YAML.
        engine: the ultralytics, with the adapter installed.
        where: the file, for messages.

    Raises:
        ConfigError: it cannot be built.
    """
    cls, task = head_of(content, where)
    channels = int(content.get("channels", content.get("ch", 3)))
    with _building(where), quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(engine.module("nn.tasks"), cls)(copy.deepcopy(dict(content)), ch=channels, nc=nc, verbose=False)
    model.task = task
    return model


@contextmanager
def _building(where: object) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # a layer's constructor can raise anything for invalid arguments
        raise ConfigError(f"{where}: it cannot be built: {first_line(error)}") from error


def classes_of(model: Any) -> int:
    """The number of classes of a model."""
    return int(getattr(model.model[-1], "nc", model.yaml["nc"]))


def filled(model: Any, source: Any, names: Names, target_names: Names) -> Transfer:
    """Fill a model from another, and say what was copied (`fill_model_of_ultralytics`)."""
    load = inspect.unwrap(type(model).load)
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return fill_model_of_ultralytics(
            model, source, lambda moved: load(model, moved, verbose=False), names=names, target_names=target_names
        )


def stripped(model: Any, training: Mapping[str, Any] | None = None, engine: Engine | None = None) -> dict[str, Any]:
    """A checkpoint with the keys that ultralytics' own ``strip_optimizer`` writes.

    Args:
        model: the model.
        training: what is known of its training: ``train_args`` and the keys of `KEPT`.
        engine: the ultralytics, whose version is written if the training names none.
    """
    training = {"version": engine.version, **(training or {})} if engine is not None else training or {}
    return {
        "epoch": -1,
        **dict.fromkeys(("best_fitness", "stopper", "ema", "updates", "optimizer", "scaler")),
        "model": model,
        "train_args": training.get("train_args") or {"task": model.task},
        **{key: training[key] for key in KEPT if training.get(key) is not None},
        **_LICENSE,
    }
