"""Trainings with YOLOv5 in a comparison: their arguments, and the settings that a report shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from yolov5_ema.comparing.by_yolov5 import Yolov5Trainer
from yolov5_ema.errors import UserError


@pytest.fixture
def trainer(engine, tiny_set, own_folder):
    return Yolov5Trainer(engine, ["--epochs", "2", "--img", "64", "--batch", "4"], str(tiny_set), Path("exp"))


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
