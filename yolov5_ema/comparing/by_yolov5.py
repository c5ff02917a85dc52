"""Trainings with YOLOv5 in a comparison; a `trainer.Trainer`."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from yolov5_ema.blocks.registry import block_of
from yolov5_ema.cfgs.dry_run import quiet
from yolov5_ema.comparing.trainer import SETTINGS, Common, identity_of
from yolov5_ema.engine.model_info import ModelInfo, model_info
from yolov5_ema.errors import ConfigError, UserError
from yolov5_ema.scripts import preflight
from yolov5_ema.scripts.running import command_line
from yolov5_ema.settings import Settings, read
from yolov5_ema.upstream.flags import given_flags, refuse_unknown
from yolov5_ema.upstream.hyperparameters import read_hyp
from yolov5_ema.upstream.locate import Engine

_OWN_FLAGS = {
    "--cfg": "the models are named with --cfgs",
    "--seed": "--seeds N trains every model with seeds 0 to N - 1",
    "--resume": "the same compare command continues where it was interrupted",
    "--evolve": "all trainings share one recipe",
    "--exist-ok": "the same compare command continues in the same folder",
    "--local_rank": "compare itself starts each training",
}
# options that differ between the runs of a comparison or are recorded separately (data and hyp: by their content)
_NOT_SHARED = {"cfg", "data", "hyp", "project", "name", "exist_ok", "resume", "evolve", "seed", "local_rank"}


class Yolov5Trainer:
    """See `trainer.Trainer`.

    Args:
        engine: the YOLOv5, with the shim installed.
        flags: flags of its ``train``, for all trainings.
        data: a data YAML, or the name of a shipped one.
        folder: the folder of the comparison.

    Raises:
        UserError: a flag cannot be used.
        SystemExit: raised by YOLOv5's own parser for a value that it cannot read.
    """

    name = "YOLOv5"
    words = "boxes by CIoU, objectness and classes, with anchors"

    def __init__(self, engine: Engine, flags: Sequence[str], data: str, folder: Path) -> None:
        self.engine = engine
        _refuse_own_flags(engine, flags)
        options = self._parsed(["--weights", "", *flags, "--data", data])
        if options.epochs < 1:
            raise UserError(f"--epochs must be at least 1, not {options.epochs}")
        options.project = str(folder)
        self.options = options
        self._without_blocks: set[Path] = set()
        self.data = Path(options.data).resolve()
        self.flags = ("--weights", "", *flags, *self._absolute_paths())
        self.common = Common(
            epochs=options.epochs,
            imgsz=options.imgsz,
            batch_size=options.batch_size,
            device=str(options.device),
            workers=getattr(options, "workers", 8),
            single_cls=getattr(options, "single_cls", False),
            noval=getattr(options, "noval", False),
        )

    def _parsed(self, argv: list[str]) -> argparse.Namespace:
        """Parse the flags with YOLOv5's own parser, so that a mistake is reported now and not by the first training."""
        module: Any = self.engine.module("train")
        refuse_unknown(self.engine, "train", argv, "yolov5-ema compare")
        with command_line("compare", argv):
            options: argparse.Namespace = module.parse_opt()
        preflight.resolve_names(options, self.engine)
        return options

    def _absolute_paths(self) -> list[str]:
        """The flags with absolute paths, because a training may be resumed from another working directory."""
        found = ["--data", str(self.data)]
        for flag in ("hyp", "weights"):
            value = getattr(self.options, flag, None)
            if isinstance(value, str) and value and Path(value).is_file():
                found += [f"--{flag}", str(Path(value).resolve())]
        return found

    @property
    def texts(self) -> Mapping[Path, str]:
        return {}

    @property
    def recipe(self) -> Mapping[str, Any]:
        shared = {name: value for name, value in vars(self.options).items() if name not in _NOT_SHARED}
        hyp, weights = getattr(self.options, "hyp", None), str(getattr(self.options, "weights", "") or "")
        init = read("init")
        if weights and init != Settings.init:
            shared["init"] = init
        return {
            "options": {name: str(value) if isinstance(value, Path) else value for name, value in shared.items()},
            "hyp": identity_of(hyp) if hyp else None,
            "weights": identity_of(weights) if weights else None,
        }

    def settings(self, folder: Path) -> Mapping[str, Any]:
        file, options = folder / "hyp.yaml", self.options
        optimizer = getattr(options, "optimizer", None) or ("Adam" if getattr(options, "adam", False) else "SGD")
        found: dict[str, Any] = {"optimizer": optimizer, "batch": options.batch_size}
        with contextlib.suppress(ConfigError):  # it is missing or damaged
            found.update(read_hyp(file))
        return {name: found[name] for name in SETTINGS if name in found}

    def found(self, given: str) -> tuple[str, Path]:
        named = argparse.Namespace(cfg=given)
        try:
            preflight.resolve_names(named, self.engine)
        except ConfigError as error:
            raise ConfigError(str(error).replace("--cfg ", "--cfgs ", 1)) from None
        path = Path(named.cfg).resolve() if given else Path()
        return path.stem, path

    def check(self, name: str, cfg: Path) -> None:
        preflight.check(argparse.Namespace(**{**vars(self.options), "cfg": str(cfg)}), "train", self.engine)
        # a baseline without blocks cannot start them as identities, and train would refuse it
        if read("init") == "identity" and not any(map(block_of, self.model(name, cfg, None).modules())):
            self._without_blocks.add(cfg)

    def start(self, name: str, cfg: Path, folder: Path, seed: int) -> list[str]:
        place = ["--project", str(folder.parent), "--name", folder.name, "--exist-ok"]
        init = ["--init", Settings.init] if cfg in self._without_blocks else []
        return ["train", *self.flags, "--cfg", str(cfg), *place, *init]

    def resume(self, last: Path) -> list[str]:
        return ["train", "--resume", str(last)]

    def info(self, name: str, cfg: Path, nc: int) -> ModelInfo:
        return model_info(cfg, nc, self.common.imgsz)

    def model(self, name: str, cfg: Path, nc: int | None) -> nn.Module:
        with quiet():
            model: nn.Module = self.engine.module("models.yolo").Model(str(cfg), ch=3, nc=nc)
        return model


def _refuse_own_flags(engine: Engine, flags: Sequence[str]) -> None:
    """Refuse flags that compare sets itself, also if they are abbreviated or unknown to this YOLOv5."""
    given = {flag.split("=", 1)[0] for flag in flags}
    given.update(f"--{name}" for name in given_flags(engine, "train", flags))
    for flag, why in _OWN_FLAGS.items():
        if flag in given or flag.replace("-", "_").replace("__", "--", 1) in given:
            raise UserError(f"compare takes no {flag}: {why}")
