"""Running YOLOv5's own scripts, several times in one process."""

from __future__ import annotations

from pathlib import Path

from conftest import small_cfg

from yolov5_ema.cli.main import main


def test_a_second_training_in_a_process_leaves_the_results_of_the_first_alone(tiny_set, own_folder, undrawn):
    """The default callbacks of YOLOv5's ``main`` keep the loggers of all earlier trainings."""
    Path("small.yaml").write_text(small_cfg())
    flags = ["train", "--data", str(tiny_set), "--cfg", "small.yaml", "--weights", "", "--epochs", "1", "--img", "64"]
    flags += ["--batch-size", "4", "--workers", "0", "--noautoanchor"]
    assert main(flags) == 0
    first = Path("runs/train/exp/results.csv")
    before = first.read_text()
    assert main(flags) == 0
    assert first.read_text() == before and Path("runs/train/exp2/results.csv").is_file()
