"""``yolov5-ema classify``: a training and its files, val and predict with it, and what is refused."""

from __future__ import annotations

import ast
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from cases.light_imports import runs
from conftest import REPOSITORY
from fresh_process import run_fresh
from PIL import Image

from yolov5_ema.classification import synthetic
from yolov5_ema.classification.checkpoints import load_classifier
from yolov5_ema.classification.datasets import open_data
from yolov5_ema.cli.main import main

DATA = "synthetic:classes=3,train=48,val=20"
TINY = ("--model", "test_resnet", "--data", DATA, "--epochs", "2", "--batch", "16", "--workers", "0")
HERE = ("--device", "cpu")


def classify(*argv: object) -> int:
    return main(["classify", *map(str, argv)])


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory) -> Path:
    """The run folder of a short training with EMA. Do not change it."""
    project = tmp_path_factory.mktemp("classify") / "runs"
    options = ("--block", "EMA", "--block-options", "{groups: nearest}", "--project", project, "--seed", 3)
    assert classify("train", *TINY, *HERE, *options, "--set", "flip=0") == 0
    return project / "exp"


def test_the_run_folder_is_as_agreed(trained_run):
    there = {path.relative_to(trained_run).as_posix() for path in trained_run.rglob("*") if path.is_file()}
    events = {name for name in there if name.startswith("events.out.tfevents")}
    files = {
        "args.yaml",
        "results.csv",
        "metrics.json",
        "confusion.png",
        "weights/best.pt",
        "weights/last.ckpt",
    }
    assert there - events == files and len(events) == 1
    args = yaml.safe_load((trained_run / "args.yaml").read_text())
    assert (args["model"], args["block"], args["block_options"]) == (
        "test_resnet",
        "EMA",
        {"groups": "nearest"},
    )
    assert (args["seed"], args["flip"], args["epochs"], args["device"], args["data"]) == (
        3,
        0.0,
        2,
        "cpu",
        DATA,
    )
    rows = list(csv.DictReader((trained_run / "results.csv").open()))
    assert list(rows[0]) == ["epoch", "train/loss", "val/loss", "val/top1", "val/top5", "lr"] and len(rows) == 2


