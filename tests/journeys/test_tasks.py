"""Models of the other engine, or for another task than detection: a command works, or says in one sentence why not."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import SMALL_YOLO
from offline_ultralytics import needs_8_4, offline
from small_ultralytics import save, small_model

import yolov5_ema
from yolov5_ema.cli.main import main

TASKS = ("segment", "pose", "obb", "classify")


@pytest.fixture(scope="module", autouse=True)
def ultralytics(tmp_path_factory):
    with offline(tmp_path_factory.mktemp("config")) as package:
        yield package


@pytest.fixture(scope="module")
def models(ultralytics, tmp_path_factory) -> dict[str, Path]:
    """A small checkpoint of ultralytics for each task, with random weights."""
    folder = tmp_path_factory.mktemp("models")
    with yolov5_ema.installed("ultralytics"):
        return {task: save(small_model(task), folder / f"{task}.pt") for task in ("detect", *TASKS)}


@pytest.fixture
def image(tiny_set) -> Path:
    return tiny_set.parent / "images/val/val0.jpg"


@pytest.mark.parametrize("task", TASKS)
def test_commands_for_detectors_name_the_task(refused, models, tiny_set, image, task):
    weights = models[task]
    lines: list[list[object]] = [
        ["predict", "--weights", weights, "--source", image, "-o", "found.parquet"],
        ["evaluate", "--weights", weights, "--data", tiny_set, "--img", 64],
        ["report", weights, "-o", "page.html", "--data", tiny_set],
        ["detect", f"model={weights}", f"source={image}", "--slice", 64],
        ["val", f"model={weights}", f"data={tiny_set}", "--slice", 64],
    ]
    if task in ("obb", "classify"):
        pytest.importorskip("captum")
        lines.append(["visualize", "--weights", weights, "--source", image, "--img", 64])
    for line in lines:
        message = refused(*line)
        assert f"{weights} is a model for the task {task}" in message, line
        assert len(message.strip().splitlines()) == 1, message
        assert "--slice" in line or f"use 'yolov5-ema yolo {task} …' with model=FILE" in message


@needs_8_4
@pytest.mark.parametrize("task", TASKS)
def test_the_engine_says_what_is_missing_for_the_task(refused, models, tiny_set, task):
    """`val` runs a model for any task, but not on a data set for detection."""
    said = {"segment": "Segment dataset", "pose": "kpt_shape", "obb": "OBB dataset", "classify": "Classification"}
    message = refused("val", "--weights", models[task], "--data", tiny_set, "--img", 64)
    assert said[task] in message


@pytest.mark.parametrize(
    "task", ["segment", "classify", *(pytest.param(t, marks=pytest.mark.slow) for t in TASKS[1:3])]
)
def test_what_has_a_sense_for_each_task(models, own_folder, task):
    """Its facts on a page, and its tensors."""
    weights = models[task]
    assert main(["report", str(weights), "-o", "page.html"]) == 0
    page = Path("page.html").read_text(encoding="utf-8")
    assert "EMA (block)" in page and f"{task}.pt: not measured: no evaluation was asked for" in page
    assert main(["convert", str(weights), "-o", "x.safetensors"]) == 0
    assert main(["inspect", "x.safetensors"]) == 0
    Path("small.yaml").write_text(SMALL_YOLO)
    assert main(["transfer", str(weights), "--cfg", "small.yaml", "-o", "x.pt"]) == 0


@pytest.mark.parametrize("task", ["segment", "pose"])
def test_blocks_of_models_with_boxes_are_shown(models, own_folder, image, task):
    pytest.importorskip("captum")
    line = ["visualize", "--weights", models[task], "--source", image, "--img", 64, "--project", own_folder]
    assert main([str(word) for word in line]) == 0
    assert (own_folder / "exp/val0.png").is_file()


def test_yolov5s_commands_say_what_to_use_for_ultralytics(refused, models, tiny_set, image):
    weights = models["detect"]
    train = ["train", "--data", tiny_set, "--epochs", 1]
    message = refused(*train, "--cfg", "yolo11n-ema.yaml", "--weights", "")
    assert "--cfg yolo11n-ema.yaml is a model YAML of ultralytics" in message and "train model=yolo11n-ema" in message
    for line in (
        [*train, "--cfg", "yolov5n-ema.yaml", "--weights", weights],
        ["export", "--weights", weights, "--include", "onnx"],
        ["classify", "val", "--weights", weights],
        ["classify", "predict", "--weights", weights, "--source", image],
    ):
        assert "is a checkpoint of the package ultralytics" in refused(*line).replace("It is", "is")
    message = refused("val", "--weights", weights, "--data", tiny_set, "--engine", "yolov5")
    assert "is a checkpoint of the package ultralytics" in message
    message = refused("evaluate", "--weights", weights, "--data", tiny_set, "--engine", "yolov5")
    assert "leave out --engine yolov5" in message
    message = refused("transfer", weights, "--cfg", "yolov5n-ema.yaml", "-o", "x.pt")
    assert "yolov5n-ema.yaml is a model YAML of YOLOv5" in message


def test_ultralytics_modes_say_what_to_use_for_yolov5(refused, trained, tiny_set, image):
    words = {"train": f"data={tiny_set}", "val": f"data={tiny_set}", "detect": f"source={image}", "export": "imgsz=64"}
    for command, word in words.items():
        message = refused(command, f"model={trained}", word)
        assert f"{trained} is a YOLOv5 checkpoint, which the package ultralytics cannot run" in message
        message = refused(command, "model=yolov5n-ema.yaml", word)
        assert "model=yolov5n-ema.yaml is a model YAML of YOLOv5: use the flags of YOLOv5 instead" in message
    message = refused("transfer", trained, "--cfg", "yolo11n-ema.yaml", "-o", "x.pt")
    assert "yolo11n-ema.yaml is a model YAML of ultralytics" in message
