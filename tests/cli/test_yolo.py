"""``yolov5-ema yolo``, and the arguments of ultralytics for train, val, detect and export."""

from __future__ import annotations

import json

import pytest
from conftest import SMALL_YOLO, run_cli
from offline_ultralytics import environment

from yolov5_ema.cli.main import main

pytest.importorskip("ultralytics")

FAST = ("imgsz=64", "device=cpu", "batch=4", "workers=0", "plots=False")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return environment(tmp_path_factory.mktemp("config"))


def test_a_model_from_its_yaml_to_onnx(tiny_set, tmp_path, home):
    """train, val, detect and export take ultralytics' arguments; --engine is not needed."""
    (tmp_path / "small.yaml").write_text(SMALL_YOLO)

    def run(*words: object) -> str:
        done = run_cli(*words, cwd=tmp_path, env=home)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout + done.stderr

    place = f"project={tmp_path / 'runs'}"
    said = run("train", "model=small.yaml", f"data={tiny_set}", "epochs=1", place, "name=one", *FAST)
    assert "yolov5_ema.blocks.ema.EMA" in said
    best = tmp_path / "runs/one/weights/best.pt"
    said = run("val", f"model={best}", f"data={tiny_set}", place, "name=val", *FAST)
    assert "mAP50-95" in said and (tmp_path / "runs/val").is_dir()
    image = tiny_set.parent / "images/test/test0.jpg"
    run("detect", f"model={best}", f"source={image}", place, "name=found", "save_txt=True", "conf=0.0001", *FAST[:2])
    assert (tmp_path / "runs/found/labels/test0.txt").is_file() and (tmp_path / "runs/found/test0.jpg").is_file()
    run("export", f"model={best}", "format=torchscript", *FAST[:2])
    own = ("--img", 64, "--device", "cpu", "--conf-thres", 0.0001, "--save-txt", "--project", "own", "--name", "found")
    run("detect", "--weights", best, "--source", image, *own)
    labels = [folder / "found/labels/test0.txt" for folder in (tmp_path / "runs", tmp_path / "own")]
    assert labels[0].read_text() == labels[1].read_text()
    windows = ("--save-conf", "--slice", 64, "--exist-ok")
    run("detect", "--weights", best.with_suffix(".torchscript"), "--source", image, *own, *windows)
    assert (tmp_path / "own/found/test0.jpg").is_file() and labels[1].read_text() != labels[0].read_text()
    assert best.with_suffix(".torchscript").is_file()


@pytest.mark.slow
def test_the_processes_of_several_data_sets_know_the_blocks(tiny_set, tmp_path, home):
    (tmp_path / "small.yaml").write_text(SMALL_YOLO)
    both = f"data=['{tiny_set}','{tiny_set}']"
    flags = ("model=small.yaml", both, "epochs=1", f"project={tmp_path / 'runs'}", *FAST)
    done = run_cli("yolo", "train", *flags, cwd=tmp_path, env=home)
    assert done.returncode == 0, done.stderr[-3000:]
    [results] = (tmp_path / "runs").rglob("multitrain_results.json")
    found = json.loads(results.read_text())["results"]
    assert list(found) == ["tiny", "tiny-2"] and all(found.values())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (("train", "data=coco8.yaml"), "did you mean --data coco8.yaml?"),
        (("train", "data=coco8.yaml", "epochs=3"), "add model=, as in: yolov5-ema train model=yolo11n-ema.yaml"),
        (("train", "model=yolo11n-ema.yaml", "--init", "identity"), "--init works only with YOLOv5's train"),
        (("detect", "model=a.pt", "--slice", "16"), "--slice 16: windows must be at least 32 pixels wide"),
        (("val", "model=a.pt", "--overlap", "0.2"), "--overlap 0.2 needs --slice"),
        (("val", "--engine", "yolov5", "model=a.pt"), "did you mean --model a.pt?"),
        (("train", "--cfg", "yolo11n-ema.yaml"), "yolo11n-ema.yaml is a model YAML of ultralytics, not of YOLOv5."),
        (("train", "--cfg", "yolo12s.yaml"), "To train it: yolov5-ema train model=yolo12s.yaml data=…"),
    ],
)
def test_mistakes(line, said, own_folder, capsys):
    assert main(list(line)) == 2
    assert said in capsys.readouterr().err
    assert not list(own_folder.iterdir())