def test_metrics_are_those_of_best_pt(trained_run):
    metrics = json.loads((trained_run / "metrics.json").read_text())
    classifier = load_classifier(trained_run / "weights" / "best.pt")
    pictures = open_data(DATA, 32, ("val",)).splits["val"]
    confusion = np.zeros((3, 3), int)
    losses = []
    with torch.no_grad():
        for index in range(20):
            logits = classifier.model(classifier.prepare(pictures.load(index)))
            confusion[index % 3, int(logits.argmax())] += 1
            losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor([index % 3])).item())
    assert metrics["task"] == "classify" and metrics["images"] == 20 and metrics["confusion"] == confusion.tolist()
    assert metrics["top1"] == confusion.trace() / 20 == classifier.record["top1"] and metrics["top5"] == 1.0
    assert metrics["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert [row["name"] for row in metrics["classes"]] == ["disc", "square", "triangle"]
    assert [row["images"] for row in metrics["classes"]] == [7, 7, 6]
    assert [row["top1"] for row in metrics["classes"]] == pytest.approx(confusion.diagonal() / [7, 7, 6])
    assert (metrics["model"], metrics["block"]) == ("test_resnet", "EMA")
    assert metrics["parameters"] == sum(parameter.numel() for parameter in classifier.model.parameters())


def test_val_prints_a_table_and_writes_the_same_metrics(trained_run, own_folder, capsys):
    best = trained_run / "weights" / "best.pt"
    assert classify("val", "--weights", best, *HERE, "--workers", 0, "--batch", 7) == 0
    told = capsys.readouterr().out.splitlines()
    metrics = json.loads((trained_run / "metrics.json").read_text())
    assert told[0].split() == ["class", "images", "top-1", "top-5"]
    assert told[1].split() == ["all", "20", f"{metrics['top1']:.2%}", "100.00%"]
    assert told[2].split()[:2] == ["disc", "7"] and told[4].split()[:2] == ["triangle", "6"]
    found = json.loads((own_folder / "runs" / "classify-val" / "exp" / "metrics.json").read_text())
    assert found["loss"] == pytest.approx(metrics["loss"], rel=1e-5)  # sums in batches of a different size
    assert {**found, "loss": 0} == {**metrics, "loss": 0}
    assert (own_folder / "runs" / "classify-val" / "exp" / "confusion.png").stat().st_size > 5000
    assert classify("val", "--weights", best, *HERE, "--workers", 0, "--split", "train", "--data", DATA) == 0
    assert json.loads((own_folder / "runs/classify-val/exp2/metrics.json").read_text())["images"] == 48


def write_pictures(folder: Path) -> Path:
    for split in ("train", "val"):
        for index in range(6):
            pixels, label = synthetic.draw(0, "val", index, 3, 48)
            place = folder / split / ("disc", "square", "triangle")[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place / f"{index}.png")
    return folder


def test_val_names_pictures_that_cannot_be_read(trained_run, own_folder, capsys):
    root = write_pictures(own_folder / "set")
    (root / "val" / "disc" / "0.png").write_bytes(b"torn")
    best = trained_run / "weights" / "best.pt"
    assert classify("val", "--weights", best, "--data", root, *HERE, "--workers", 0) == 1
    told = capsys.readouterr()
    assert "1 image could not be read, left out:" in told.err and "disc/0.png: is not an image" in told.err
    metrics = json.loads((own_folder / "runs" / "classify-val" / "exp" / "metrics.json").read_text())
    assert metrics["images"] == 5 and metrics["unreadable"][0]["name"].endswith("0.png")
    (root / "val" / "disc").rename(root / "val" / "dics")
    assert classify("val", "--weights", best, "--data", root, *HERE) == 2
    told = capsys.readouterr().err
    assert "does not have disc" in told and "does not have dics" in told


def test_predict(trained_run, own_folder, capsys):
    root = write_pictures(own_folder / "set")
    best = trained_run / "weights" / "best.pt"
    (root / "train" / "disc" / "bad.png").write_bytes(b"torn")
    where = ("--source", root / "train" / "disc", f"{root}/val/**/*.png", root / "val" / "disc" / "0.png")
    assert classify("predict", "--weights", best, *where, *HERE, "--save-txt", "--batch", 4) == 1
    told = capsys.readouterr()
    assert "bad.png: is not an image" in told.err and "1 of 9 files" in told.err
    folder = own_folder / "runs" / "classify-predict" / "exp"
    rows = json.loads((folder / "predictions.json").read_text())
    assert len(rows) == 9 and sum("error" in row for row in rows) == 1
    classifier = load_classifier(best)
    lines = [line for line in told.out.splitlines() if ".png:" in line]
    assert len(lines) == 8
    for row in rows:
        if "error" in row:
            continue
        with torch.no_grad():
            shares = classifier.model(classifier.prepare(Image.open(row["image"]))).softmax(1)[0]
        order = shares.argsort(descending=True).tolist()
        assert [one["class"] for one in row["predictions"]] == order
        assert [one["confidence"] for one in row["predictions"]] == pytest.approx(shares[order].tolist(), abs=1e-5)
        assert row["predictions"][0]["name"] == classifier.names[order[0]]
    table = list(csv.DictReader((folder / "predictions.csv").open()))
    assert len(table) == 24 and [row["rank"] for row in table[:3]] == ["1", "2", "3"]
    texts = sorted(path.name for path in (folder / "labels").iterdir())
    # two pictures with the same name in two folders are kept apart
    assert len(texts) == 8 and texts[:3] == ["0-2.txt", "0.txt", "1.txt"]
    assert len((folder / "labels" / "0.txt").read_text().splitlines()) == 3
    assert classify("predict", "--weights", best, "--source", root / "val" / "disc", *HERE, "--nosave") == 0
    assert not (own_folder / "runs" / "classify-predict" / "exp2").exists()


def test_names_that_are_not_utf8(trained_run, own_folder, capsys):
    pixels, _ = synthetic.draw(0, "val", 0, 3, 32)
    Image.fromarray(pixels).save(own_folder / "plain.png")
    odd = os.fsdecode(b"caf\xe9.png")
    try:
        (own_folder / "plain.png").rename(own_folder / odd)
    except OSError:
        pytest.skip("this file system takes no such names")
    assert classify("predict", "--weights", trained_run / "weights" / "best.pt", "--source", odd, *HERE) == 0
    assert "caf?.png" in capsys.readouterr().out


def test_predict_refuses_what_it_cannot_use(trained_run, refused, own_folder):
    best = trained_run / "weights" / "best.pt"
    (own_folder / "bad.png").write_bytes(b"torn")
    (own_folder / "empty").mkdir()
    for source, words in (
        ("bad.png", "none of 1 file can be read; bad.png is not an image"),
        ("nowhere.png", "no such file or folder"),
        ("*.gif", "no file matches"),
        ("empty", "no images directly in this folder"),
    ):
        assert words in refused("classify", "predict", "--weights", best, "--source", source)
    assert "not found" in refused("classify", "predict", "--weights", "no.pt", "--source", "bad.png")
    assert not (own_folder / "runs").exists()
    flags = ("--weights", best, "--source", "bad.png", "--project", "bad.png")
    said = f"cannot make {Path('bad.png/exp')}: Not a directory"
    assert said in refused("classify", "predict", *flags), "found before a picture is read"
    last = trained_run / "weights" / "last.ckpt"
    assert "name best.pt" in refused("classify", "predict", "--weights", last, "--source", "bad.png")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--model", "resnet51"), "did you mean"),
        (("--block", "EMAA"), "EMA"),
        (("--block", "EMA", "--block-options", "{groops: 2}"), "groops"),
        (("--block", "EMA", "--block-options", "[1"), "is not valid YAML"),
        (("--block", "EMA", "--block-options", "16"), "must be options"),
        (("--epochs", "0"), "epochs: '0' must be 1 or more"),
        (("--batch", "1"), "too few for BatchNorm"),
        (("--batch", "15", "--devices", "2", "--device", "cpu"), "cannot be shared among 2"),
        (("--img", "4"), "imgsz"),
        (("--data", "nowhere"), "nowhere: no such folder"),
        (("--recipe", "cifar10"), "no recipe 'cifar10'"),
        (("--set", "lr"), "must be KEY=VALUE"),
        (("--set", "larning=1"), "no setting 'larning'"),
        (("--device", "7"), "GPUs that torch can use"),
        (("--workers", "-1"), "--workers -1"),
        (("--precision", "16-mixed", "--device", "cpu"), "for GPUs"),
        (("--resume", "nowhere/weights/last.ckpt"), "no such file or run folder"),
        (("--resume",), "no run in runs/classify"),
        (("--data", "cifar100"), "--download"),
    ],
)
def test_train_refuses_what_it_cannot_use(refused, flags, words):
    base = [] if "--resume" in flags else [*TINY]
    assert words in refused("classify", "train", *base, *flags)


