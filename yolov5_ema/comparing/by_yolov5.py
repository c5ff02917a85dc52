"""Trainings with YOLOv5 in a comparison; a `trainer.Trainer`."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from yolov5_ema.cfgs.dry_run import quiet
from yolov5_ema.checkpoints.loading import load_checkpoint
from yolov5_ema.checkpoints.models import as_yolov5_builds
from yolov5_ema.comparing.trainer import SETTINGS, Common, identity_of
from yolov5_ema.engine.model_info import ModelInfo, model_info
from yolov5_ema.engine.quirks.downloads import is_released_weight
from yolov5_ema.errors import ConfigError, UserError
from yolov5_ema.scripts import preflight
from yolov5_ema.scripts.running import command_line
from yolov5_ema.settings import Settings, read
from yolov5_ema.texts import listed
from yolov5_ema.upstream.flags import given_flags, refuse_unknown
from yolov5_ema.upstream.hyperparameters import read_hyp
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.weights.identity import rows_with_blocks, start_as_identity
from yolov5_ema.weights.transfer import transfer

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
    def _weights(self) -> str:
        return str(getattr(self.options, "weights", "") or "")

    @property
    def texts(self) -> Mapping[Path, str]:
        return {}

    @property
    def recipe(self) -> Mapping[str, Any]:
        shared = {name: value for name, value in vars(self.options).items() if name not in _NOT_SHARED}
        hyp, weights = getattr(self.options, "hyp", None), self._weights
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

    def check_init(self, cfgs: Mapping[str, Path]) -> None:
        """For ``--init identity``: find the models without blocks, which are trained as without it, and try the others.

        Args:
            cfgs: model YAMLs by name, which were checked.

        Raises:
            CheckpointError: the weights cannot be read.
            ConfigError: no model has a block, or blocks of a model cannot start as identities.
        """
        if read("init") != "identity" or not self._weights:
            return
        pretrained = self._pretrained()
        for name, cfg in cfgs.items():
            model = self.model(name, cfg, None)
            if not rows_with_blocks(model):
                self._without_blocks.add(cfg)
                continue
            try:
                self._try_identity(model, pretrained)
            except ConfigError as error:
                raise ConfigError(f"--cfgs {name} with --weights {self._weights}: {error}") from error
        if len(self._without_blocks) == len(cfgs):
            raise ConfigError(
                f"--init identity would change nothing: no model of YOLOv5 in --cfgs has an attention block "
                f"({listed(cfgs)}); leave --init out, or name a model with blocks"
            )

    def _pretrained(self) -> nn.Module | None:
        """The model in the weights; None if they must be downloaded first."""
        file = Path(self._weights)
        if not file.is_file():
            return None
        with as_yolov5_builds(file):
            model: nn.Module = load_checkpoint(file, "cpu", engine=self.engine)["model"]
        return model

    def _try_identity(self, model: nn.Module, pretrained: nn.Module | None) -> None:
        """Start the blocks of a model in the way that ``train`` will (`engine.quirks.weight_transfer`)."""
        if pretrained is not None:
            with as_yolov5_builds(Path(self._weights)):
                start_as_identity(model, transfer(pretrained, model).fresh_blocks)
        elif is_released_weight(self._weights):
            # they have no blocks
            start_as_identity(model, rows_with_blocks(model))

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
