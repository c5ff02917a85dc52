"""Transfers the weights of a checkpoint to the model of another cfg, and writes a checkpoint of the same program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from yolov5_ema.cfgs.dry_run import check_model, quiet
from yolov5_ema.checkpoints import models, ultralytics_models
from yolov5_ema.checkpoints.loading import load_checkpoint, save_checkpoint
from yolov5_ema.checkpoints.models import as_yolov5_builds
from yolov5_ema.errors import UserError
from yolov5_ema.files import check_outputs, whole_files
from yolov5_ema.texts import counted
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.ultralytics import Ultralytics
from yolov5_ema.weights.heads import Names, names_of
from yolov5_ema.weights.identity import start_as_identity
from yolov5_ema.weights.transfer import Transfer, transfer


def transfer_checkpoint(
    weights: Path,
    cfg: Path,
    target: Path,
    *,
    engine: Engine,
    nc: int | None = None,
    names: Sequence[str] | None = None,
    identity: bool = False,
    force: bool = False,
) -> Transfer:
    """Build the model of a cfg, fill it from a checkpoint by structure, and write it.

    The weights and their dtype are those of the model that YOLOv5 or ultralytics would run (``ema`` if there is one).
    Anchors are copied too.

    Args:
        weights: the checkpoint.
        cfg: the model YAML.
        target: the ``.pt`` to write, with the keys that the program's own ``strip_optimizer`` leaves.
        engine: the YOLOv5 in use with the shim installed, or ultralytics with the adapter.
        nc: number of classes. None: that of the checkpoint, if the cfg has the same number.
        names: class names, ``nc`` of them. None: those of the checkpoint, if it has ``nc`` names.
        identity: initialize new attention blocks so that they change nothing at first (`yolov5_ema.weights.identity`).
        force: replace an existing file.

    Returns:
        What was transferred and what was not.

    Raises:
        CheckpointError: the weights cannot be read, or do not hold a model of this program.
        ConfigError: the cfg is invalid, or ``identity`` is not possible.
        UserError: the number of classes is not clear, or the target exists already or cannot be written.
    """
    check_outputs([target], force=force)
    own = _Yolov5(engine) if not isinstance(engine, Ultralytics) else _Ultralytics(engine)
    content = own.content_of(cfg)
    checkpoint = load_checkpoint(weights, "cpu", engine=engine, without_model=True)
    with as_yolov5_builds(weights, own.name):
        source = own.model_of(checkpoint, weights)
        dtype = next(source.parameters()).dtype
        source_names = names_of(getattr(source, "names", None))
        own_nc = own.classes_of(source)
        nc = len(names) if names is not None else nc if nc is not None else _agreed_nc(own_nc, content, cfg)
        if names is None and source_names is not None and len(source_names) == nc:
            names = source_names
        model = own.built(cfg, content, nc)
        found = own.filled(model, source, source_names, names)
        if identity:
            start_as_identity(model, found.fresh_blocks)
        # v6.2's val reads it
        model.nc = nc
        if names is not None:
            model.names = dict(enumerate(names)) if isinstance(model.names, Mapping) else list(names)
        model.to(dtype).requires_grad_(False).eval()
    with whole_files([target]) as (draft,), draft.open("wb") as stream:
        save_checkpoint(own.stripped(model), stream, engine=engine)
    return found


def _agreed_nc(own: int, content: Mapping[str, Any], cfg: Path) -> int:
    """The number of classes if none was given. If cfg and checkpoint differ, it is an error, not a guess."""
    other = int(content["nc"])
    if own != other:
        raise UserError(
            f"{cfg} has {counted(other, 'class')}, the checkpoint has {own}: pass the data YAML with --data, or "
            f"--nc {own} to keep the checkpoint's classes, or --nc {other} for the cfg's"
        )
    return own


class _Yolov5:
    """How YOLOv5's models are built and filled."""

    name = "YOLOv5"
    model_of = staticmethod(models.model_of)
    stripped = staticmethod(models.stripped)

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def content_of(self, cfg: Path) -> dict[str, Any]:
        return check_model(cfg, self._engine)

    def classes_of(self, model: Any) -> int:
        return int(model.model[-1].nc)

    def built(self, cfg: Path, content: Mapping[str, Any], nc: int) -> Any:
        yolo = self._engine.module("models.yolo")
        cls = models.class_for(models.class_of_cfg(content), yolo, self._engine, cfg)
        with quiet(), torch.random.fork_rng(devices=[]):
            return cls(str(cfg), ch=int(content.get("ch", 3)), nc=nc)

    def filled(self, model: Any, source: Any, names: Names, target_names: Names) -> Transfer:
        found = transfer(source, model, names=names, target_names=target_names)
        model.load_state_dict(found.state, strict=False)
        return found


class _Ultralytics:
    """How models of ultralytics are built and filled."""

    name = "ultralytics"
    model_of = staticmethod(ultralytics_models.model_of)
    classes_of = staticmethod(ultralytics_models.classes_of)
    filled = staticmethod(ultralytics_models.filled)

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def content_of(self, cfg: Path) -> dict[str, Any]:
        return ultralytics_models.read_cfg(cfg, self._engine)

    def built(self, cfg: Path, content: Mapping[str, Any], nc: int) -> Any:
        return ultralytics_models.built(content, nc, self._engine, cfg)

    def stripped(self, model: Any) -> dict[str, Any]:
        return ultralytics_models.stripped(model, engine=self._engine)
