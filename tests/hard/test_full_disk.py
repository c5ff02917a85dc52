"""The disk is full while something is saved: there is a message, and the old file is still there."""

from __future__ import annotations

import csv
import errno
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import run_cli, write_tiny_set

from yolov5_ema.checkpoints.loading import load_checkpoint, save_checkpoint
from yolov5_ema.errors import UserError
from yolov5_ema.scripts.mistakes import errors_as_user_errors
from yolov5_ema.upstream.locate import engine_at

CLONE = SimpleNamespace(kind="clone")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a given size in MiB that can be made larger."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(mebibytes: int, *options: str) -> Path:
        flags = ",".join([f"size={mebibytes}m", *options])
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", flags, "tmpfs", str(place)], capture_output=True)
        if done.returncode:
            pytest.skip("mounting a tmpfs is not allowed here")
        return place

    yield mount
    subprocess.run(["umount", str(place)], capture_output=True)


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(small_disk):
    disk = small_disk(2)
    file = disk / "last.pt"
    save_checkpoint({"epoch": 1}, file, engine=CLONE)
    with pytest.raises(UserError, match=r"last\.pt cannot be written: No space left on device; the one that was"):
        save_checkpoint({"epoch": 2, "model": torch.zeros(1_000_000)}, file, engine=CLONE)
    assert torch.load(file) == {"epoch": 1} and os.listdir(disk) == ["last.pt"]
    with pytest.raises(UserError, match=r"gone/last\.pt cannot be written: No such file or directory$"):
        save_checkpoint({"epoch": 2}, disk / "gone" / "last.pt", engine=CLONE)
    save_checkpoint({"epoch": 3}, file, engine=CLONE)
    assert torch.load(file) == {"epoch": 3}


def test_an_interrupted_save_leaves_the_one_before(tmp_path, monkeypatch):
    file = tmp_path / "last.pt"
    save_checkpoint({"epoch": 1}, file, engine=CLONE)

    def interrupted(checkpoint: object, stream: object, **_: object) -> None:
        stream.write(b"PK")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint({"epoch": 2}, file, engine=CLONE)
    assert torch.load(file) == {"epoch": 1} and os.listdir(tmp_path) == ["last.pt"]


@pytest.mark.slow
def test_a_training_on_a_disk_that_fills_up(small_disk, tmp_path, package_root):
    data = write_tiny_set(tmp_path / "set", train=4, val=2, imgsz=64)
    disk = small_disk(40)  # last.pt and best.pt have 15 MB each: there is no room for the second last.pt
    model = ["--cfg", "yolov5n-ema.yaml", "--weights", "", "--img", 64, "--batch", 4, "--workers", 0]
    full = run_cli("train", "--data", data, *model, "--noautoanchor", "--epochs", 4, cwd=disk)
    assert full.returncode == 2 and "Traceback" not in full.stderr, full.stderr[-3000:]
    last_line = full.stderr.strip().splitlines()[-1]
    assert last_line.endswith("last.pt cannot be written: No space left on device; the one that was there is whole")
    run = disk / "runs/train/exp"
    from yolov5_ema.engine import shim

    with shim.installed(package_root):
        engine = engine_at(package_root)
        assert load_checkpoint(run / "weights/last.pt", "cpu", engine=engine)["epoch"] == 0
    assert sorted(os.listdir(run / "weights")) == ["best.pt", "last.pt"]
    small_disk(200, "remount")
    resumed = run_cli("train", "--resume", cwd=disk)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    with (run / "results.csv").open() as stream:
        assert [int(row[0]) for row in list(csv.reader(stream))[1:]] == [0, 1, 2, 3]


def test_a_full_disk_at_any_other_file_is_said_plainly(package_root):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "results.csv")
    message = r"^results\.csv cannot be written: No space left on device\."
    with pytest.raises(UserError, match=message), errors_as_user_errors(engine_at(package_root)):
        raise full
