"""``yolov5-ema compare``: models of ultralytics, alone and with those of YOLOv5."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import pytest
from played_comparisons import BOTH, DRAW, OF_ULTRALYTICS, command, result

from yolov5_ema.cli.main import main
from yolov5_ema.comparing import picture as comparison_picture
from yolov5_ema.comparing import plan

pytestmark = pytest.mark.usefixtures("two_cfgs")


def test_both_engines_in_one_table(tiny_set, played, two_yolos, capsys, monkeypatch):
    monkeypatch.setattr(comparison_picture, "draw", DRAW)
    flags = ("--seeds", 2, "--latency-rounds", 2, "--device", "cpu", "mosaic=0.5")
    assert main(command(tiny_set, *flags, cfgs=BOTH)) == 0
    assert played.trained() == ["plain/seed0", "small/seed0", "plain/seed1", "small/seed1"]
    of_yolov5, of_ultralytics, *_, last = played.calls
    assert "--epochs" in of_yolov5 and not any("mosaic" in word for word in of_yolov5)
    assert {"epochs=2", "imgsz=64", "batch=4", "device=cpu", "mosaic=0.5", "seed=0"} <= set(of_ultralytics)
    assert "seed=1" in last and f"data={Path('runs/compare/exp/data.yaml').resolve()}" in last
    found = result()
    assert {name: model["engine"] for name, model in found["models"].items()} == {
        **{"plain": "YOLOv5", "small": "ultralytics"}
    }
    assert found["models"]["small"]["differences"]["map50"]["mean"] == pytest.approx(0.10)
    assert set(found["software"]) > {"yolov5", "ultralytics"} and found["recipe"]["protocol"] == "coco"
    assert found["recipe"]["ultralytics"]["options"]["mosaic"] == 0.5 and found["recipe"]["options"]["epochs"] == 2
    out = capsys.readouterr().out
    for words in (
        "plain (YOLOv5, baseline)",
        "small (ultralytics)",
        "by COCO's protocol (mAP50-95 is its AP) on the same 12 objects",
        "YOLOv5 trained plain from scratch; optimizer SGD, lr0 0.01, batch 4, mosaic 1.0; loss: boxes by CIoU",
        "ultralytics trained small from scratch; optimizer auto (and its own lr0), lrf 0.01",
        "mosaic 0.5",
        "Not alike in the two engines",
    ):
        assert words in out, words
    assert cv2.imread("runs/compare/exp/comparison.png").shape[1] == 1800


def test_ultralytics_alone_is_scored_by_its_own_protocol(tiny_set, played, two_yolos, capsys):
    assert main(command(tiny_set, "--seeds", 1, cfgs=OF_ULTRALYTICS)) == 0
    assert result()["recipe"]["protocol"] == "ultralytics" and "yolov5" not in result()["software"]
    out = capsys.readouterr().out
    assert "by ultralytics' own val" in out and "Not alike" not in out and "(ultralytics)" not in out


def test_of_yolov5_alone_the_recipe_has_the_form_that_it_always_had(tiny_set, played):
    assert main(command(tiny_set, "--seeds", 1)) == 0
    recipe = json.loads(Path("runs/compare/exp/recipe.json").read_text())
    assert list(recipe) == ["options", "task", "data", "hyp", "weights", "cfgs", "software"]
    assert set(recipe["software"]) == {"yolov5", "torch", "yolov5_ema"}
    assert not Path("runs/compare/exp/data.yaml").exists() and "engine" not in result()["models"]["plain"]


def test_an_interrupted_training_of_ultralytics_goes_on(tiny_set, played, two_yolos, capsys):
    played.fail["small", 0] = "Ctrl-C"
    assert main(command(tiny_set, "--seeds", 2, cfgs=BOTH)) == 130
    played.fail.clear()
    played.calls.clear()
    assert main(command(tiny_set, "--seeds", 2, cfgs=(*BOTH, "small26.yaml"))) == 0
    assert played.trained() == ["resume small/seed0", "small26/seed0", "plain/seed1", "small/seed1", "small26/seed1"]
    assert "small, seed 0 was resumed at epoch 1" in capsys.readouterr().out


def test_a_model_that_was_scored_on_other_objects_is_a_failure(tiny_set, played, two_yolos, monkeypatch, capsys):
    monkeypatch.setattr(plan, "_objects", lambda *_: 13)
    assert main(command(tiny_set, "--seeds", 1, cfgs=BOTH)) == 1
    assert "val evaluated images with 12 objects, but the test split has 13" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("cfgs", "flags", "words"),
    [
        (BOTH, ["--hyp", "hyp.demo.yaml"], "--hyp hyp.demo.yaml: with a model of ultralytics, train takes --imgsz"),
        (BOTH, ["epochs=3"], "epochs= would hold for ultralytics only: write --epochs"),
        (("plain.yaml", "other.yaml", "lr0=0.1"), [], "lr0=0.1 is an argument of ultralytics, but none of the --cfgs"),
        (BOTH, ["--last", "1"], "--last compares models of one engine"),
        (OF_ULTRALYTICS, ["--last", "1", "val=False"], "--last needs the figures of every epoch"),
        (OF_ULTRALYTICS, ["seed=3"], "compare takes no seed=: --seeds N"),
        (("small.yaml", "yolo11n-seg.yaml"), [], "yolo11n-seg.yaml is a model for the task segment"),
        (("small.yaml", "yolo11q.yaml"), [], "yolo11q.yaml: there is no such size"),
    ],
)
def test_what_does_not_fit_the_engines_is_refused(refused_comparison, tiny_set, two_yolos, cfgs, flags, words):
    assert words in refused_comparison(command(tiny_set, *flags, cfgs=cfgs))


def test_other_engines_than_before_are_refused(refused_comparison, tiny_set, played, two_yolos):
    assert main(command(tiny_set, "--seeds", 1)) == 0
    message = refused_comparison(command(tiny_set, "--seeds", 1, cfgs=BOTH))
    assert "the models of one engine or of both, and with it the scoring: yolov5 there, coco now" in message


def test_a_changed_argument_of_ultralytics_is_named(refused_comparison, tiny_set, played, two_yolos):
    assert main(command(tiny_set, "--seeds", 1, "lr0=0.02", cfgs=BOTH)) == 0
    assert "ultralytics, lr0: 0.02 there, 0.01 now" in refused_comparison(command(tiny_set, "--seeds", 1, cfgs=BOTH))


def test_images_that_only_one_engine_may_evaluate_are_refused(refused_comparison, tiny_set, two_yolos):
    shutil.copytree(tiny_set.parent, "set", ignore=shutil.ignore_patterns("*.cache"))
    file = Path("set/tiny.yaml")
    file.write_text(file.read_text().replace(f"path: {tiny_set.parent}", f"path: {Path('set').resolve()}"))
    label = next(Path("set/labels/test").iterdir())
    label.write_text("0 0.5 0.5 1.5 0.2\n")
    assert "1 images of the test split cannot be used" in refused_comparison(command(file, cfgs=BOTH))
