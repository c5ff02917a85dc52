"""Transfers the weights of a checkpoint to the model of another cfg, and writes a YOLOv5 checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from yolov5_ema.cfgs.dry_run import check_model, quiet
from yolov5_ema.checkpoints.loading import load_checkpoint, save_checkpoint
from yolov5_ema.checkpoints.models import as_yolov5_builds, class_for, class_of_cfg, model_of, stripped
from yolov5_ema.errors import ConfigError, UserError
from yolov5_ema.files import refuse_present, whole_files
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.weights.heads import names_of
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

    The weights and their dtype are those of the model that YOLOv5 would run (``ema`` if there is one). The anchors are
    copied too.

    Args:
        weights: the checkpoint.
        cfg: the model YAML.
        target: the ``.pt`` to write, with the keys that ``strip_optimizer`` leaves.
        engine: the YOLOv5 in use, with the shim installed.
        nc: number of classes. None: that of the checkpoint, if the cfg has the same number.
        names: class names, ``nc`` of them. None: those of the checkpoint, if it has ``nc`` names.
        identity: initialize new attention blocks so that they change nothing at first (`yolov5_ema.weights.identity`).
        force: replace an existing file.

    Returns:
        What was transferred and what was not.

    Raises:
        CheckpointError: the weights cannot be read, or do not hold a YOLOv5 model.
        ConfigError: the cfg is invalid, or ``identity`` is not possible.
        UserError: the number of classes is not clear, or the target exists already or cannot be written.
    """
    refuse_present([target], force)
    content = check_model(cfg, engine)
    checkpoint = load_checkpoint(weights, "cpu", engine=engine, without_model=True)
    with as_yolov5_builds(weights):
        source = model_of(checkpoint, weights)
        source_names = names_of(getattr(source, "names", None))
        nc = len(names) if names is not None else nc if nc is not None else _agreed_nc(source, content, cfg)
        if names is None and source_names is not None and len(source_names) == nc:
            names = source_names
        model = _built(cfg, content, nc, engine)
        found = transfer(source, model, names=source_names, target_names=names)
        model.load_state_dict(found.state, strict=False)
        if identity:
            if not found.fresh_blocks:
                raise ConfigError(f"--init identity: no row of {cfg} is a fresh attention block")
            start_as_identity(model, found.fresh_blocks)
        # v6.2's val reads it
        model.nc = nc
        if names is not None:
            model.names = dict(enumerate(names)) if isinstance(model.names, Mapping) else list(names)
        model.to(next(source.parameters()).dtype).requires_grad_(False).eval()
    with whole_files([target]) as (draft,), draft.open("wb") as stream:
        save_checkpoint(stripped(model), stream, engine=engine)
    return found


def _agreed_nc(source: Any, content: Mapping[str, Any], cfg: Path) -> int:
    """The number of classes if none was given. If cfg and checkpoint differ, it is an error, not a guess."""
    own, other = int(source.model[-1].nc), int(content["nc"])
    if own != other:
        raise UserError(
            f"{cfg} has {other} classes, the checkpoint has {own}: pass the data YAML with --data, or --nc {own} to "
            f"keep the checkpoint's classes, or --nc {other} for the cfg's"
        )
    return own


def _built(cfg: Path, content: Mapping[str, Any], nc: int, engine: Engine) -> Any:
    yolo = engine.module("models.yolo")
    cls = class_for(class_of_cfg(content), yolo, engine, cfg)
    with quiet(), torch.random.fork_rng(devices=[]):
        return cls(str(cfg), ch=int(content.get("ch", 3)), nc=nc)
