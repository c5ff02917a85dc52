"""Trainings with YOLOv5 in a comparison: their arguments, and the settings that a report shows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from yolov5_ema.cfgs.generator import format_cfg
from yolov5_ema.comparing.by_yolov5 import Yolov5Trainer
from yolov5_ema.errors import CheckpointError, ConfigError, UserError
from yolov5_ema.settings import exporting

USUAL = ("--epochs", "2", "--img", "64", "--batch", "4")


@pytest.fixture
def trainer(engine, tiny_set, own_folder):
    return Yolov5Trainer(engine, USUAL, str(tiny_set), Path("exp"))


def test_a_training_and_its_continuation(trainer, tiny_set):
    line = trainer.start("a", Path("/m/a.yaml"), Path("/c/a/seed1"), 1)
    own = ["--cfg", "/m/a.yaml", "--project", "/c/a", "--name", "seed1", "--exist-ok"]
    assert line == ["train", *trainer.flags, *own] and trainer.flags[:2] == ("--weights", "")
    assert trainer.resume(Path("/c/a/seed1/weights/last.pt")) == ["train", "--resume", "/c/a/seed1/weights/last.pt"]
    assert trainer.data == tiny_set and trainer.texts == {}


def test_settings_come_from_the_training_itself(trainer):
    file = Path("hyp.yaml")
    unknown = {"optimizer": "SGD", "batch": 4}
    assert trainer.settings(Path()) == unknown
    file.write_text("lr0: 0.02\nmosaic: 0.5\nbox: 0.05\n")
    assert trainer.settings(Path()) == {**unknown, "lr0": 0.02, "mosaic": 0.5}
    file.write_text("[damaged")
    assert trainer.settings(Path()) == unknown


def test_no_epochs_are_refused(engine, tiny_set, own_folder):
    with pytest.raises(UserError, match="--epochs must be at least 1, not 0"):
        Yolov5Trainer(engine, ["--epochs", "0"], str(tiny_set), Path("exp"))


@pytest.fixture
def pretrained(engine, tiny_set, own_folder):
    """A function that makes a trainer with --weights."""
    return lambda weights: Yolov5Trainer(engine, [*USUAL, "--weights", weights], str(tiny_set), Path("exp"))


def cfg(block: str) -> Path:
    file = Path(f"{block}.yaml")
    file.write_text(format_cfg(size="n", block=block, nc=3))
    return file


def test_released_weights_have_no_blocks(pretrained):
    """Before they are downloaded, every block counts as new."""
    trainer = pretrained("yolov5n.pt")
    with exporting(init="identity"):
        trainer.check_init({"none": cfg("none"), "EMA": cfg("EMA")})
        with pytest.raises(ConfigError, match=r"^--cfgs SimAM with --weights yolov5n.pt: --init identity: row 7 \(Sim"):
            trainer.check_init({"none": cfg("none"), "SimAM": cfg("SimAM")})
    ends = [trainer.start("a", cfg(block), Path("/c/a/seed0"), 0)[-2:] for block in ("none", "EMA")]
    assert ends == [["--init", "none"], ["seed0", "--exist-ok"]]


def test_only_identity_needs_blocks(trainer, pretrained):
    models = {"none": cfg("none"), "SimAM": cfg("SimAM")}
    pretrained("yolov5n.pt").check_init(models)
    with exporting(init="identity"):
        trainer.check_init(models)  # from scratch
    assert "--init" not in trainer.start("a", models["none"], Path("/c/a/seed0"), 0)


def test_weights_without_a_model_cannot_be_tried(pretrained):
    torch.save({"epoch": -1}, "a.pt")
    with exporting(init="identity"), pytest.raises(CheckpointError, match=r"a.pt: its model is not one .*'model'"):
        pretrained("a.pt").check_init({"EMA": cfg("EMA")})
