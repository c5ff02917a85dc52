"""Models of ultralytics that are built from their YAMLs: class, size, and what `info` counts."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path

import pytest
import yaml
from offline_ultralytics import offline

from yolov5_ema.cfgs.generator import build_cfg, format_cfg
from yolov5_ema.engine.model_info import ultralytics_info
from yolov5_ema.engine.ultralytics_models import build, class_of, read_cfg
from yolov5_ema.errors import ConfigError
from yolov5_ema.upstream.ultralytics import find_cfg, located


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    with offline(tmp_path_factory.mktemp("config")):
        yield importlib.import_module("ultralytics.nn.tasks")


@functools.cache
def info_of(name, **options):
    return ultralytics_info(name, find_cfg(name, located()), **options)


CLASSES = {
    "yolov3-tiny.yaml": "DetectionModel",
    "yolov10n.yaml": "DetectionModel",
    "yolov8n-seg.yaml": "SegmentationModel",
    "yolo26n-seg.yaml": "SegmentationModel",
    "yolo26n-pose.yaml": "PoseModel",
    "yolo11n-obb.yaml": "OBBModel",
    "yolo12n-cls.yaml": "ClassificationModel",
    "rtdetr-l.yaml": "RTDETRDetectionModel",
    "yolov8n-world.yaml": "WorldModel",
    "yoloe-26n.yaml": "YOLOEModel",
}


@pytest.mark.parametrize("name", CLASSES)
def test_the_last_row_says_which_class_builds_the_model(tasks, name):
    assert class_of(read_cfg(name, find_cfg(name, located())), tasks).__name__ == CLASSES[name]


@pytest.mark.parametrize(
    "name", ["yolov3-tiny.yaml", "yolo26n.yaml", "yolo26n-seg.yaml", "yolo11n-obb.yaml", "yolo12n-cls.yaml"]
)
def test_parameters_are_those_of_the_model_that_ultralytics_builds(tasks, name):
    cls = getattr(tasks, CLASSES.get(name, "DetectionModel"))
    model = cls(tasks.yaml_model_load(name), verbose=False)
    found = info_of(name)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert [row.parameters for row in found.rows] == [row.np for row in model.model]
    assert found.warnings == [] and found.cfg == name and found.nc == model.yaml["nc"]


def test_rows_of_yolo26n(tasks):
    rows = info_of("yolo26n.yaml").rows
    assert [row.stride for row in rows[:9]] == [2, 4, 4, 8, 8, 16, 16, 32, 32]
    assert [row.channels for row in rows[:9]] == [16, 32, 64, 64, 128, 128, 128, 256, 256]
    # a multiply-add counts as two
    assert rows[0].flops == 2 * 16 * 3 * 9 * 320 * 320
    assert rows[1].flops == 2 * 32 * 16 * 9 * 160 * 160
    # the depth of n is one half
    assert [row.repeats for row in rows[:3]] == [1, 1, 1] and info_of("yolo12n.yaml").rows[6].repeats == 2
    assert (rows[23].module, rows[23].stride, rows[23].source) == ("Detect", None, [16, 19, 22])


def test_a_block_adds_its_own_row_and_nothing_else(tasks):
    plain, ours = info_of("yolo26n.yaml"), info_of("yolo26n-ema.yaml")
    blocks = [row for row in ours.rows if row.module == "EMA"]
    assert [(row.index, row.channels, row.stride) for row in blocks] == [(7, 128, 16), (10, 256, 32)]
    assert [row.parameters for row in blocks] == [10 * 4**2 + 4 * 4, 10 * 8**2 + 4 * 8]
    assert ours.parameters - plain.parameters == sum(row.parameters for row in blocks)
    assert ours.flops - plain.flops == sum(row.flops for row in blocks) > 0


def test_classes_size_and_image_size(tasks):
    few = info_of("yolo26n.yaml", nc=3, imgsz=300)
    assert (few.nc, few.imgsz) == (3, 320) and few.parameters < info_of("yolo26n.yaml").parameters
    assert few.rows[0].flops == 2 * 16 * 3 * 9 * 160 * 160
    # the figures in ultralytics' own YAML
    assert info_of("yolo26-cls.yaml").parameters == info_of("yolo26n-cls.yaml").parameters == 2_812_104
    assert info_of("yolo26s-cls.yaml").parameters == 6_724_008


def test_a_block_inside_is_counted(tasks, tmp_path):
    file = tmp_path / "yolov8n-inside.yaml"
    file.write_text(format_cfg(base="yolov8n.yaml", inside="C2f", options={"groups": 8}), encoding="utf-8")
    plain, ours = info_of("yolov8n.yaml"), ultralytics_info(str(file), file)
    assert ours.rows[6].module == "C2f_EMA" and ours.rows[6].flops > plain.rows[6].flops
    # two bottlenecks of 64 channels in row 6, one of 128 in row 8
    assert ours.parameters - plain.parameters == 2 * (10 * 8**2 + 4 * 8) + 10 * 16**2 + 4 * 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scales": {"n": [0.5, 0.25, 1024], "s": [0.5, 0.5, 1024]}}, None),
        ({"nc": 0}, "my26.yaml: nc is 0"),
        ({"scales": {}}, "my26.yaml: scales must give"),
        ({"head": [[-1, 1, "Nothing", [64]], [[9, 11], 1, "Detect", ["nc"]]]}, "head row 11: unknown module 'Nothing'"),
        ({"head": [[[9, 99], 1, "Detect", ["nc"]]]}, "'from' 99 is not above this row"),
        ({"head": [[[4, 6], 1, "Concat", [1]], [[11], 1, "Detect", ["nc"]]]}, r"row 11: .*Concat.* cannot run"),
        ({"scales": {"n": [0.5, 900.0, 1e9]}}, "the model is too large: it needs more than .* bytes of memory"),
    ],
)
def test_yamls_that_cannot_be_built(tasks, tmp_path, change, message):
    content = {key: value for key, value in build_cfg(base="yolo26n.yaml", block="none").items() if key != "scale"}
    file = tmp_path / "my26.yaml"
    file.write_text(yaml.safe_dump({**content, **change}), encoding="utf-8")
    if message is None:
        assert ultralytics_info("my26.yaml", file).parameters == 2_572_280
        return
    with pytest.raises(ConfigError, match=message):
        build(read_cfg("my26.yaml", file))


def test_a_size_that_is_not_in_the_file_and_a_yaml_of_yolov5(tasks, tmp_path):
    file = tmp_path / "yolo26.yaml"
    content = build_cfg(base="yolo26.yaml", block="none")
    content["scales"] = {"n": [0.5, 0.25, 1024], "s": [0.5, 0.5, 1024]}
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"yolo26x.yaml: there is no size x; yolo26.yaml has n, s"):
        read_cfg("yolo26x.yaml", file)
    Path(file).write_text(format_cfg(size="n"), encoding="utf-8")
    with pytest.raises(ConfigError, match="is not a model YAML of ultralytics"):
        read_cfg("yolo26.yaml", file)
