"""The kind of run that a folder is, the notes on it, and what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from synthetic_runs import (
    row,
    write_classification,
    write_comparison,
    write_training,
    write_ultralytics,
    yolov5_csv,
)

from yolov5_ema.errors import UserError
from yolov5_ema.reporting.runs import CLASSIFY, DETECT, Comparison, Evaluated, Run, make_names_unique, read_source


def test_a_training(tmp_path):
    folder = write_training(tmp_path / "exp", figures=(0.1, 0.5, 0.4), neptune_token="s3cret", seed=3)
    run = read_source(folder)
    assert isinstance(run, Run) and run.task == DETECT
    assert (run.model, run.seed, run.hyp) == ("yolov5n-ema", 3, {"lr0": 0.01, "mosaic": 1.0})
    assert run.epochs.texts("mAP50") == ["0.1", "0.5", "0.4"]
    assert run.options["neptune_token"] == "(not shown)"
    assert run.notes == ["There is no weights/best.pt: the training ended before it was saved, or the file was moved."]


def test_hyperparameters_of_v7_stand_in_both_files(tmp_path):
    folder = write_training(tmp_path / "exp", hyp={"lr0": 0.5})
    assert "hyp" not in read_source(folder).options and read_source(folder).hyp["lr0"] == 0.01
    (folder / "hyp.yaml").unlink()
    assert read_source(folder).hyp == {"lr0": 0.5}


def test_weights_mean_their_run(tmp_path):
    folder = write_training(tmp_path / "exp")
    (folder / "weights").mkdir()
    (folder / "weights/last.pt").write_bytes(b"")
    assert read_source(folder / "weights/last.pt").folder == folder
    assert read_source(folder / "results.csv").folder == folder


@pytest.mark.parametrize(("name", "options", "seed"), [("seed7", {}, 7), ("exp", {}, None), ("seed7", {"seed": 2}, 2)])
def test_the_seed_is_the_options_or_compares_folders(tmp_path, name, options, seed):
    assert read_source(write_training(tmp_path / name, **options)).seed == seed


def test_a_run_that_was_killed_says_so(tmp_path):
    folder = write_training(tmp_path / "exp")
    (folder / "opt.yaml").write_text("cfg: a.yaml\nepochs: 9\n")
    text = yolov5_csv([row(0, 0.1, 0.05), row(1, 0.2, 0.1), row(2, 0.3, 0.1, float("nan"))])
    (folder / "results.csv").write_text(text + "          3,    0.1")
    notes = " ".join(read_source(folder).notes)
    assert "no weights/best.pt" in notes and "3 of 9 epochs" in notes
    assert "last line of results.csv is cut off" in notes and "not a number from epoch 2 on" in notes
    (folder / "results.csv").unlink()
    assert "There is no results.csv: no epoch was finished." in read_source(folder).notes


def test_a_classification(tmp_path):
    run = read_source(write_classification(tmp_path / "exp"))
    assert (run.task, run.model, run.seed) == (CLASSIFY, "resnet50 + EMA", 0)
    assert run.metrics["top1"] == 0.75
    (tmp_path / "exp/metrics.json").unlink()
    assert "There is no metrics.json: the training is not finished." in read_source(tmp_path / "exp").notes


def test_folders_of_evaluate_and_val(tmp_path):
    evaluated = tmp_path / "evaluated"
    evaluated.mkdir()
    content = {"yolov5": {"mAP50": 0.5, "unit": "fraction", "per_class": {"car": {"AP": 0.3, "AP50": 0.5}}}}
    (evaluated / "evaluation.json").write_text(json.dumps(content))
    found = read_source(evaluated)
    assert isinstance(found, Evaluated) and found.protocols == content
    # as the protocol visdrone has it, with lists and truth values
    of_class = {"AP": 30.0, "AP50": 50.0, "AP_by_iou": [40.0, 20.0], "in_mean": True}
    content = {"visdrone": {"AP": 30.0, "unit": "percent", "per_class": {"car": of_class}, "by_size": {"tiny": {}}}}
    (evaluated / "evaluation.json").write_text(json.dumps(content))
    figures = read_source(evaluated).protocols["visdrone"]
    assert figures["AP"] == 30.0 and figures["per_class"]["car"]["AP50"] == 50.0
    val = tmp_path / "val"
    val.mkdir()
    (val / "PR_curve.png").write_bytes(b"")
    found = read_source(val)
    assert isinstance(found, Evaluated) and [file.name for file in found.pictures] == ["PR_curve.png"]


def test_what_is_no_run_is_told_what_was_looked_for(tmp_path):
    write_training(tmp_path / "train/exp")
    with pytest.raises(
        UserError, match=r"is not a run: looked in it for opt.yaml .* It contains runs; name them instead .*exp"
    ):
        read_source(tmp_path / "train")
    with pytest.raises(UserError, match="no such folder"):
        read_source(tmp_path / "nowhere")
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(UserError, match="is neither the folder of a run nor a model"):
        read_source(tmp_path / "file.txt")
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "recipe.json").write_text("{}")
    with pytest.raises(UserError, match="has not been reported yet"):
        read_source(begun)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("opt.yaml", b"cfg: [1, 2", r"opt\.yaml is not valid YAML"),
        ("opt.yaml", b"\xff\xfe\x00", r"opt\.yaml is not valid YAML"),
        ("opt.yaml", b"", r"opt\.yaml must hold settings"),
        ("hyp.yaml", b"- 1\n", r"hyp\.yaml must hold settings"),
        ("weights/best.pt", b"PK\x03\x04 torn", r"best\.pt"),
        ("weights/best.pt", b"", r"best\.pt"),
        ("comparison.json", b'{"models": {"a"', r"comparison\.json is not JSON, or is cut off: line 1"),
        ("comparison.json", b"{}", r"comparison\.json is not valid as comparison\.json of this version"),
        ("evaluation.json", b"[1]", r"evaluation\.json is not valid as evaluation\.json"),
    ],
)
def test_damaged_files_are_named(tmp_path, file, content, message):
    folder = write_training(tmp_path / "exp")
    (folder / "weights").mkdir()
    (folder / file).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_source(folder)


@pytest.mark.parametrize(
    "content", ['{"top1": 1}', '{"top1": 1, "top5": 1, "images": 2, "classes": [], "confusion": [[1]]}']
)
def test_damaged_metrics_are_named(tmp_path, content):
    folder = write_classification(tmp_path / "exp")
    (folder / "metrics.json").write_text(content)
    with pytest.raises(UserError, match=r"metrics\.json"):
        read_source(folder)


def test_a_training_of_ultralytics(tmp_path):
    run = read_source(write_ultralytics(tmp_path / "exp", seed=7, hf_token="s3cret"))
    assert (run.task, run.model, run.seed, run.hyp) == (DETECT, "yolo11n-ema", 7, {})
    assert (run.epochs.numbers, run.epochs.best) == ([1, 2, 3], 1)
    assert run.options["hf_token"] == "(not shown)" and run.options["lr0"] == 0.01
    assert run.notes == ["There is no weights/best.pt: the training ended before it was saved, or the file was moved."]
    for name in ("BoxPR_curve.png", "val_batch0_pred.jpg"):
        (tmp_path / "exp" / name).write_bytes(b"")
    assert [file.name for file in read_source(tmp_path / "exp").pictures] == ["BoxPR_curve.png", "val_batch0_pred.jpg"]
    classified = read_source(write_ultralytics(tmp_path / "cls", task="classify", model="yolo11n-cls.pt"))
    assert (classified.task, classified.model) == (CLASSIFY, "yolo11n-cls")


def test_a_folder_of_its_val(tmp_path):
    (tmp_path / "BoxPR_curve.png").write_bytes(b"")
    assert isinstance(read_source(tmp_path), Evaluated)


def test_an_args_yaml_of_another_program_is_refused(tmp_path):
    (tmp_path / "args.yaml").write_text("task: detect\nlr: 0.1\n")
    with pytest.raises(UserError, match="is neither from a training of ultralytics nor from 'yolov5-ema classify"):
        read_source(tmp_path)


def test_weights_without_a_training(tmp_path):
    """Weights in the folder of a run mean the run, all others are models alone."""
    run = write_ultralytics(tmp_path / "exp")
    (run / "weights").mkdir()
    for place in (run / "weights", tmp_path / "weights"):
        place.mkdir(exist_ok=True)
        torch.save({"model": {"a": torch.zeros(2)}}, place / "last.pt")
    assert read_source(run / "weights/last.pt").folder == run
    with pytest.raises(UserError, match=r"last\.pt is not a model of YOLOv5 or ultralytics, but a .*state dict"):
        read_source(tmp_path / "weights/last.pt")
    with pytest.raises(UserError, match=r"a\.onnx cannot be read|a\.onnx is not an ONNX file"):
        (tmp_path / "a.onnx").write_bytes(b"no model")
        read_source(tmp_path / "a.onnx")


def test_names_are_as_short_as_can_be(tmp_path):
    runs = [read_source(write_training(tmp_path / name)) for name in ("a/seed0", "b/seed0", "b/seed1")]
    make_names_unique(runs)
    assert [run.name for run in runs] == ["a/seed0", "b/seed0", "b/seed1"]
    make_names_unique(runs[1:])
    assert [run.name for run in runs[1:]] == ["seed0", "seed1"]
    with pytest.raises(UserError, match="was given twice"):
        make_names_unique([runs[0], runs[0]])


def test_a_comparison_of_models_of_ultralytics_brings_its_trainings(tmp_path):
    folder = write_comparison(tmp_path / "first", {"plain": (0.5,), "ema": (0.6,)})
    for name in ("plain", "ema"):
        shutil.rmtree(folder / name / "seed0")
        write_ultralytics(folder / name / "seed0")
    assert [(run.model, run.epochs.best) for run in read_source(folder).runs] == [("plain", 1), ("ema", 1)]


def test_a_comparison_brings_its_trainings(tmp_path):
    folder = write_comparison(tmp_path / "first", {"plain": (0.5, 0.6), "ema": (0.6, 0.6)})
    found = read_source(folder)
    assert isinstance(found, Comparison)
    assert [(run.model, run.seed) for run in found.runs] == [
        ("plain", 0),
        ("ema", 0),
        ("plain", 1),
        ("ema", 1),
    ]
