"""A command reads its data YAML once, lists the images of a split once, and checks a cfg once."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from conftest import small_cfg

from yolov5_ema.cfgs import rows
from yolov5_ema.cli.main import main
from yolov5_ema.data import dataset, yaml_files

COMMON = ("--img", 64, "--batch-size", 4)


@pytest.fixture
def counted(monkeypatch, own_folder):
    """Counts of YAMLs that our code reads, by file; of lists of images, by folder; and of checks of cfgs."""
    counts: Counter[str] = Counter()

    def count(module, name, what):
        function = getattr(module, name)

        def counting(*args, **kwargs):
            counts[what(*args)] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(module, name, counting)

    count(yaml_files, "_content_of", lambda file, name: Path(file).name)
    count(dataset, "files_below", lambda top: "images of " + os.path.basename(top))
    count(rows, "_checked_rows", lambda cfg, yolo, where, conflicts: "check of a cfg")
    return counts


def run(*argv: object) -> None:
    assert main([*map(str, argv)]) == 0


def test_val(counted, trained, tiny_set, undrawn):
    run("val", "--data", tiny_set, "--weights", trained, *COMMON)
    assert counted[tiny_set.name] == 1 and counted["images of val"] == 1
    assert not counted["images of train"]


def test_evaluate(counted, trained, tiny_set):
    run("evaluate", "--data", tiny_set, "--weights", trained, *COMMON, "--noplots")
    assert counted[tiny_set.name] == 1 and counted["images of val"] == 1


def test_train(counted, tiny_set, undrawn):
    Path("small.yaml").write_text(small_cfg())
    flags = ("--weights", "", "--epochs", 1, "--workers", 0, "--noautoanchor")
    run("train", "--data", tiny_set, "--cfg", "small.yaml", *flags, *COMMON)
    assert counted[tiny_set.name] == 1
    assert counted["images of train"] == counted["images of val"] == 1
    assert counted["check of a cfg"] == 1
