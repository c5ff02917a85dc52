"""YOLOv5's flags as arguments of ultralytics."""

from __future__ import annotations

import importlib

import pytest
from offline_ultralytics import offline

from yolov5_ema.errors import UserError
from yolov5_ema.scripts.yolo_flags import LINES, options_of, words_of
from yolov5_ema.upstream.flags import given_flags


@pytest.mark.parametrize(
    ("script", "flags", "options"),
    [
        ("val", "", {}),
        ("val", "--img 320 --batch-size 2", {"imgsz": 320, "batch": 2}),
        ("val", "--conf-thres 0.1 --iou-thres=0.5", {"conf": 0.1, "iou": 0.5}),
        ("val", "--half --single-cls --device cpu", {"half": True, "single_cls": True, "device": "cpu"}),
        ("train", "--epochs 3 --batch 4 --adam", {"epochs": 3, "batch": 4, "optimizer": "Adam"}),
        ("train", "--cache --noval", {"cache": "ram", "val": False}),
        ("train", "--cache disk --weights a.pt --rect", {"cache": "disk", "pretrained": "a.pt", "rect": True}),
    ],
)
def test_flags_are_options(script, flags, options):
    assert options_of(script, flags.split()) == options


@pytest.mark.parametrize(
    ("script", "flags", "words"),
    [
        ("val", "--dnn --img 64", "--dnn: with a model of ultralytics, val takes --imgsz, "),
        ("train", "--hyp a.yaml", "--hyp a.yaml: with a model of ultralytics, train takes --imgsz, "),
        ("train", "--epochs many", "argument --epochs: invalid int value: 'many'"),
    ],
)
def test_other_flags_are_refused(script, flags, words):
    with pytest.raises(UserError, match=words):
        options_of(script, flags.split())


@pytest.mark.parametrize(
    ("script", "line", "words"),
    [
        ("detect", "--weights a.pt --source 0 --img 320", "model=a.pt source=0 imgsz=320"),
        ("detect", "--weights a.pt --img 320 640 --classes 0 2", "model=a.pt imgsz=[320,640] classes=[0,2]"),
        ("detect", "--weights a.pt --nosave --hide-conf", "model=a.pt save=False show_conf=False"),
        ("detect", "--weights a.pt --device= --visualize", "model=a.pt visualize=True"),
        ("val", "--data d.yaml --weights a.pt --task test --half", "model=a.pt data=d.yaml split=test half=True"),
    ],
)
def test_lines_are_words(script, line, words):
    assert sorted(words_of(script, line.split())) == sorted(words.split())


def test_a_relative_project_is_one_of_the_working_folder(own_folder):
    """ultralytics would make it in its folder of runs."""
    assert words_of("detect", ["--weights", "a.pt", "--project", "here"])[1] == f"project={own_folder / 'here'}"


def test_a_source_that_looks_like_a_number_is_a_folder_if_there_is_one(own_folder):
    """ultralytics would read 202401."""
    line = ["--weights", "a.pt", "--source", "2024_01"]
    assert "source=2024_01" in words_of("detect", line)
    (own_folder / "2024_01").mkdir()
    (own_folder / "0").mkdir()
    assert f"source={own_folder / '2024_01'}" in words_of("detect", line)
    assert "source=0" in words_of("detect", [*line[:-1], "0"])  # the camera, as with YOLOv5


@pytest.mark.parametrize(
    ("script", "line", "words"),
    [
        ("detect", "--weights a.pt --update", "--update: with a model of ultralytics, detect takes --source, "),
        ("detect", "--weights a.pt b.pt", "--weights: ultralytics detects with one model at a time"),
        ("val", "--weights a.pt --task speed", "argument --task: invalid choice: 'speed'"),
    ],
)
def test_lines_without_a_counterpart_are_refused(script, line, words):
    with pytest.raises(UserError, match=words):
        words_of(script, line.split())


def test_every_flag_is_one_of_yolov5_and_every_option_one_of_ultralytics(engine, tmp_path):
    given = {
        "val": "--img 64 --batch-size 2 --device cpu --single-cls --conf-thres 0.1 --iou-thres 0.5 --half --augment",
        "train": "--img 64 --batch-size 2 --device cpu --workers 0 --single-cls --epochs 3 --patience 5 --adam --cache "
        "--weights a.pt --rect --save-period 2 --noval",
    }
    with offline(tmp_path):
        known = importlib.import_module("ultralytics.cfg").DEFAULT_CFG_DICT
        for script, line in given.items():
            flags = line.split()
            found = options_of(script, flags)
            assert len(found) == len(given_flags(engine, script, flags)) == line.count("--")
            assert set(found) - {"half"} <= set(known)  # half is an older name of quantize=16
        for script, table in LINES.items():
            assert {how["dest"] for how in table.values()} - {"half"} <= set(known)
            flags = {spelling for spellings in table for spelling in spellings}
            # some releases have more or fewer
            assert len(set(given_flags(engine, script, sorted(flags))).difference(("batch", "iou"))) >= 18
