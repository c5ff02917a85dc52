"""The flags of yolov5-ema itself: which of them are ours, and that they apply only to one call."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY

import yolov5_ema
from yolov5_ema.checkpoints.loading import is_trusted
from yolov5_ema.cli.main import main
from yolov5_ema.errors import CheckpointError
from yolov5_ema.settings import WAITING

SCRIPT = """
import json, os, sys
json.dump([sys.argv, os.environ.get("YOLOV5_EMA_CONFLICTS")], open("said.json", "w"))
"""


@pytest.fixture(autouse=True)
def without_the_shim():
    yield
    yolov5_ema.uninstall()


def said_by(*argv: str) -> list[object]:
    import json

    Path("mine.py").write_text(SCRIPT)
    assert main(list(argv)) == 0
    return json.loads(Path("said.json").read_text())


@pytest.mark.parametrize(
    "behind",
    [
        ["--conflicts", "none"],
        ["--trust-checkpoint", "--plugin", "x", "--yolov5", "nowhere"],
        ["--conflicts=ours", "-h", "--", "-x"],
        ["a", "--", "b"],
        ["--help"],
        [],
    ],
)
def test_a_script_of_the_users_own_gets_what_stands_behind_it(own_folder, behind):
    assert said_by("run", "mine.py", *behind) == [["mine.py", *behind], None]
    assert said_by("run", "mine.py", "--", *behind) == [["mine.py", *behind], None]
    assert said_by("run", "--", "mine.py", *behind) == [["mine.py", *behind], None]


def test_flags_before_the_script_are_ours(own_folder):
    for argv in (["--conflicts", "ours", "run"], ["run", "--conflicts", "ours"], ["run", "--conflicts=ours"]):
        assert said_by(*argv, "mine.py", "--conflicts", "x") == [["mine.py", "--conflicts", "x"], "ours"]
    assert "YOLOV5_EMA_CONFLICTS" not in os.environ


def test_messages_of_a_script_that_is_run(own_folder, capsys):
    assert said_by("run", "--verbose", "mine.py", "--verbose", "--quiet") == [
        ["mine.py", "--verbose", "--quiet"],
        None,
    ]
    assert "YOLOv5: YOLOv5 " in capsys.readouterr().err
    assert said_by("run", "mine.py", "--verbose") == [["mine.py", "--verbose"], None]
    assert capsys.readouterr().err == ""


def test_a_script_of_yolov5_takes_our_flags_anywhere(own_folder, clone, monkeypatch, capsys):
    nowhere = ["--yolov5", "nowhere"]
    assert main(["run", "val.py", *nowhere]) == 2
    assert "no such folder for --yolov5" in capsys.readouterr().err
    monkeypatch.chdir(clone)
    assert main(["run", "val.py", *nowhere]) == 2
    assert "no such folder for --yolov5" in capsys.readouterr().err


def test_openmp_of_torch_is_told_to_sleep_soon(own_folder):
    """The runtime prints the settings that it has read when torch loads it."""
    Path("mine.py").write_text("import torch")
    environment = {name: text for name, text in os.environ.items() if name not in WAITING}
    environment |= {"PYTHONPATH": str(REPOSITORY), "OMP_DISPLAY_ENV": "VERBOSE"}
    command = [sys.executable, "-m", "yolov5_ema", "run", "mine.py"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    said = dict(re.findall(r"(OMP_WAIT_POLICY|GOMP_SPINCOUNT) ?= ?'(\w+)'", done.stdout + done.stderr))
    assert said == {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}


def test_run_without_a_script(own_folder, capsys):
    assert main(["run", "--no-such-flag", "mine.py"]) == 2
    assert "no flag '--no-such-flag' here" in capsys.readouterr().err
    for argv in (["run"], ["run", "--"]):
        with pytest.raises(SystemExit) as stopped:
            main(argv)
        assert stopped.value.code == 2
    with pytest.raises(SystemExit) as stopped:
        main(["run", "--help"])
    assert stopped.value.code == 0 and "go to the script unchanged" in capsys.readouterr().out


# --- what a call leaves behind --------------------------------------------------------------


def test_flags_end_with_their_call(own_folder, monkeypatch, capsys):
    monkeypatch.setenv("YOLOV5_EMA_CONFLICTS", "theirs")
    before = dict(os.environ)
    flags = ["--trust-checkpoint", "--conflicts", "ours", "--plugin", "os", "--yolov5", "nowhere"]
    assert main(["inspect", "nothing.pt", *flags]) == 2
    assert main(["train", "--init", "none", "--no-such-flag"]) == 2
    os.environ.pop("YOLOV5_EMA_ACTIVE", None)
    ours = {name: value for name, value in os.environ.items() if name.startswith("YOLOV5_EMA")}
    assert ours == {name: value for name, value in before.items() if name.startswith("YOLOV5_EMA")}
    assert not is_trusted()


class Odd:
    """A call that no checkpoint needs."""


def test_trust_that_is_said_to_load_holds_for_all_that_it_reads(trained, own_folder, monkeypatch):
    with yolov5_ema.installed() as engine:
        from yolov5_ema.checkpoints.loading import load_checkpoint

        checkpoint = load_checkpoint(trained, engine=engine)
    torch.save({**checkpoint, "extra": Odd()}, "odd.pt")
    with pytest.raises(CheckpointError, match="Odd"):
        yolov5_ema.load("odd.pt", "cpu")
    picture = torch.zeros(64, 64, 3, dtype=torch.uint8).numpy()
    assert len(yolov5_ema.load("odd.pt", "cpu", trust=True)(picture, size=64)) == 1
    assert not is_trusted()
    monkeypatch.setenv("YOLOV5_EMA_TRUST_CHECKPOINT", "1")
    with pytest.raises(CheckpointError, match="Odd"):
        yolov5_ema.load("odd.pt", "cpu", trust=False)
    assert is_trusted()
