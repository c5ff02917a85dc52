"""A level at stride 4 for the models of ultralytics, against the YAMLs in which it ships one itself."""

from __future__ import annotations

import pytest
import yaml
from offline_ultralytics import by_release

from yolov5_ema.cfgs.generator import build_cfg
from yolov5_ema.errors import ConfigError
from yolov5_ema.upstream.ultralytics import own_cfg

pytest.importorskip("ultralytics")


@pytest.mark.parametrize("family", by_release(["yolov8", "yolov8-ghost", "yolo26"]))
def test_what_is_derived_is_what_ultralytics_ships(family):
    from yolov5_ema.upstream.ultralytics import located

    theirs = yaml.safe_load(own_cfg(f"{family}-p2.yaml", located()).read_text(encoding="utf-8"))
    ours = build_cfg(base=f"{family}.yaml", head="p2", block="none")
    assert (ours["backbone"], ours["head"]) == (theirs["backbone"], theirs["head"])


def test_the_head_reads_four_levels_of_other_families():
    cfg = build_cfg(base="yolo12s-seg.yaml", head="p2", block="none")
    assert cfg["head"][6:12] == [
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [[-1, 2], 1, "Concat", [1]],
        # not 128 channels: at a quarter of the width, A2C2f would have 16 inside
        [-1, 2, "A2C2f", [256, False, -1]],
        [-1, 1, "Conv", [128, 3, 2]],
        [[-1, 14], 1, "Concat", [1]],
        [-1, 2, "A2C2f", [256, False, -1]],
    ]
    assert cfg["head"][-1] == [[17, 20, 23, 26], 1, "Segment", ["nc", 32, 256]]
    assert cfg["scale"] == "s"


@pytest.mark.parametrize(
    ("base", "message"),
    by_release(
        [
            ("yolov8-p2.yaml", "yolov8-p2.yaml has a level at stride 4: leave --head p2 out"),
            ("rtdetr-l.yaml", "cannot be derived for rtdetr-l.yaml: its neck is not made of Upsample, Concat, stage"),
            ("yolov3.yaml", "cannot be derived for yolov3.yaml"),
            ("yolov3-tiny.yaml", "Detect reads no neck at stride 8"),
            ("yolov6.yaml", "cannot be derived for yolov6.yaml"),
            ("yolo11-cls.yaml", "Classify reads no neck at stride 8"),
            ("yoloe-11-seg.yaml", "yoloe-11-seg.yaml: YOLOESegment takes three levels only"),
            ("yolo26-sem.yaml", "cannot be derived for yolo26-sem.yaml"),
        ]
    ),
)
def test_models_that_cannot_have_one(base, message):
    with pytest.raises(ConfigError, match=message):
        build_cfg(base=base, head="p2")


def test_heads_of_yolov5_are_not_for_a_base():
    with pytest.raises(ConfigError, match="head p3 is one of YOLOv5's; a base of ultralytics can only be extended"):
        build_cfg(base="yolo11.yaml", head="p3")
