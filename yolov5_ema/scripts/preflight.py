"""Checks of a command's arguments before YOLOv5 starts, so that a mistake leaves nothing half-written."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
from pathlib import Path
from typing import Any

from yolov5_ema.cfgs.dry_run import check_model, refusal_of_ultralytics
from yolov5_ema.cfgs.graph import Graph
from yolov5_ema.cfgs.oddities import likely_mistakes, log_warnings
from yolov5_ema.checkpoints import loading as checkpoints
from yolov5_ema.data.dataset import Dataset
from yolov5_ema.data.image_names import image_id, name_of, named_once
from yolov5_ema.engine.guards import resumed_training
from yolov5_ema.engine.quirks import downloads
from yolov5_ema.errors import CheckpointError, ConfigError, UserError
from yolov5_ema.files import open_regular, why_unwritable
from yolov5_ema.scripts import exports
from yolov5_ema.scripts.option_values import check_values
from yolov5_ema.scripts.sources import ADDRESS, check_source
from yolov5_ema.upstream.data_yaml import check_data, find_yaml, open_dataset
from yolov5_ema.upstream.hyperparameters import names_read, read_hyp
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.source_code import code_in
from yolov5_ema.upstream.ultralytics import at_hand, find_cfg
from yolov5_ema.weights.mistaken import HEAD, refuse_mistaken

_LOGGER = logging.getLogger(__name__)

# of other tasks: val
_SPLITS = {"train": ("train", "val"), "test": ("test",)}
_ADVICE = {
    "cfg": " 'yolov5-ema cfg' writes model YAMLs for any size, block and place.",
    "data": " A data YAML names the folders of images and the classes; 'yolov5-ema data' makes some.",
}
_EXPORTED = {".onnx", ".torchscript", ".xml", ".engine", ".mlmodel", ".pb", ".tflite", ""}


def resolve_names(opt: argparse.Namespace, engine: Engine, script: str = "") -> None:
    """Replace bare names of YAMLs by paths: of the user's file, of YOLOv5's, or of one in this package.

    Raises:
        ConfigError: there is no such file.
    """
    for name in ("cfg", "hyp") if _classifies(script) else ("cfg", "data", "hyp"):
        value = getattr(opt, name, None)
        if isinstance(value, str) and value and not value.startswith(ADDRESS):  # a Path is YOLOv5's own default
            setattr(opt, name, _resolved(name, value, engine))
    # YOLOv5 resolves these paths relative to its own folder
    for name in ("model", "data") if _classifies(script) else ():
        value = getattr(opt, name, None)
        if isinstance(value, str) and value and os.path.exists(value):
            setattr(opt, name, os.path.abspath(value))


def _resolved(flag: str, value: str, engine: Engine) -> str:
    if value.endswith(".zip"):
        return value
    found = find_yaml(value, engine)
    if found is None and flag == "cfg" and find_cfg(value, at_hand()) is not None:
        raise ConfigError(f"--cfg {refusal_of_ultralytics(value)}")
    if found is None:
        raise ConfigError(
            f"--{flag} {value}: no such file here, among the YAMLs of yolov5-ema or of {engine}.{_ADVICE.get(flag, '')}"
        )
    _LOGGER.debug("--%s %s: %s", flag, value, found)
    return str(found)


def _classifies(script: str) -> bool:
    """Whether a script's data are a folder of images by class, or the name of a data set."""
    return script.startswith("classify.")


def check(opt: argparse.Namespace, script: str, engine: Engine) -> None:
    """Check the parsed flags of one of YOLOv5's scripts.

    Raises:
        UserError: a flag or a file cannot be used; the message names it and says what to do.
    """
    has_folder, name = _classifies(script), script
    script = script.split(".")[-1]
    # a resumed run brings the other options, which are checked where they are read
    if resumed_training.resumes(opt):
        return resumed_training.refuse_unguarded(engine.module(name))
    if getattr(opt, "cfg", ""):
        content = check_model(opt.cfg, engine)
        if int(os.environ.get("RANK", "-1")) < 1:
            log_warnings(likely_mistakes(Graph.from_cfg(content, str(opt.cfg))), str(opt.cfg))
    _check_hyp(getattr(opt, "hyp", ""), name, engine)
    if not has_folder:
        _check_data(opt, script, engine)
    for weights in _weights_of(opt):
        _check_weights(weights, name, engine)
    check_values(opt, name, engine)
    if script in ("detect", "predict"):
        check_source(opt, engine, name)
        _check_runnable(opt, engine)
    if script == "export":
        exports.refuse_impossible_formats(opt, engine)
    if getattr(opt, "project", None):
        _check_writable(Path(opt.project))


