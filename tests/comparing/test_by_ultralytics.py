"""Trainings with ultralytics in a comparison: their arguments, their recipe, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from conftest import SMALL_YOLO
from offline_ultralytics import offline

import yolov5_ema
from yolov5_ema.comparing.by_ultralytics import UltralyticsTrainer
from yolov5_ema.comparing.trainer import Common
from yolov5_ema.data.dataset import load_dataset
from yolov5_ema.errors import UserError

YOLOV5 = Common(epochs=3, imgsz=64, batch_size=4, device="cpu", workers=1)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    with offline(tmp_path_factory.mktemp("config")):
        yield yolov5_ema.install("ultralytics")


@pytest.fixture
def trainer(engine, tiny_set, own_folder):
    def make(flags: str = "", own: str = "", beside: Common | None = None) -> UltralyticsTrainer:
        return UltralyticsTrainer(engine, flags.split(), own.split(), load_dataset(tiny_set), Path("exp"), beside)

    return make


def arguments(words: list[str]) -> dict[str, str]:
    assert words[:3] == ["train", "--engine", "ultralytics"]
    return dict(word.split("=", 1) for word in words[3:])


def test_a_training(trainer):
    found = trainer("--epochs 2 --img 64 --batch 4 --weights= --device cpu --cache", "lr0=0.02 optimizer=SGD")
    line = found.start("yolo26n-ema", Path("/a/yolo26-ema.yaml"), Path("/c/yolo26n-ema/seed1"), 1)
    place = {"project": "/c/yolo26n-ema", "name": "seed1", "exist_ok": "True"}
    assert arguments(line) == {
        **{"model": "/a/yolo26n-ema.yaml", "data": str(Path("exp/data.yaml").resolve()), **place},
        **{"seed": "1", "deterministic": "True", "epochs": "2", "imgsz": "64", "batch": "4", "device": "cpu"},
        **{"cache": "ram", "lr0": "0.02", "optimizer": "SGD"},
    }
    last = Path("/c/yolo26n-ema/seed1/weights/last.pt")
    assert arguments(found.resume(last)) == {"model": str(last), "resume": "True", "data": str(found.data)}
    assert found.common == Common(epochs=2, imgsz=64, batch_size=4, device="cpu", workers=8)
    settings = found.settings(Path("seed0"))
    assert (settings["lr0"], settings["optimizer"], settings["mosaic"]) == (0.02, "SGD", 1.0)
    assert "lr0" not in trainer().settings(Path("seed0"))  # the optimizer "auto" chooses it


def test_beside_yolov5_it_gets_yolov5s_values_also_those_by_default(trainer):
    found = trainer("--epochs 3", "batch=2", beside=YOLOV5)
    words = arguments(found.start("a", Path("a.yaml"), Path("/c/a/seed0"), 0))
    assert "pretrained" not in words
    own = trainer("--weights yolov5n.pt", "pretrained=yolo26n.pt", beside=YOLOV5)
    assert own.recipe["weights"]["file"] == "yolo26n.pt"
    shared = ("epochs", "imgsz", "batch", "device", "workers")
    assert [words[name] for name in shared] == ["3", "64", "2", "cpu", "1"]


def test_the_data_yaml_has_absolute_paths(trainer, tiny_set):
    ((file, text),) = trainer().texts.items()
    content = yaml.safe_load(text)
    assert file == Path("exp/data.yaml").resolve() and content["names"] == {0: "disc", 1: "box", 2: "cross"}
    assert content["test"] == [str(tiny_set.parent / "images/test")]


def test_the_recipe_holds_all_options_but_those_of_one_run(trainer):
    torch.save({"epoch": -1}, "a.pt")
    recipe = trainer("--weights a.pt", "lr0=0.02").recipe
    assert recipe["options"]["lr0"] == 0.02 and recipe["options"]["close_mosaic"] == 10
    assert not {"model", "data", "seed", "name", "pretrained"} & set(recipe["options"])
    assert recipe["weights"]["file"] == str(Path("a.pt").resolve()) and len(recipe["weights"]["sha256"]) == 64
    assert trainer().recipe["weights"] is None


@pytest.mark.parametrize(
    ("flags", "own", "is_mixed", "words"),
    [
        ("--hyp a.yaml", "", False, "--hyp a.yaml: with a model of ultralytics, train takes --imgsz"),
        ("", "seed=3", False, "compare takes no seed=: --seeds N trains"),
        ("", "save=False", False, "compare takes no save=: best.pt is needed"),
        ("", "epochs=3", True, "epochs= would hold for ultralytics only: write --epochs"),
        ("", "epochs=0", False, "epochs.* must be (at least|>=) 1"),
        ("--img 0", "", False, "(--img must be at least 1, not 0|imgsz=0)"),
        ("--workers -1", "", False, "(--workers must be at least 0, not -1|workers=-1)"),
        ("--weights gone/best.pt", "", False, "gone/best.pt: there is no such file; name weights of ultralytics"),
        ("", "imgsz=[64,64]", False, r"imgsz must be one number for a training, not \[64, 64\]"),
        ("--weights a.pt", "", True, "--weights a.pt holds for YOLOv5 only: name weights of ultralytics"),
        ("", "lr=0.1", False, "'lr' is not a valid YOLO argument"),
        ("", "lr0=fast", False, "'lr0=fast' is of invalid type str"),
        ("", "lr0=", False, "missing 'lr0' value"),
    ],
)
def test_what_is_refused(trainer, flags, own, is_mixed, words):
    with pytest.raises(UserError, match=words):
        trainer(flags, own, YOLOV5 if is_mixed else None)


def test_weights_of_yolov5_are_refused(trainer, trained):
    with pytest.raises(UserError, match=r"best.pt belongs to YOLOv5; .* with pretrained=FILE"):
        trainer(f"--weights {trained}")


def test_models_are_found_checked_counted_and_built(trainer):
    Path("small.yaml").write_text(SMALL_YOLO)
    found = trainer("--img 64")
    assert found.found("yolo26n-ema.yaml")[0] == "yolo26n-ema" and found.found("yolo26n-ema.yaml")[1].is_file()
    name, file = found.found("small.yaml")
    assert (name, file) == ("small", Path("small.yaml").absolute())
    found.check(name, file)
    model = found.model(name, file, 3)
    assert found.info(name, file, 3).parameters == sum(p.numel() for p in model.parameters())
    with pytest.raises(UserError, match=r"yolo11n-seg.yaml is a model for the task segment; compare trains detectors"):
        found.check(*found.found("yolo11n-seg.yaml"))
