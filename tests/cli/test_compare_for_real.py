"""``yolov5-ema compare`` with real trainings."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY, SMALL_YOLO, run_cli, small_cfg
from offline_ultralytics import environment
from played_comparisons import result

from yolov5_ema.reporting.epochs import read_epochs

pytestmark = pytest.mark.usefixtures("two_cfgs")

REAL = ("--img", 64, "--batch", 4, "--noautoanchor", "--latency-rounds", 2, "--hyp", "hyp.demo.yaml")


def real_command(tiny_set: Path, *flags: object) -> list[str]:
    cfgs = ("small.yaml", "small-ema.yaml")
    for cfg, block in zip(cfgs, (None, "EMA, [8]")):
        Path(cfg).write_text(small_cfg(block))
    return [str(f) for f in ("compare", "--data", tiny_set, "--cfgs", *cfgs, *REAL, *flags)]


@pytest.mark.slow
def test_two_real_trainings(tiny_set, own_folder):
    done = run_cli(*real_command(tiny_set, "--seeds", 1, "--epochs", 1, "--workers", 0), cwd=own_folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = result()
    for run in found["runs"]:
        assert run["status"] == "finished" and set(run["figures"]) >= {
            "precision",
            "recall",
            "map50",
            "map50_95",
        }
        assert all(0 <= value <= 1 for value in run["figures"].values())
        assert [attempt["exit_code"] for attempt in run["attempts"]] == [0]
    folders = [own_folder / "runs/compare/exp" / name / "seed0" for name in ("small", "small-ema")]
    images = [(folder / "train_batch0.jpg").read_bytes() for folder in folders]
    assert images[0] == images[1]  # both have seen the same images
    for folder in folders:
        assert (folder / "weights/best.pt").is_file() and len((folder / "results.csv").read_text().splitlines()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("cfg", ["small.yaml", "small26.yaml"])
def test_last_epochs_of_real_trainings(tiny_set, own_folder, cfg):
    Path("small26.yaml").write_text(SMALL_YOLO)
    Path("small.yaml").write_text(small_cfg())
    shutil.copy(cfg, "other.yaml")
    usual = ("--img", 96, "--batch", 4, "--latency-rounds", 0, "--seeds", 1, "--epochs", 3, "--workers", 0)
    argv = ["compare", "--data", tiny_set, "--cfgs", cfg, "other.yaml", *usual, "--last", 2]
    done = run_cli(*argv, cwd=own_folder, env=environment(own_folder))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for run in result()["runs"]:
        epochs = read_epochs(own_folder / "runs/compare/exp" / run["cfg"] / "seed0/results.csv")
        for metric, column in {"map50": "mAP50", "map50_95": "mAP50-95"}.items():
            *first, a, b = epochs.values(column)
            assert len(first) == 1 and run["figures"][metric] == pytest.approx((a + b) / 2)


@pytest.mark.slow
def test_two_seeds_killed_and_resumed(tiny_set, own_folder):
    """kill -9 in the second of four runs: the first is not trained again, the second is resumed."""
    argv = real_command(tiny_set, "--seeds", 2, "--epochs", 6, "--workers", 2)
    folder = own_folder / "runs/compare/exp"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen([sys.executable, "-m", "yolov5_ema", *argv], env=environment)
    interrupted = folder / "small-ema/seed0"
    until_s = time.monotonic() + 400
    while not (interrupted / "weights/last.pt").is_file():  # after its first epoch
        assert time.monotonic() < until_s and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(1)
    rows = len((interrupted / "results.csv").read_text().splitlines()) - 1
    assert 1 <= rows < 6
    time.sleep(5)
    # nothing trains in the background
    assert len((interrupted / "results.csv").read_text().splitlines()) - 1 == rows
    first = (folder / "small/seed0/weights/best.pt").stat().st_mtime_ns

    done = run_cli(*argv, cwd=own_folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "1 of 4 runs are finished already" in done.stdout
    assert (folder / "small/seed0/weights/best.pt").stat().st_mtime_ns == first
    runs = {(run["cfg"], run["seed"]): run for run in result()["runs"]}
    assert len(runs) == 4 and all(run["status"] == "finished" for run in runs.values())
    attempts = runs["small-ema", 0]["attempts"]
    assert attempts[0]["from_epoch"] == 0 and attempts[-1]["exit_code"] == 0 and len(attempts) == 2
    assert all(len(run["attempts"]) == 1 for key, run in runs.items() if key != ("small-ema", 0))
    epochs = {line.split(",")[0].strip() for line in (interrupted / "results.csv").read_text().splitlines()[1:]}
    assert epochs == {str(epoch) for epoch in range(6)}


@pytest.mark.slow
def test_two_at_once_interrupted_and_resumed(tiny_set, own_folder):
    """Ctrl-C ends both trainings; later, both go on."""
    argv = real_command(tiny_set, "--seeds", 1, "--epochs", 8, "--workers", 0, "--jobs", 2)
    folders = [own_folder / "runs/compare/exp" / name / "seed0" for name in ("small", "small-ema")]
    command = [sys.executable, "-m", "yolov5_ema", *argv]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    until_s = time.monotonic() + 400
    while not all((folder / "weights/last.pt").is_file() for folder in folders):  # both at the same time
        assert time.monotonic() < until_s and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    rows = [(folder / "results.csv").read_text() for folder in folders]
    time.sleep(5)
    assert [(folder / "results.csv").read_text() for folder in folders] == rows
    done = run_cli(*argv, cwd=own_folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    runs = result()["runs"]
    assert all(run["status"] == "finished" for run in runs)
    resumed = [run["attempts"][1]["from_epoch"] for run in runs if len(run["attempts"]) == 2]
    assert resumed and all(epoch > 0 for epoch in resumed)  # one of them may have been at its end


@pytest.mark.slow
def test_both_engines_for_real_killed_and_resumed(tiny_set, own_folder):
    """kill -9 in the training of ultralytics: it is resumed, and every best.pt is scored on the same objects."""
    Path("small.yaml").write_text(small_cfg())
    Path("small26.yaml").write_text(SMALL_YOLO)
    usual = ("--img", 64, "--batch", 4, "--latency-rounds", 2, "--seeds", 1, "--epochs", 4, "--workers", 0)
    argv = ["compare", "--data", tiny_set, "--cfgs", "small.yaml", "small26.yaml", *usual, "plots=False"]
    own = {"PYTHONPATH": str(REPOSITORY), **environment(own_folder)}
    command = [sys.executable, "-m", "yolov5_ema", *map(str, argv)]
    process = subprocess.Popen(command, env={**os.environ, **own})
    folder = own_folder / "runs/compare/exp/small26/seed0"
    until_s = time.monotonic() + 400
    while not (folder / "weights/last.pt").is_file():
        assert time.monotonic() < until_s and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(5)
    rows = len((folder / "results.csv").read_text().splitlines()) - 1
    assert 1 <= rows < 4
    done = run_cli(*argv, cwd=own_folder, env=own)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = result()
    runs = {run["cfg"]: run for run in found["runs"]}
    assert all(run["status"] == "finished" for run in runs.values())
    assert [attempt["from_epoch"] > 0 for attempt in runs["small26"]["attempts"]] == [False, True]
    assert len(runs["small"]["attempts"]) == 1
    epochs = [line.split(",")[0] for line in (folder / "results.csv").read_text().splitlines()[1:]]
    # ultralytics writes the row before last.pt: an epoch that is killed in between is trained, and written, again
    assert list(dict.fromkeys(epochs)) == ["1", "2", "3", "4"] and len(epochs) <= 5
    assert all(0 < model["latency_ms"]["median"] < 60000 for model in found["models"].values())
    assert (folder.parent.parent / "comparison.png").is_file()