def _weights_of(opt: argparse.Namespace) -> list[str]:
    weights = getattr(opt, "weights", None)
    # of classify/train.py: a file, or the name of a torchvision model
    classifier = getattr(opt, "model", None)
    if not weights and str(classifier).endswith(".pt"):
        weights = classifier
    if not weights:
        return []
    return [str(w) for w in (weights if isinstance(weights, (list, tuple)) else [weights])]


def _check_weights(weights: str, script: str, engine: Engine) -> None:
    if not weights or weights.startswith(ADDRESS):
        return
    path = Path(weights.strip().replace("'", ""))
    if not path.exists():
        downloadable = downloads.is_released_weight(weights) or ("/" in weights and engine.release >= (7, 0))
        if downloadable and downloads.is_online():
            return
        raise CheckpointError(downloads.missing_weights_message(weights, trains=script.split(".")[-1] == "train"))
    if path.suffix != path.suffix.lower():
        raise CheckpointError(
            f"{weights}: YOLOv5 recognises a file by its ending, which must be in lower case; rename it to "
            f"{path.with_suffix(path.suffix.lower()).name}"
        )
    if not path.is_dir():
        _check_weights_file(path, script, engine)


def _check_weights_file(path: Path, script: str, engine: Engine) -> None:
    """Refuse a file that YOLOv5 cannot load, and say what it is; exported models are checked where they are loaded."""
    is_run = _runs_exported(script, engine)
    with open_regular(path) as stream:  # opening a pipe or a device could wait forever
        refuse_mistaken(path, stream.read(HEAD), exported=is_run)
    if is_run and (path.suffix.lower() in _EXPORTED or "torchscript" in path.name):
        return
    checkpoints.check_file(path, engine=engine)
    if path.suffix != ".pt" and not script.endswith("export"):
        raise CheckpointError(
            f"{path} is a checkpoint, but YOLOv5 recognises one only if its name ends in .pt: rename it"
        )


def _runs_exported(script: str, engine: Engine) -> bool:
    """Whether a script accepts exported models: all scripts that predict do, and ``val`` from v6.1 on."""
    kind = script.split(".")[-1]
    common = engine.module("models.common")
    return kind in ("detect", "predict") or (kind == "val" and hasattr(common, "DetectMultiBackend"))


def _check_hyp(hyp: Any, script: str, engine: Engine) -> None:
    if isinstance(hyp, str) and hyp and not hyp.startswith(ADDRESS):
        read_hyp(Path(hyp), names_read(engine, engine.root / f"{script.replace('.', '/')}.py"))


def _check_runnable(opt: argparse.Namespace, engine: Engine) -> None:
    if engine.release == (6, 0) and any("torchscript" in Path(w).name for w in _weights_of(opt)):
        raise UserError(f"detect of {engine} cannot run TorchScript files; use the .pt or the .onnx file")


def _check_data(opt: argparse.Namespace, script: str, engine: Engine) -> None:
    data = getattr(opt, "data", None)
    if script not in ("train", "val") or not data or isinstance(data, Path) or str(data).endswith(".zip"):
        return
    task = getattr(opt, "task", "train" if script == "train" else "val")
    dataset = open_dataset(str(data), engine, lenient=True)
    check_data(dataset, _SPLITS.get("train" if script == "train" else task, ("val",)), engine)
    if script == "train":
        _refuse_names_twice(dataset, engine)
    if script == "val":
        _check_names_of_results(opt, dataset)


def _check_names_of_results(opt: argparse.Namespace, dataset: Dataset) -> None:
    """Refuse images whose results would collide: ``val`` names results by an image's stem, or the stem as a number."""
    by_id, by_stem = getattr(opt, "save_json", False), getattr(opt, "save_txt", False)
    if opt.task not in ("train", "val", "test") or not (by_id or by_stem):
        return
    # the images may still have to be downloaded, or only YOLOv5 accepts the class names
    with contextlib.suppress(ConfigError):
        images = dataset.images(opt.task)
        why = f"{'--save-json' if by_id else '--save-txt'} tells detections apart by that alone"
        named_once(images, why, image_id if by_id else name_of)


def _refuse_names_twice(dataset: Dataset, engine: Engine) -> None:
    """Refuse repeated class names: train of the PyPI package stores results by name, and fails after one epoch."""
    loggers = engine.root / "utils" / "loggers" / "__init__.py"
    if not loggers.is_file() or "self.class_name_keys" not in code_in(loggers).names:
        return
    if dataset.names:
        dataset.refuse_unfit_names(f"{engine} stores the results of a training by name")


def _check_writable(project: Path) -> None:
    """Try to write where the run will write: in the project folder, or in the nearest existing folder above it."""
    said = why_unwritable(project / "new")
    if said is not None:
        raise UserError(f"cannot write to the run folder --project {project}: {said}. Name another --project.")
