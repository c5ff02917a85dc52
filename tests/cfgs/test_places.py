"""Which rows are the stages of the backbone and the neck, in the YAMLs of ultralytics."""

from __future__ import annotations

import pytest
from offline_ultralytics import by_release

from yolov5_ema.cfgs.generator import Recipe, build_cfg
from yolov5_ema.errors import ConfigError

pytest.importorskip("ultralytics")

# the modules and numbers, in the model without blocks, of the rows that the blocks follow
STAGES = {
    ("yolov3.yaml", "backbone"): "Bottleneck.8 Bottleneck.10",
    ("yolov3.yaml", "neck"): "Bottleneck.20 Bottleneck.27",
    ("yolov3-tiny.yaml", "backbone"): "Conv.8 Conv.10",
    ("yolov3-tiny.yaml", "neck"): "Conv.19",
    ("yolov5-p6.yaml", "backbone"): "C3.8 C3.10",
    ("yolov5-p6.yaml", "neck"): "C3.15 C3.19 C3.23 C3.26 C3.29",
    ("yolov6.yaml", "backbone"): "Conv.6 Conv.8",
    ("yolov6.yaml", "neck"): "Conv.14 Conv.19 Conv.23",
    ("yolov8-ghost-p2.yaml", "neck"): "C3Ghost.12 C3Ghost.15 C3Ghost.18 C3Ghost.21 C3Ghost.24",
    ("yolov8-world.yaml", "neck"): "C2fAttn.12 C2fAttn.15 C2fAttn.19",
    ("yolov8-cls-resnet50.yaml", "backbone"): "ResNetLayer.3 ResNetLayer.4",
    ("yolov9e.yaml", "backbone"): "RepNCSPELAN4.25 RepNCSPELAN4.28",
    ("yolov9e.yaml", "neck"): "RepNCSPELAN4.32 RepNCSPELAN4.35 RepNCSPELAN4.38",
    ("yolov10s.yaml", "backbone"): "C2f.6 C2fCIB.8",
    ("yolov10s.yaml", "neck"): "C2f.13 C2f.16 C2f.19",
    ("yolo11n-obb.yaml", "neck"): "C3k2.13 C3k2.16 C3k2.19",
    ("yolo12x.yaml", "backbone"): "A2C2f.6 A2C2f.8",
    ("yolo12x.yaml", "neck"): "A2C2f.11 A2C2f.14 A2C2f.17",
    ("yolo26n-cls.yaml", "backbone"): "C3k2.6 C3k2.8",
    ("yolo26n-sem.yaml", "neck"): "C3k2.13 C3k2.16",
    ("yolo26n-pose.yaml", "neck"): "C3k2.13 C3k2.16 C3k2.19",
    ("rtdetr-l.yaml", "backbone"): "HGBlock.7 HGBlock.9",
    ("rtdetr-l.yaml", "neck"): "RepC3.16 RepC3.21 RepC3.24",
    ("rtdetr-resnet50.yaml", "backbone"): "ResNetLayer.3 ResNetLayer.4",
}


# places and strides, in YOLOv5's own models without a base too
OTHER_PLACES = [
    ({"size": "n"}, "every-c3", "C3.2 C3.4 C3.6 C3.8 C3.13 C3.17 C3.20 C3.23"),
    ({"size": "n"}, "sppf", "SPPF.9"),
    ({"size": "n"}, "detect", "C3.17 C3.20 C3.23"),
    ({"size": "n"}, 8, "C3.4 C3.17"),
    ({"size": "n"}, (16, 8), "C3.4 C3.6 C3.13 C3.17 C3.20"),
    ({"size": "n"}, ("neck", 8, 32), "C3.17 C3.23"),
    ({"size": "n"}, ("backbone", 4), "C3.2"),
    ({"size": "n"}, ("sppf", "backbone"), "C3.6 C3.8 SPPF.9"),
    ({"size": "n", "head": "p2"}, ("detect", 4), "C3.21"),
    ({"size": "n", "head": "p2"}, "sppf", "SPP.8"),
    ({"base": "yolov6.yaml"}, "detect", "Conv.19 Conv.23 Conv.27"),
    ({"base": "yolov9c.yaml"}, "sppf", "SPPELAN.9"),
    ({"base": "yolo12.yaml"}, ("detect", 32), "C3k2.20"),
    ({"base": "rtdetr-l.yaml", "block": "CA"}, "detect", "RepC3.21 RepC3.24 RepC3.27"),
    ({"base": "yolo11-cls.yaml"}, "detect", "C2PSA.9"),
]


