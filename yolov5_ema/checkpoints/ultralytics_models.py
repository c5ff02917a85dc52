"""Models of the package `ultralytics`: finds them in checkpoints, builds them from YAMLs, makes checkpoints of them.

The counterpart of `yolov5_ema.checkpoints.models`. The adapter must be installed wherever a model is built.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from yolov5_ema.cfgs.dry_run import check_builds, quiet
from yolov5_ema.cfgs.graph import Graph
from yolov5_ema.checkpoints.exported_models import metadata_of
from yolov5_ema.checkpoints.ultralytics_state import is_of_ultralytics
from yolov5_ema.data.yaml_files import load_yaml
from yolov5_ema.errors import CheckpointError, ConfigError, UserError
from yolov5_ema.resources import find_shipped
from yolov5_ema.texts import first_line
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.ultralytics import find_cfg, is_cfg_of_ultralytics
from yolov5_ema.weights.heads import Names
from yolov5_ema.weights.transfer import Transfer, fill_model_of_ultralytics

# the class of a model by the module of its last row
_CLASSES = {
    "RTDETRDecoder": "RTDETRDetectionModel",
    "WorldDetect": "WorldModel",
    "YOLOEDetect": "YOLOEModel",
    r"YOLOESegment\d*": "YOLOESegModel",
    "SemanticSegment": "SemanticSegmentationModel",
    r"Segment\d*": "SegmentationModel",
    r"Pose\d*": "PoseModel",
    r"OBB\d*": "OBBModel",
    "Classify": "ClassificationModel",
    "Depth": "DepthModel",
}
_TASKS = {"SegmentationModel": "segment", "PoseModel": "pose", "OBBModel": "obb", "ClassificationModel": "classify"}
# models whose classes are texts, or whose task no command of ours has
_NOT_FROM_A_YAML = ("WorldModel", "YOLOEModel", "YOLOESegModel", "DepthModel", "SemanticSegmentationModel")
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


def read_cfg(name: str | Path, engine: Engine, file: Path | None = None) -> dict[str, Any]:
    """The content of a model YAML, with the size that its name asks for under ``scale``.

    Args:
        name: the name by which the YAML was called; the letter of the size may be missing in the file's own name.
        engine: the ultralytics, whose own YAMLs are found by name.
        file: the file; None: the one that the name means to ultralytics (`find_cfg`).

    Raises:
        ConfigError: there is no such file, it is not a model YAML of ultralytics, its rows are invalid, or it does not
            have this size.
    """
    name = str(name)
    file = file or find_cfg(name, engine) or find_shipped(name)
    if file is None:
        raise ConfigError(f"{name}: no such file here, among the YAMLs of yolov5-ema or of {engine}")
    content = load_yaml(file)
    if not is_cfg_of_ultralytics(content):
        what = (
            "a model YAML of YOLOv5, not of ultralytics" if "anchors" in content else "not a model YAML of ultralytics"
        )
        raise ConfigError(f"{name} is {what}")
    Graph.from_cfg(content, name, of_ultralytics=True)
    sizes = list(content.get("scales") or ())
    letter = engine.module("nn.tasks").guess_model_scale(name)
    if letter and sizes and letter not in sizes:
        raise ConfigError(f"{name}: there is no size {letter}; {file.name} has {', '.join(sizes)}")
    return {**content, "scale": letter or next(iter(sizes), ""), "yaml_file": name}


def class_of(cfg: Mapping[str, Any], tasks: Any) -> Any:
    """The class of ``ultralytics.nn.tasks`` that builds a model YAML, judged by its last row.

    Raises:
        ConfigError: the last row is invalid, or the installed release has no such class.
    """
    rows = cfg.get("head")
    last = rows[-1] if isinstance(rows, list) and rows else None
    if not isinstance(last, list) or len(last) != 4:
        raise ConfigError(f"{cfg.get('yaml_file')}: its head does not end in a row")
    head = str(last[2])
    name = next((cls for module, cls in _CLASSES.items() if re.fullmatch(module, head)), "DetectionModel")
    found = getattr(tasks, name, None)
    if found is None:
        raise ConfigError(f"{cfg.get('yaml_file')}: the installed ultralytics has no {name} for {head}; upgrade it")
    return found


def task_of(model_class: str) -> str:
    """The task of a model by the name of its class.

    Raises:
        ConfigError: its models are not built from a YAML alone.
    """
    if model_class in _NOT_FROM_A_YAML:
        raise ConfigError(f"a {model_class} is not built from a YAML alone; it cannot be converted or filled")
    return _TASKS.get(model_class, "detect")


def build(content: Mapping[str, Any], nc: int | None, engine: Engine, where: object) -> Any:
    """The model of a YAML, with the same random weights on every call.

    Its rows are first checked and built without memory.

    Args:
        content: of the YAML, with the letter of the size under ``scale`` (see `read_cfg`).
        nc: number of classes; None: that of the YAML.
        engine: the ultralytics, with the adapter installed.
        where: the file, for messages.

    Raises:
        ConfigError: a row cannot be used or built, the rows do not fit together, or the model is too large.
    """
    tasks = engine.module("nn.tasks")
    channels = int(content.get("channels", content.get("ch", 3)))
    cls = class_of({**content, "yaml_file": where}, tasks)
    with _building(where), quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        cfg = {**copy.deepcopy(dict(content)), **({} if nc is None else {"nc": nc})}
        check_builds({**cfg, "ch": channels}, tasks, str(where), model_class=cls)
        return cls(cfg, ch=channels, verbose=False)


def built(content: Mapping[str, Any], nc: int | None, engine: Engine, where: object) -> Any:
    """The model that `build` makes, with its task, if it can be filled from tensors alone.

    Raises:
        ConfigError: as `build` and `task_of`.
    """
    task = task_of(class_of({**content, "yaml_file": where}, engine.module("nn.tasks")).__name__)
    model = build(content, nc, engine, where)
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


def opened(file: Path, engine: Engine) -> Any:
    """A checkpoint or an exported model as ultralytics' own ``YOLO`` or ``RTDETR``.

    Raises:
        CheckpointError: its metadata are not those of a detector, or the file is not of its format.
        UserError: the file cannot be read.
    """
    metadata, models = metadata_of(file), engine.module("models")
    # up to 8.3, metadata do not name the head, and ultralytics' own command goes by the file's name
    if metadata and "RTDETR" in str(metadata.get("head", file.stem.upper())):
        return models.RTDETR(str(file))
    return models.YOLO(str(file), task=metadata.get("task"))
