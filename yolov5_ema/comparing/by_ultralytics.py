"""Trainings with the package `ultralytics` in a comparison; a `trainer.Trainer`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from yolov5_ema.cfgs.graph import Graph
from yolov5_ema.cfgs.oddities import likely_mistakes, log_warnings
from yolov5_ema.checkpoints.recognition import YOLOV5, engine_of_weights
from yolov5_ema.checkpoints.ultralytics_models import build, class_of, read_cfg, task_of
from yolov5_ema.comparing.trainer import SETTINGS, Common, identity_of
from yolov5_ema.data.dataset import Dataset
from yolov5_ema.engine.model_info import ModelInfo, ultralytics_info
from yolov5_ema.errors import UserError
from yolov5_ema.scripts.mistakes import errors_as_user_errors
from yolov5_ema.scripts.yolo_flags import options_of
from yolov5_ema.scripts.yolo_val import resolved
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.model_yaml import cfg_of_ultralytics
from yolov5_ema.upstream.ultralytics import NAME as ULTRALYTICS

DATA_FILE = "data.yaml"
"""The data YAML in the folder of a comparison: with absolute paths, because ultralytics resolves others in its way."""

_OWN = {
    "model": "the models are named with --cfgs",
    "data": "the data set is named with --data",
    "seed": "--seeds N trains every model with seeds 0 to N - 1",
    "deterministic": "trainings with a seed are deterministic",
    "resume": "the same compare command continues where it was interrupted",
    "exist_ok": "the same compare command continues in the same folder",
    "project": "compare has --project",
    "name": "compare has --name",
    "save_dir": "compare has --project and --name",
    "cfg": "write its arguments one by one",
    "task": "it compares detectors",
    "mode": "it trains",
    "split": "--task chooses the split that is reported",
    "save": "best.pt is needed",
    "time": "trainings last --epochs",
}
_SHARED = {"epochs": "--epochs", "imgsz": "--img", "single_cls": "--single-cls", "device": "--device", "val": "--noval"}
_LEAST = (("--epochs", "epochs", 1), ("--img", "imgsz", 1), ("--workers", "workers", 0))
# arguments that are not of a training, that differ between runs or are recorded separately
_NOT_SHARED = {*_OWN, "pretrained"}


class UltralyticsTrainer:
    """See `trainer.Trainer`.

    Args:
        engine: the package, with the adapter installed.
        flags: flags of YOLOv5's ``train`` that it has under another name, for all trainings.
        own: its own arguments, of the form ``lr0=0.02``.
        dataset: the data set.
        folder: the folder of the comparison.
        beside: the options of YOLOv5 in a comparison of both.

    Raises:
        UserError: a flag or an argument cannot be used.
    """

    name = "ultralytics"
    words = "its own, without anchors"

    def __init__(
        self,
        engine: Engine,
        flags: Sequence[str],
        own: Sequence[str],
        dataset: Dataset,
        folder: Path,
        beside: Common | None = None,
    ) -> None:
        self.engine = engine
        self.data = folder.resolve() / DATA_FILE
        self._text = resolved(dataset)
        given = self._parsed(own)
        _refuse_own(given, beside is not None)
        translated = options_of("train", flags)
        if beside is not None:
            _refuse_shared_weights(translated.pop("pretrained", ""), given)
            translated = {**_as_options(beside), **translated}
        options = {**translated, **given}
        self._given = {name: value for name, value in options.items() if value != ""}
        self._check_pretrained()
        with errors_as_user_errors(engine):
            self._args = dict(vars(engine.module("cfg").get_cfg(overrides=self._given)))
        if not isinstance(self._args["imgsz"], int):
            raise UserError(f"imgsz must be one number for a training, not {self._args['imgsz']}")
        for flag, name, least in _LEAST:
            if self._args[name] < least:
                raise UserError(f"{flag} must be at least {least}, not {self._args[name]}")
        device = self._args["device"]
        self.common = Common(
            epochs=self._args["epochs"],
            imgsz=self._args["imgsz"],
            batch_size=self._args["batch"],
            device="" if device is None else str(device),
            workers=self._args["workers"],
            single_cls=self._args["single_cls"],
            noval=not self._args["val"],
        )

    def _parsed(self, own: Sequence[str]) -> dict[str, Any]:
        with errors_as_user_errors(self.engine):
            return dict(map(self.engine.module("cfg").parse_key_value_pair, own))

    def _check_pretrained(self) -> None:
        """Refuse weights of YOLOv5; make the path absolute."""
        weights = self._given.get("pretrained")
        if not isinstance(weights, str):
            return
        if not Path(weights).is_file():
            if Path(weights).parent != Path() and "://" not in weights:  # a bare name may be downloaded
                raise UserError(f"{weights}: there is no such file; name weights of ultralytics, or train from scratch")
            return
        if engine_of_weights(Path(weights)) == YOLOV5:
            raise UserError(
                f"{weights} belongs to YOLOv5; for models of ultralytics, name weights of theirs with pretrained=FILE"
            )
        self._given["pretrained"] = str(Path(weights).resolve())

    @property
    def texts(self) -> Mapping[Path, str]:
        return {self.data: self._text}

    @property
    def recipe(self) -> Mapping[str, Any]:
        weights = self._given.get("pretrained")
        return {
            "options": {name: value for name, value in self._args.items() if name not in _NOT_SHARED},
            "hyp": None,
            "weights": identity_of(weights) if isinstance(weights, str) else None,
        }

    def settings(self, folder: Path) -> Mapping[str, Any]:
        found = dict(self._args)
        if found["optimizer"] == "auto":
            found.update(optimizer="auto (and its own lr0)", lr0=None)
        return {name: found[name] for name in SETTINGS if found.get(name) is not None}

    def found(self, given: str) -> tuple[str, Path]:
        file = cfg_of_ultralytics(given, ULTRALYTICS)
        assert file is not None
        return Path(given).stem, file.absolute()

    def check(self, name: str, cfg: Path) -> None:
        where = _called(name, cfg).name
        content = read_cfg(where, self.engine, cfg)
        task = task_of(class_of(content, self.engine.module("nn.tasks")).__name__)
        if task != "detect":
            raise UserError(f"--cfgs {where} is a model for the task {task}; compare trains detectors")
        build(content, None, self.engine, where)
        log_warnings(likely_mistakes(Graph.from_cfg(content, where, of_ultralytics=True)), where)

    def start(self, name: str, cfg: Path, folder: Path, seed: int) -> list[str]:
        words = {
            "model": _called(name, cfg),
            "data": self.data,
            "project": folder.parent,
            "name": folder.name,
            "exist_ok": True,
            "seed": seed,
            "deterministic": True,
            **self._given,
        }
        return ["train", "--engine", ULTRALYTICS, *(f"{key}={value}" for key, value in words.items())]

    def resume(self, last: Path) -> list[str]:
        return ["train", "--engine", ULTRALYTICS, f"model={last}", "resume=True", f"data={self.data}"]

    def info(self, name: str, cfg: Path, nc: int) -> ModelInfo:
        return ultralytics_info(_called(name, cfg).name, cfg, nc, self.common.imgsz)

    def model(self, name: str, cfg: Path, nc: int) -> nn.Module:
        where = _called(name, cfg).name
        model: nn.Module = build(read_cfg(where, self.engine, cfg), nc, self.engine, where)
        return model


def _called(name: str, cfg: Path) -> Path:
    """The path of a model YAML with the letter of the size, which may be missing in the file's own name."""
    return cfg.with_name(f"{name}{cfg.suffix}")


def _refuse_own(given: Mapping[str, Any], is_mixed: bool) -> None:
    for name in given:
        if name in _OWN:
            raise UserError(f"compare takes no {name}=: {_OWN[name]}")
        if is_mixed and name in _SHARED:
            raise UserError(f"{name}= would hold for ultralytics only: write {_SHARED[name]}, which holds for both")


def _refuse_shared_weights(weights: str, given: Mapping[str, Any]) -> None:
    if weights and "pretrained" not in given:
        raise UserError(
            f"--weights {weights} holds for YOLOv5 only: name weights of ultralytics with pretrained=FILE, or write "
            "pretrained=False"
        )


def _as_options(common: Common) -> dict[str, Any]:
    """The options of YOLOv5, also those that it has by default, as arguments of ultralytics."""
    return {
        "epochs": common.epochs,
        "imgsz": common.imgsz,
        "batch": common.batch_size,
        "workers": common.workers,
        "device": common.device,
    }