def followed(cfg):
    """The rows that a block follows, numbered without the blocks."""
    rows, found, plain = cfg["backbone"] + cfg["head"], [], 0
    for before, row in zip([[]] + rows, rows):
        if row[2] in ("EMA", "CA"):
            found.append(f"{before[2]}.{plain - 1}")
        plain += row[2] not in ("EMA", "CA")
    return found


@pytest.mark.parametrize(("name", "at"), by_release(STAGES))
def test_stages_of_every_family(name, at):
    assert followed(build_cfg(base=name, at=at)) == STAGES[name, at].split()


@pytest.mark.parametrize(("recipe", "at", "rows"), OTHER_PLACES)
def test_other_places_and_strides(recipe, at, rows):
    assert followed(build_cfg(**recipe, at=at)) == rows.split()
    words = Recipe(**recipe, at=at).command().split()
    assert words[words.index("--at") + 1 :] == [str(word) for word in (at if isinstance(at, tuple) else [at])]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"at": 64}, "the p3 model: no stage has stride 64; they have 4, 8, 16, 32"),
        ({"at": ["backbone", 8, 64]}, "at backbone 8 64, no stage has stride 64"),
        ({"at": ["sppf", "neck", 8]}, "at sppf, no stage has stride 8; they have 32"),
        (
            {"at": 0},
            "place .* 0 is unknown; choose from backbone, .*, detect, strides such as 8 .several, with spaces",
        ),
        ({"at": True}, "place .* True is unknown"),
        ({"at": []}, "at is empty"),
        ({"at": "every-c3", "after": [2]}, "at and after exclude each other"),
        ({"at": 8, "block": "none"}, "block none has no place"),
        ({"base": "rtdetr-l.yaml", "at": "sppf"}, "at sppf: it has no pyramid of poolings"),
        (
            {"at": "sppf", "inside": "C3"},
            "--inside C3 and --at sppf exclude each other: a pyramid of poolings is no C3",
        ),
        ({"base": "yolo11-cls.yaml", "at": "neck"}, "finer than stride 32, and there are none; .*--after"),
        ({"base": "yolo11-cls-resnet18.yaml"}, "the last two C3 of the backbone, which has 1 of these or of similar"),
        ({"base": "yolo11-cls-resnet18.yaml", "at": "neck"}, r"row 0 \(TorchVision\) is unknown"),
        ({"base": "yolo12.yaml", "inside": "C2f"}, "yolo12.yaml has no C2f; it has C3k2"),
        ({"base": "rtdetr-l.yaml", "inside": "C3"}, "has no C3, and no C3 or C2f or C3k2 at all"),
        ({"base": "yolo12.yaml", "inside": "C3k2", "at": "neck"}, "after the C3k2 of the head .* there are none"),
        ({"base": "yolo12.yaml", "inside": "C3k2", "after": [2, 6]}, "row 6 of yolo12.yaml is A2C2f, not C3k2"),
        ({"base": "yolo11n.yaml", "after": [23]}, "row 23 of yolo11n.yaml is Detect, which gives predictions"),
        ({"base": "rtdetr-l.yaml", "after": [28]}, "row 28 of rtdetr-l.yaml is RTDETRDecoder, which gives predictions"),
    ],
)
def test_places_that_are_not_there(recipe, message):
    with pytest.raises(ConfigError, match=message):
        build_cfg(**recipe)


def test_only_stages_of_the_module_count_when_the_block_goes_inside():
    rows = build_cfg(base="yolo12n.yaml", inside="C3k2", options={"groups": 8})["backbone"]
    assert [(i, row[2]) for i, row in enumerate(rows) if "_" in row[2]] == [(2, "C3k2_EMA"), (4, "C3k2_EMA")]
    assert rows[2] == [-1, 2, "C3k2_EMA", [256, False, 0.25, {"groups": 8}]]
