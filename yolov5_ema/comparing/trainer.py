"""What a comparison needs to know of an engine: how it trains a model, resumes a training, and builds a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from yolov5_ema.engine.model_info import ModelInfo
from yolov5_ema.errors import UserError
from yolov5_ema.files import sha256_of
from yolov5_ema.upstream.locate import Engine

SETTINGS = (
    *("optimizer", "lr0", "lrf", "warmup_epochs", "weight_decay", "batch"),
    *("mosaic", "close_mosaic", "mixup", "copy_paste", "scale", "translate", "degrees", "fliplr", "flipud"),
    *("hsv_h", "hsv_s", "hsv_v"),
)
"""The settings of a training that a report shows, by the names that both engines give them."""


@dataclass(frozen=True)
class Common:
    """Options of a training that every engine has.

    Attributes:
        epochs: number of epochs.
        imgsz: side of the images in pixels.
        batch_size: images in a batch.
        device: as in YOLOv5's ``--device``.
        workers: processes that read images.
        single_cls: all classes are merged into one.
        noval: best.pt is from the last epoch.
    """

    epochs: int
    imgsz: int
    batch_size: int
    device: str = ""
    workers: int = 8
    single_cls: bool = False
    noval: bool = False


class Trainer(Protocol):
    """How one engine trains the models of a comparison.

    Attributes:
        name: the name of the engine in reports.
        engine: the engine, with the blocks known to it.
        common: see `Common`.
        data: the data YAML that its commands get.
        words: its loss, for a report.
    """

    name: str
    engine: Engine
    common: Common
    data: Path
    words: str

    @property
    def texts(self) -> Mapping[Path, str]:
        """The files that it needs in the comparison's folder, by path."""

    @property
    def recipe(self) -> Mapping[str, Any]:
        """What must not change between its trainings.

        ``options``; ``hyp``, the file of hyperparameters, and ``weights``, the checkpoint to start from, both as of
        `identity_of` or None.
        """

    def settings(self, folder: Path) -> Mapping[str, Any]:
        """Those of `SETTINGS` with which the training in a folder was made, as far as they are known."""

    def found(self, given: str) -> tuple[str, Path]:
        """The name in tables and the model YAML of a path or a bare name; raises a ConfigError if there is none."""

    def check(self, name: str, cfg: Path) -> None:
        """Raise a UserError if a model cannot be built."""

    def start(self, name: str, cfg: Path, folder: Path, seed: int) -> list[str]:
        """The arguments of ``yolov5-ema`` that train a model into a folder."""

    def resume(self, last: Path) -> list[str]:
        """The arguments of ``yolov5-ema`` that continue a training from its last checkpoint."""

    def info(self, name: str, cfg: Path, nc: int) -> ModelInfo:
        """Parameters and operations of a model."""

    def model(self, name: str, cfg: Path, nc: int) -> nn.Module:
        """A model with random weights."""


def identity_of(file: str | Path) -> dict[str, str]:
    """A file and its SHA-256, which is "" if it does not exist yet."""
    path = Path(file)
    return {"file": str(file), "sha256": sha256(path) if path.is_file() else ""}


def sha256(path: Path) -> str:
    """The SHA-256 of a file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return sha256_of(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
