"""ultralytics' own command line with the adapter."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from yolov5_ema.errors import UserError
from yolov5_ema.scripts.yolo import assignments, run_yolo


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "model=yolo11n-ema.yaml", "date=x.yaml"], "'date' is not a valid YOLO argument"),
        (["train", "model=yolo11n-ema.yaml", "data=no.yaml"], "no.yaml"),
        (["train", "model=no.yaml"], "'no.yaml' does not exist"),
        (["train", "model=yolov5s-ema.yaml"], "yolov5s-ema.yaml is a model YAML of YOLOv5: use the flags of YOLOv5"),
        (["val", "model=gone.pt", "data=x.yaml"], "gone.pt"),
        (["train", "model=bad.yaml", "data=x.yaml"], "bad.yaml, head row 1: EMA has no option 'group'"),
    ],
)
def test_mistakes_are_one_sentence(ultralytics, own_folder, words, said):
    Path("bad.yaml").write_text(
        "nc: 1\nscales: {n: [1, 1, 64]}\nbackbone:\n  - [-1, 1, Conv, [16, 3, 2]]\n"
        "head:\n  - [-1, 1, EMA, [{group: 4}]]\n  - [[1], 1, Detect, [nc]]\n"
    )
    cfg = importlib.import_module("ultralytics.cfg")
    before = list(cfg.ARGV)
    with pytest.raises(UserError) as refused:
        run_yolo(words)
    assert said in str(refused.value) and "\n\n" not in str(refused.value) and "❌" not in str(refused.value)
    assert before == cfg.ARGV


def test_version(ultralytics, caplog):
    with caplog.at_level("INFO", logger="ultralytics"):
        assert run_yolo(["version"]) == 0


def test_assignments():
    assert assignments(["train", "model=a=b.pt", "x", "--data=y", "imgsz=64"]) == {"model": "a=b.pt", "imgsz": "64"}
