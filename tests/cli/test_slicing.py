"""``data slice``, ``detect --slice`` and ``val --slice`` as users type them."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from conftest import run_cli, small_cfg

import yolov5_ema
from yolov5_ema.cli.main import main

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture(scope="module", autouse=True)
def shim():
    with yolov5_ema.installed():
        yield


@pytest.fixture
def own_set(tiny_set, own_folder):
    """A copy of the tiny set. Its images have 96 pixels: two windows of 64 in each direction."""
    shutil.copytree(tiny_set.parent, own_folder / "set", ignore=shutil.ignore_patterns("*.cache"))
    content = {**yaml.safe_load(tiny_set.read_text()), "path": str(own_folder / "set")}
    file = own_folder / "set" / "tiny.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def labels_of(folder: Path) -> dict[str, np.ndarray]:
    return {path.stem: np.loadtxt(path, ndmin=2) for path in sorted(folder.rglob("labels/*.txt"))}


def test_data_slice_says_what_it_did(own_set, own_folder, capsys):
    own_set = own_set.rename(own_set.with_name("my tiny.yaml"))
    assert main(["data", "slice", str(own_set), "--size", "64", "--overlap", "0.25"]) == 0
    out = own_folder / "set/my tiny-sliced-64"
    said = capsys.readouterr().out
    assert str(out / "my tiny-sliced-64.yaml") in said
    assert "train: 8 images to" in said and "val: 4 images to" in said
    assert "test: not cut" in said and f"yolov5-ema val --data '{own_set}' --slice 64 --overlap 0.25" in said
    content = yaml.safe_load((out / "my tiny-sliced-64.yaml").read_text())
    assert content["train"] == "images/train" and content["val"] == "images/val"
    assert content["test"] == str(own_folder / "set/images/test") and content["nc"] == 3
    cut = sorted((out / "images/val").iterdir())
    assert {path.stem.split("_", 1)[1] for path in cut} <= {
        "0_0_64_64",
        "32_0_96_64",
        "0_32_64_96",
        "32_32_96_96",
    }
    assert all(cv2.imread(str(path)).shape == (64, 64, 3) for path in cut)
    assert not list(out.rglob("*.part"))


@pytest.mark.slow
def test_a_detector_trains_on_the_cut_set(own_set, own_folder):
    assert main(["data", "slice", str(own_set), "--size", "64", "--out", "cut"]) == 0
    Path("small.yaml").write_text(small_cfg())
    flags = ["--cfg", "small.yaml", "--weights", "", "--img", "64", "--batch", "16", "--epochs", "1"]
    done = run_cli("train", "--data", "cut/cut.yaml", *flags, "--workers", 0, "--noautoanchor", cwd=own_folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (own_folder / "runs/train/exp/weights/best.pt").is_file()


def test_data_slice_goes_on_and_refuses_a_mixture(own_set, own_folder, capsys):
    assert main(["data", "slice", str(own_set), "--size", "64", "--out", "cut"]) == 0
    capsys.readouterr()
    assert main(["data", "slice", str(own_set), "--size", "64", "--out", "cut"]) == 0
    assert "8 images done already" in capsys.readouterr().out
    assert main(["data", "slice", str(own_set), "--size", "96", "--out", "cut"]) == 2
    assert "was started with size 64 instead of 96" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--size", "16"], "--size 16: windows must be at least 32 pixels"),
        (["--overlap", "1.5"], "--overlap 1.5: must be a fraction of the window from 0 to 0.9"),
        (["--overlap", "-0.1"], "--overlap -0.1"),
        (["--overlap", "nan"], "--overlap nan"),
        (["--min-area-ratio", "2"], "--min-area-ratio 2: must be a fraction from 0 to 1"),
        (["--keep-empty", "-1"], "--keep-empty -1: must be a fraction"),
        (["--workers", "0"], "--workers 0"),
        (["--out", "set"], "-o set holds something else"),
    ],
)
def test_data_slice_bad_flags(refused, own_set, flags, words):
    assert words in refused("data", "slice", own_set, *flags)


def test_data_slice_bad_sets(refused, own_set, own_folder):
    assert "nowhere.yaml: no such data YAML" in refused("data", "slice", "nowhere.yaml")
    content = yaml.safe_load(own_set.read_text())
    del content["test"]
    own_set.write_text(yaml.safe_dump(content))
    assert "--split test" in refused("data", "slice", own_set, "--split", "test")
    own_set.write_text(yaml.safe_dump({**content, "val": "images/nowhere"}))
    assert "images/nowhere" in refused("data", "slice", own_set)


@pytest.mark.parametrize("command", ["detect", "val"])
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--slice", "0"], "--slice 0: windows must be at least 32"),
        (["--slice", "16"], "--slice 16"),
        (["--slice", "-640"], "--slice -640"),
        (["--slice", "big"], "--slice big: must be the size of a window, a whole number"),
        (["--slice", "--overlap", "1.5"], "--overlap 1.5"),
        (["--slice", "--overlap", "-0.1"], "--overlap -0.1"),
        (["--slice", "--overlap", "much"], "--overlap much"),
        (["--overlap", "0.2"], "--overlap 0.2 needs --slice"),
    ],
)
def test_slice_flags(refused, command, flags, words):
    assert words in refused(command, "--weights", "nowhere.pt", *flags)


def test_other_mistakes_are_found_with_slices_too(refused, trained, own_folder):
    assert "weights not found" in refused("detect", "--weights", "no.pt", "--source", ".", "--slice")
    (own_folder / "bad.jpg").write_bytes(b"this is no picture")
    assert "bad.jpg" in refused("detect", "--weights", trained, "--source", "bad.jpg", "--img", 64, "--slice", 64)


@pytest.mark.parametrize("command", ["detect", "val"])
def test_help_names_the_flags(capsys, command):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    said = capsys.readouterr().out
    assert caught.value.code == 0 and "--slice [SIZE]" in said and "--overlap SHARE" in said and "--plugin" in said


def test_detect_keeps_its_flags(trained, tiny_set, own_folder):
    image = str(tiny_set.parent / "images/test/test0.jpg")
    flags = ["detect", "--weights", str(trained), "--source", image, "--img", "64", "--conf-thres", "0.0001"]
    assert main([*flags, "--slice", "64", "--save-txt", "--save-conf", "--save-crop", "--hide-conf"]) == 0
    assert main([*flags, "--save-txt", "--save-conf", "--name", "plain"]) == 0
    assert main([*flags, "--slice", "64", "--save-txt", "--max-det", "7", "--nosave", "--name", "few"]) == 0
    runs = own_folder / "runs/detect"
    (sliced,), (plain,), (few,) = (labels_of(runs / name).values() for name in ("exp", "plain", "few"))
    assert sliced.shape[1] == 6 and plain.shape[1] == 6 and few.shape == (7, 5)
    assert not np.array_equal(sliced, plain)
    assert sliced[:, 1:5].min() >= 0 and sliced[:, 1:5].max() <= 1
    assert (runs / "exp/test0.jpg").is_file() and list((runs / "exp/crops").rglob("*.jpg"))
    assert not (runs / "few/test0.jpg").exists()


def test_val_keeps_its_flags(trained, tiny_set, own_folder, capsys, undrawn):
    flags = ["val", "--data", str(tiny_set), "--weights", str(trained), "--img", "64", "--batch-size", "3"]
    assert main([*flags, "--slice", "64", "--save-txt", "--save-conf", "--save-json", "--single-cls"]) == 0
    assert main([*flags, "--slice", "64", "--task", "test", "--augment", "--verbose", "--name", "test"]) == 0
    assert main([*flags, "--slice", "64", "--task", "speed", "--name", "speed"]) == 0  # it finds nothing at all
    assert main([*flags, "--slice", "64", "--save-hybrid", "--name", "hybrid"]) == 0
    runs = own_folder / "runs/val"
    assert set(labels_of(runs / "exp")) == {f"val{index}" for index in range(4)}
    assert (runs / "exp/best_predictions.json").is_file()
    hybrid = labels_of(runs / "hybrid")
    for name, rows in hybrid.items():  # the true boxes are among them
        truth = np.loadtxt(tiny_set.parent / f"labels/val/{name}.txt", ndmin=2)
        distance = np.abs(truth[:, None] - rows[None, :, :5]).max(axis=2).min(axis=1)
        assert (distance < 0.01).all()


def test_onnx_is_sliced_as_the_checkpoint_is(trained, tiny_set, own_folder):
    pytest.importorskip("onnxruntime")
    shutil.copy(trained, "best.pt")
    assert main(["export", "--weights", "best.pt", "--include", "onnx", "--img", "64"]) == 0
    image = str(tiny_set.parent / "images/test/test1.jpg")
    for name in ("pt", "onnx"):
        flags = [
            "--source",
            image,
            "--img",
            "64",
            "--conf-thres",
            "0.0001",
            "--slice",
            "64",
            "--iou-thres",
            "1",
            "--max-det",
            "100000",
            "--save-txt",
            "--save-conf",
        ]
        assert main(["detect", "--weights", f"best.{name}", *flags, "--name", name]) == 0
    (by_pt,), (by_onnx,) = (labels_of(own_folder / "runs/detect" / name).values() for name in ("pt", "onnx"))
    assert len(by_pt) > 10 and len(by_onnx) > 10
    # nothing is suppressed, because after so short a training rounding decides which of two boxes suppresses the other;
    # it also moves some boxes by a whole pixel
    found = [np.abs(by_pt - row).max(axis=1).min() < 2e-3 for row in by_onnx]
    assert len(found) == pytest.approx(len(by_pt), rel=0.01) and np.mean(found) > 0.95
    assert all(found[index] for index in by_onnx[:, 5].argsort()[-5:])
    assert by_onnx[:, 5].max() == pytest.approx(by_pt[:, 5].max(), rel=1e-3)
