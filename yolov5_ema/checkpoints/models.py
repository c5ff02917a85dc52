"""Finds the model in a checkpoint and the class that builds it, and makes a checkpoint from a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from yolov5_ema.errors import CheckpointError, UserError
from yolov5_ema.texts import first_line
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.weights import kinds

MODEL_CLASSES = ("Model", "DetectionModel", "SegmentationModel")


@contextmanager
def as_yolov5_builds(source: Path, builder: str = "YOLOv5") -> Iterator[None]:
    """Context manager that turns every error of a model from a file into a `CheckpointError`.

    The attributes of such a model may be anything, so YOLOv5, ultralytics and torch may raise any error.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = first_line(error) if str(error) else "no reason given"
        raise CheckpointError(
            f"{source}: its model is not one that {builder} could have built ({type(error).__name__}: {reason})"
        ) from error


def model_of(checkpoint: Any, source: Path) -> Any:
    """The model of a checkpoint that YOLOv5 would run: ``ema`` if there is one, else ``model``.

    Raises:
        CheckpointError: the checkpoint holds no model, or one that was not built from a YAML.
    """
    if isinstance(checkpoint, nn.Module):
        checkpoint = {"model": checkpoint}
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(f"{source} does not hold a model but a {type(checkpoint).__name__}")
    model = checkpoint.get("ema") or checkpoint.get("model")
    if not isinstance(model, nn.Module):
        key = key_of_tensors(checkpoint)
        if key is not None:
            raise kinds.state_dict(key, source).error(source)
        raise CheckpointError(f"{source} does not hold a model ('yolov5-ema inspect' shows what it holds)")
    if type(model).__name__ not in MODEL_CLASSES or not isinstance(getattr(model, "yaml", None), Mapping):
        raise CheckpointError(
            f"{source} holds a {type(model).__name__}; only models that YOLOv5 builds from a YAML can be converted"
        )
    check_head(model, source)
    return model


def key_of_tensors(checkpoint: Mapping[Any, Any]) -> str | None:
    """The key that holds a state dict, or an empty string for the top; None if there is no state dict."""
    if checkpoint and all(isinstance(value, torch.Tensor) for value in checkpoint.values()):
        return ""
    for key in kinds.STATE_DICT_KEYS[1:]:
        held = checkpoint.get(key)
        if isinstance(held, Mapping) and any(isinstance(value, torch.Tensor) for value in held.values()):
            return key
    return None


def check_head(model: Any, source: Path) -> None:
    """Raise a `CheckpointError` for a model whose last row is not Detect or Segment."""
    layers = getattr(model, "model", None)
    if not isinstance(layers, nn.Sequential) or not len(layers):
        raise CheckpointError(f"{source}: the model has no rows; only detectors are converted")
    if not (isinstance(getattr(model, "stride", None), torch.Tensor) and hasattr(layers[-1], "anchors")):
        raise CheckpointError(f"{source}: the model does not end in Detect or Segment; only detectors are converted")


def class_for(name: str, yolo: Any, engine: Engine, source: Path) -> Any:
    """The class of the YOLOv5 in use that builds a model, whatever it is called in that release.

    Args:
        name: one of `MODEL_CLASSES`.
        yolo: YOLOv5's ``models.yolo``.
        engine: the YOLOv5 in use, for messages.
        source: the file that needs the class, for messages.

    Raises:
        CheckpointError: the YOLOv5 in use does not have such a class.
    """
    if name != "SegmentationModel":
        # in v6.2 and later another name of DetectionModel
        return yolo.Model
    cls = getattr(yolo, name, None)
    if cls is None:
        raise CheckpointError(
            f"{source} holds a {name}, which {engine} does not have; pass a YOLOv5 v7.0 with --yolov5"
        )
    return cls


def class_of_cfg(cfg: Mapping[str, Any]) -> str:
    """Name of the model class that the last row of a YAML needs."""
    head = cfg.get("head")
    last = head[-1] if isinstance(head, list) and head else None
    is_mask = isinstance(last, list) and len(last) == 4 and last[2] == "Segment"
    return "SegmentationModel" if is_mask else "Model"


def stripped(model: Any, training: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A checkpoint with the keys that YOLOv5's own ``strip_optimizer`` writes.

    Args:
        model: the model.
        training: facts about its training: ``best_fitness``, ``opt``, ``git``, ``date``.
    """
    training = training or {}
    return {
        "epoch": -1,
        "best_fitness": training.get("best_fitness"),
        "model": model,
        **dict.fromkeys(("ema", "updates", "optimizer", "training_results", "wandb_id")),
        "opt": training.get("opt"),
        "git": training.get("git"),
        "date": training.get("date"),
    }
