"""YOLOv5's flags as arguments of ultralytics."""

from __future__ import annotations

import importlib

import pytest
from offline_ultralytics import offline

from yolov5_ema.errors import UserError
from yolov5_ema.scripts.yolo_flags import options_of
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