def test_a_subcommand_that_is_none(refused):
    assert "did you mean train?" in refused("classify", "trian")


def test_help_needs_no_torch():
    helps = (f"classify {command} --help" for command in ("train", "val", "predict"))
    done = run_fresh(runs, "classify", "classify --help", *helps)
    assert done.returncode == 0, done.stderr
    assert "--block-options" in done.stdout and "--save-txt" in done.stdout
    assert "torch" not in ast.literal_eval(done.stdout.splitlines()[-1])


def test_a_finished_run_is_not_resumed_but_its_evaluation_is(trained_run, tmp_path, capsys):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    assert classify("train", "--resume", run / "weights" / "last.ckpt", *HERE) == 2
    assert "is finished, after 2 epochs" in capsys.readouterr().err
    before = (run / "metrics.json").read_text()
    (run / "metrics.json").unlink()  # as if it had been killed during its evaluation
    assert classify("train", "--resume", run, *HERE, "--workers", 0) == 0
    assert (run / "metrics.json").read_text() == before
    assert classify("train", "--resume", run, "--epochs", 5) == 2
    assert "--epochs with --resume" in capsys.readouterr().err
    (run / "args.yaml").write_text("model: 3\n")
    assert classify("train", "--resume", run) == 2
    assert "does not hold the settings" in capsys.readouterr().err


