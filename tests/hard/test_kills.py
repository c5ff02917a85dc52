"""A training that is killed at any moment continues from its last checkpoint; none of its files is ever incomplete."""

from __future__ import annotations

import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from cases import PLUGINS
from conftest import REPOSITORY, run_cli, write_tiny_set

from yolov5_ema.checkpoints.loading import load_checkpoint, save_checkpoint
from yolov5_ema.engine.quirks.resuming import match_files_to_checkpoint
from yolov5_ema.upstream.locate import engine_at


@pytest.fixture(scope="module")
def small_set(tmp_path_factory) -> Path:
    return write_tiny_set(tmp_path_factory.mktemp("kills") / "set", train=4, val=2, imgsz=64)


@pytest.fixture(scope="module")
def read(package_root):
    """Read a checkpoint as this package does, in a process in which YOLOv5 is not patched."""
    from yolov5_ema.engine import shim

    with shim.installed(package_root):
        engine = engine_at(package_root)
        yield lambda file: load_checkpoint(file, "cpu", engine=engine)


def training(small_set: Path, epochs: int) -> list[object]:
    flags = ["--cfg", "yolov5n-ema.yaml", "--weights", "", "--img", 64, "--batch", 4, "--workers", 0]
    return ["train", "--data", small_set, *flags, "--noautoanchor", "--epochs", epochs]


def start(folder: Path, *args: object) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-m", "yolov5_ema", *map(str, args), "--plugin", "note_resumed_optimizer"]
    with open(folder / "log.txt", "ab") as log:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)


def wait_for(file: Path, process: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + 120
    while not file.exists():
        assert process.poll() is None, (folder / "log.txt").read_text()[-3000:]
        assert time.monotonic() < deadline, f"{file} does not come"
        time.sleep(0.02)


def kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def assert_same(found: dict, expected: dict) -> None:
    """Compare two states of an optimizer: all tensors are equal bit for bit."""
    assert len(found["state"]) == len(expected["state"]) > 100
    for key, state in expected["state"].items():
        for name, value in state.items():
            torch.testing.assert_close(found["state"][key][name], value, rtol=0, atol=0)
    assert found["param_groups"] == expected["param_groups"]


def epochs_in(results: Path) -> list[int]:
    with results.open(encoding="utf-8") as stream:
        return [int(row[0]) for row in list(csv.reader(stream))[1:]]


def let_it_end_at(epochs: int, run: Path) -> None:
    options = yaml.safe_load((run / "opt.yaml").read_text())
    (run / "opt.yaml").write_text(yaml.safe_dump({**options, "epochs": epochs}))


@pytest.mark.slow
def test_a_kill_while_last_pt_is_written(small_set, tmp_path, read):
    shutil.copy(PLUGINS / "die_while_saving.py", tmp_path)
    shutil.copy(PLUGINS / "note_resumed_optimizer.py", tmp_path)
    killed = run_cli(*training(small_set, 4), "--plugin", "die_while_saving", cwd=tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    run = tmp_path / "runs/train/exp"
    assert len(list((run / "weights").glob(".last.pt.*.tmp"))) == 1
    before = read(run / "weights/last.pt")
    assert before["epoch"] == 1 and epochs_in(run / "results.csv") == [0, 1, 2]
    resumed = run_cli("train", "--resume", "--plugin", "note_resumed_optimizer", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert_same(read(tmp_path / "resumed.pt"), before["optimizer"])
    assert epochs_in(run / "results.csv") == [0, 1, 2, 3]
    assert sorted(file.name for file in (run / "weights").iterdir()) == ["best.pt", "last.pt"]


@pytest.mark.slow
def test_twenty_kills_at_random_moments(small_set, tmp_path, read):
    shutil.copy(PLUGINS / "note_resumed_optimizer.py", tmp_path)
    moments = random.Random(0)
    run = tmp_path / "runs/train/exp"
    last = run / "weights/last.pt"
    process = start(tmp_path, *training(small_set, 10_000))
    wait_for(last, process, tmp_path)
    reached, epochs, state = 0, [], {}
    for number in range(20):
        if number % 4 == 3:  # at any time: most of these are during the start
            time.sleep(moments.uniform(0, 15))
        elif number:
            wait_for(tmp_path / "resumed.pt", process, tmp_path)
            time.sleep(moments.uniform(0, 3))
        assert process.poll() is None, (tmp_path / "log.txt").read_text()[-3000:]
        kill(process)
        if number and (tmp_path / "resumed.pt").exists():
            reached += 1
            assert_same(read(tmp_path / "resumed.pt"), state)
        (tmp_path / "resumed.pt").unlink(missing_ok=True)
        checkpoint = read(last)  # complete, each time
        state = checkpoint["optimizer"]
        epochs.append(checkpoint["epoch"])
        if (run / "weights/best.pt").exists():  # otherwise it was killed between the first last.pt and this one
            read(run / "weights/best.pt")
        process = start(tmp_path, "train", "--resume")
    wait_for(tmp_path / "resumed.pt", process, tmp_path)
    kill(process)
    assert reached >= 14 and epochs == sorted(epochs) and epochs[-1] > epochs[0] + 10
    end = read(last)["epoch"] + 3
    let_it_end_at(end, run)
    done = run_cli("train", "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert epochs_in(run / "results.csv") == list(range(end))
    again = run_cli("train", "--resume", cwd=tmp_path)
    assert again.returncode == 2 and "nothing to resume" in again.stderr
    assert sorted(file.name for file in (run / "weights").iterdir()) == ["best.pt", "last.pt"]


def test_files_of_a_run_are_brought_to_one_epoch(tmp_path, read, package_root):
    engine = engine_at(package_root)
    (tmp_path / "weights").mkdir()
    last, best, results = (tmp_path / name for name in ("weights/last.pt", "weights/best.pt", "results.csv"))
    state = {"optimizer": {}, "epoch": 1, "best_fitness": np.array([0.5])}

    def even(fitness_of_best: float, rows: str) -> tuple[float, str]:
        save_checkpoint({**state, "best_fitness": fitness_of_best, "epoch": 0}, best, engine=engine)
        results.write_text(rows)
        match_files_to_checkpoint(tmp_path, last, engine)
        return np.asarray(read(best)["best_fitness"]).item(), results.read_text()

    save_checkpoint(state, last, engine=engine)
    assert even(0.5, "epoch, loss\n 0, 3\n 1, 2\n") == (0.5, "epoch, loss\n 0, 3\n 1, 2\n")
    assert even(0.4, "epoch, loss\n 0, 3\n 1, 2\n 2, 1\n") == (0.5, "epoch, loss\n 0, 3\n 1, 2\n")
    assert even(0.6, "epoch, loss\n 0, 3\n 1") == (0.6, "epoch, loss\n 0, 3\n")
    best.write_bytes(b"torn")
    match_files_to_checkpoint(tmp_path, last, engine)
    assert read(best)["epoch"] == 1
    save_checkpoint({**state, "optimizer": None, "epoch": -1}, last, engine=engine)  # finished: not changed
    assert even(0.4, "epoch, loss\n 0, 3\n 1") == (0.4, "epoch, loss\n 0, 3\n 1")
