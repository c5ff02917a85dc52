"""``yolov5-ema visualize``: pictures and a page for a folder, bad input, and maps of a trained detector."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from cases.visualize import write_checkpoint_of_v7
from conftest import laid_aside, lay_out_as_clone, run_cli
from fresh_process import run_fresh
from PIL import Image
from red_detector import red_picture, written_red_detector

from yolov5_ema.cli.main import main

pytest.importorskip("captum")


@pytest.fixture(scope="module")
def red(tmp_path_factory):
    with written_red_detector(tmp_path_factory.mktemp("red")) as file:
        yield file


@pytest.fixture
def images(own_folder) -> Path:
    """``images/val`` with two pictures of a red square, and their labels."""
    folder = own_folder / "set/images/val"
    (folder / "deeper").mkdir(parents=True)
    cv2.imwrite(str(folder / "a.png"), red_picture())
    cv2.imwrite(str(folder / "deeper/a.png"), red_picture(192, 128))
    for name, width in (("a", 128), ("deeper/a", 192)):
        labels = own_folder / f"set/labels/val/{name}.txt"
        labels.parent.mkdir(parents=True, exist_ok=True)
        labels.write_text(f"0 {88 / width} {40 / 128} {32 / width} {32 / 128}\n")
    return folder


def visualize(*args: object) -> int:
    return main(["visualize", *map(str, args), "--device", "cpu"])


def links(page: Path) -> list[str]:
    return re.findall(r'(?:src|href)="([^"]+)"', page.read_text(encoding="utf-8"))


def test_a_folder_becomes_pictures_and_a_page(images, red, own_folder, capsys):
    assert visualize("--weights", red, "--source", images, "--img", 128, "--labels") == 0
    run = own_folder / "runs/visualize/exp"
    assert sorted(path.name for path in run.iterdir()) == ["a-2.png", "a.png", "index.html"]
    assert links(run / "index.html") == ["a.png", "a.png", "a-2.png", "a-2.png"]
    for name in ("a.png", "a-2.png"):
        with Image.open(run / name) as picture:
            assert picture.width > 500 and picture.height > 500
    printed = capsys.readouterr().out
    assert f"image 1/2 {images}/a.png: " in printed and "2 pictures; open runs/visualize/exp/index.html" in printed
    heads, row = (line.split() for line in printed.splitlines() if "area of boxes" in line or "Spotlight  " in line)
    title, _, block, pictures, inside, area, ratio, in_boxes, outside = row
    assert (title, block, pictures) == (str(red), "Spotlight", "2") and heads[0] == "model"
    assert float(inside) > 0.75 and float(area) == pytest.approx((0.0625 + 0.0417) / 2, abs=0.01)
    assert float(ratio) > 12 and float(in_boxes) > 0.8 and float(outside) < 0.2
    assert "Inside and outside the labelled boxes" in (run / "index.html").read_text(encoding="utf-8")


def test_two_checkpoints_and_the_folders_of_runs(images, red, own_folder):
    shutil.copy(red, own_folder / "other.pt")
    line = (
        "--weights",
        red,
        "other.pt",
        "--source",
        images / "a.png",
        "--img",
        128,
        "--project",
        "out",
        "--name",
        "x",
    )
    assert visualize(*line) == visualize(*line) == visualize(*line, "--exist-ok") == 0
    assert sorted(path.name for path in (own_folder / "out").iterdir()) == ["x", "x2"]
    with Image.open(own_folder / "out/x/a.png") as two:
        assert visualize("--weights", red, "--source", images / "a.png", "--img", 128) == 0
        with Image.open(own_folder / "runs/visualize/exp/a.png") as one:
            assert two.width == pytest.approx(2 * one.width, abs=2) and two.height == one.height
    assert not (own_folder / "runs/visualize/exp2").exists()


def test_what_cannot_be_read_is_named_and_passed_over(images, red, own_folder, capsys):
    (images / "broken.jpg").write_bytes(b"no picture")
    cv2.imwrite(str(images / "thin.png"), np.zeros((1, 2000, 3), np.uint8))
    assert visualize("--weights", red, "--source", images, "--img", 128) == 1
    captured = capsys.readouterr()
    assert "visualize: 2 of 4 images could not be used in full:" in captured.err
    assert f"{images}/broken.jpg: is not an image that OpenCV reads" in captured.err
    assert f"{images}/thin.png: is too narrow: 2000 x 1 pixels leave nothing" in captured.err
    assert "2 pictures" in captured.out
    assert "broken.jpg: is not an image" in (own_folder / "runs/visualize/exp/index.html").read_text(encoding="utf-8")


def test_the_first_images_only(images, red, capsys):
    assert visualize("--weights", red, "--source", images, images / "a.png", "--img", 128, "--max-images", 1) == 0
    captured = capsys.readouterr()
    assert "image 1/1 " in captured.out and "the first 1 of 2 images" in captured.err


def test_mistakes_are_refused_and_leave_no_folder(refused, red, own_folder):
    Path("good.png").write_bytes(cv2.imencode(".png", red_picture())[1].tobytes())
    Path("bad.png").write_bytes(b"x")
    Path("empty.jpg").write_bytes(b"")
    line = ("visualize", "--weights", red, "--source")
    assert "--source bad.png: is not an image that OpenCV reads" in refused(*line, "bad.png")
    none = refused(*line, "bad.png", "empty.jpg")
    assert "none of the 2 images can be used:" in none and "empty.jpg: is empty" in none
    assert "no such file or folder" in refused(*line, "missing.png")
    assert "--blocks EMA: there is no such layer; choose from 1 (Spotlight)" in refused(
        *line, "good.png", "--blocks", "EMA"
    )
    assert "knows the classes red, blue" in refused(*line, "good.png", "--class", "green")
    assert "--conf-thres must be 0 to 1, not 1.5" in refused(*line, "good.png", "--conf-thres", "1.5")
    assert "--max-images must be at least 1" in refused(*line, "good.png", "--max-images", "0")
    assert "weights not found: no.pt" in refused("visualize", "--weights", "no.pt", "--source", "good.png")


def test_a_model_with_nan_leaves_no_folder(refused, red, own_folder):
    import yolov5_ema
    from yolov5_ema.checkpoints import loading as checkpoints

    Path("good.png").write_bytes(cv2.imencode(".png", red_picture())[1].tobytes())
    with yolov5_ema.installed() as engine:
        checkpoint = checkpoints.load_checkpoint(red, engine=engine)
        with torch.no_grad():
            checkpoint["model"].model[-1].m[0].bias[4] = float("nan")
        checkpoints.save_checkpoint(checkpoint, Path("nan.pt"), engine=engine)
    message = refused("visualize", "--weights", red, "nan.pt", "--source", "good.png", "--img", 128)
    assert "nan.pt gives values that are not finite" in message


@pytest.fixture
def classifier(own_folder) -> Path:
    pytest.importorskip("timm")
    from yolov5_ema.classification import create_classifier
    from yolov5_ema.classification.checkpoints import save_classifier

    model = create_classifier("test_resnet", "SE", num_classes=2)
    record = {
        "model": "test_resnet", "block": "SE", "block_options": {}, "stem": "imagenet", "num_classes": 2,
        "names": ["cat", "dog"], "imgsz": 64, "mean": [0.5] * 3, "std": [0.2] * 3, "epoch": 0, "settings": {},
        "top1": 0.5, "top5": 1.0, "state_dict": model.state_dict(),
    }  # fmt: skip
    save_classifier(own_folder / "classifier.pt", record)
    return own_folder / "classifier.pt"


def test_classifiers(classifier, images, own_folder, capsys):
    assert (
        visualize("--weights", classifier, "--source", images / "a.png", "--class", "dog", "--blocks", "layer4*") == 0
    )
    assert re.search(r"a\.png: (cat|dog) 0\.\d\d; Grad-CAM is of dog\n", capsys.readouterr().out)
    page = (own_folder / "runs/visualize/exp/index.html").read_text(encoding="utf-8")
    assert "layer4.0.se: SE" in page and "layer3" not in page


def test_detectors_and_classifiers_do_not_mix(classifier, red, images, capsys):
    assert visualize("--weights", red, classifier, "--source", images) == 2
    assert "is a classifier and" in capsys.readouterr().err
    assert visualize("--weights", classifier, "--source", images, "--labels") == 2
    assert "--labels works only with detectors" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_help_needs_no_torch(own_folder):
    done = run_cli("visualize", "--help", cwd=own_folder)
    assert done.returncode == 0 and "--blocks" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("head", ["Detect", "Segment"])
def test_with_v7(images, own_folder, head, tmp_path):
    """A checkpoint that v7.0 wrote, with boxes or masks, used with that release."""
    clone = lay_out_as_clone(laid_aside("7.0.14"), tmp_path / "clone")
    made = run_fresh(write_checkpoint_of_v7, clone, head, own_folder / "v7.pt", cwd=own_folder)
    assert made.returncode == 0, made.stderr[-2000:]
    done = run_cli(
        *(
            "visualize",
            "--yolov5",
            clone,
            "--weights",
            "v7.pt",
            "--source",
            images,
            "--img",
            128,
            "--device",
            "cpu",
        ),
        cwd=own_folder,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    page = (own_folder / "runs/visualize/exp/index.html").read_text(encoding="utf-8")
    assert "7: EMA" in page and "10: EMA" in page


@pytest.mark.slow
def test_maps_of_a_trained_detector_point_at_the_objects(own_folder):
    """The demo's detector on its validation images.

    Grad-CAM at stride 16 lies in the labelled boxes more than twice as much as a flat map would, and EMA's gate is
    higher in the boxes than outside.
    """
    done = run_cli("demo", cwd=own_folder)
    assert done.returncode == 0, done.stderr[-2000:]
    done = run_cli(
        *(
            "visualize",
            "--weights",
            "runs/demo/exp/train/weights/best.pt",
            "--img",
            256,
            "--device",
            "cpu",
            "--labels",
        ),
        *("--source", "runs/demo/set-256-seed0/images/val"),
        cwd=own_folder,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    row = next(line.split() for line in done.stdout.splitlines() if " 7: EMA " in line)
    ratio, in_boxes, outside = (float(text) for text in row[-3:])
    assert ratio > 2 and in_boxes > outside + 0.05