def test_folders_are_numbered_as_yolov5_numbers_them(own_folder, capsys, monkeypatch):
    from yolov5_ema.classification import training

    monkeypatch.setattr(training, "train", lambda *args: pytest.skip("trained"))
    (own_folder / "runs" / "classify" / "exp").mkdir(parents=True)
    with pytest.raises(pytest.skip.Exception):
        classify("train", *TINY, *HERE)
    assert (own_folder / "runs" / "classify" / "exp2" / "args.yaml").is_file()
    taken = own_folder / "runs" / "classify" / "exp2"
    (taken / "weights").mkdir()
    for name in ("metrics.json", "results.csv", "weights/last.ckpt"):
        (taken / name).write_text("of another run")
    with pytest.raises(pytest.skip.Exception):
        classify("train", *TINY, *HERE, "--name", "exp2", "--exist-ok", "--seed", 5)
    assert {path.name for path in taken.rglob("*")} == {"args.yaml", "weights"}
    assert yaml.safe_load((taken / "args.yaml").read_text())["seed"] == 5


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def _lines(file: Path) -> int:
    return len(file.read_text().splitlines()) if file.exists() else 0


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_leaves_a_whole_last_ckpt(tmp_path):
    flags = [
        *TINY,
        *HERE,
        "--epochs",
        "1000",
        "--data",
        "synthetic:classes=3,train=48,val=6",
        "--project",
        ".",
    ]
    command = [sys.executable, "-m", "yolov5_ema", "classify", "train", *flags]
    running = subprocess.Popen(
        command, cwd=tmp_path, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    results = tmp_path / "exp" / "results.csv"
    end = time.time() + 120
    while _lines(results) < 3 and running.poll() is None and time.time() < end:  # all of the first epoch is done
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert (
        err.strip().splitlines()[-1] == "yolov5-ema: interrupted" and "Traceback" not in err and "epoch 1/1000" in out
    )
    state = torch.load(tmp_path / "exp" / "weights" / "last.ckpt", weights_only=True)
    assert state["epoch"] >= 0 and not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("classes", [3, 100])
def test_the_picture_of_confusions(tmp_path, classes):
    from yolov5_ema.classification.confusion_picture import draw_confusion

    rng = np.random.default_rng(0)
    confusion = rng.integers(0, 3, (classes, classes)) + 4000 * np.eye(classes, dtype=int)
    confusion[1] = 0  # a class without images
    draw_confusion(confusion, [f"class {number}" for number in range(classes)], tmp_path / "confusion.png")
    pixels = np.asarray(Image.open(tmp_path / "confusion.png").convert("RGB")).astype(int)
    assert min(pixels.shape[:2]) >= 600
    dark = (pixels[..., 2] - pixels[..., 0] > 60) & (pixels[..., 0] < 60)  # the blue of values near 1
    if classes == 3:
        assert dark.mean() > 0.05
    rows, columns = np.nonzero(dark[:, : int(pixels.shape[1] * 0.8)])
    assert np.corrcoef(rows, columns)[0, 1] > 0.9  # the diagonal, from the upper left
