"""What `info` counts in models of ultralytics."""

from __future__ import annotations

import functools
import importlib

import pytest
from offline_ultralytics import by_release, needs_yolo26, offline

from yolov5_ema.cfgs.generator import format_cfg
from yolov5_ema.engine.model_info import ultralytics_info
from yolov5_ema.upstream.ultralytics import find_cfg, located


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    with offline(tmp_path_factory.mktemp("config")):
        yield importlib.import_module("ultralytics.nn.tasks")


@functools.cache
def info_of(name, **options):
    return ultralytics_info(name, find_cfg(name, located()), **options)


@pytest.mark.parametrize(
    "name",
    by_release(["yolov3-tiny.yaml", "yolo26n.yaml", "yolo26n-seg.yaml", "yolo11n-obb.yaml", "yolo12n-cls.yaml"]),
)
def test_parameters_are_those_of_the_model_that_ultralytics_builds(tasks, name):
    classes = {"seg": "SegmentationModel", "obb": "OBBModel", "cls": "ClassificationModel"}
    cls = getattr(tasks, classes.get(name[:-5].split("-")[-1], "DetectionModel"))
    model = cls(tasks.yaml_model_load(name), verbose=False)
    found = info_of(name)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert [row.parameters for row in found.rows] == [row.np for row in model.model]
    assert found.warnings == [] and found.cfg == name and found.nc == model.yaml["nc"]


@needs_yolo26
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
    plain, ours = info_of("yolo11n.yaml"), info_of("yolo11n-ema.yaml")
    blocks = [row for row in ours.rows if row.module == "EMA"]
    assert [(row.index, row.channels, row.stride) for row in blocks] == [(7, 128, 16), (10, 256, 32)]
    assert [row.parameters for row in blocks] == [10 * 4**2 + 4 * 4, 10 * 8**2 + 4 * 8]
    assert ours.parameters - plain.parameters == sum(row.parameters for row in blocks)
    assert ours.flops - plain.flops == sum(row.flops for row in blocks) > 0


def test_classes_size_and_image_size(tasks):
    few = info_of("yolo11n.yaml", nc=3, imgsz=300)
    assert (few.nc, few.imgsz) == (3, 320) and few.parameters < info_of("yolo11n.yaml").parameters
    assert few.rows[0].flops == 2 * 16 * 3 * 9 * 160 * 160
    # the figures in yolo26-cls.yaml of ultralytics, which has the same rows
    assert info_of("yolo11-cls.yaml").parameters == info_of("yolo11n-cls.yaml").parameters == 2_812_104
    assert info_of("yolo11s-cls.yaml").parameters == 6_724_008


def test_a_block_inside_is_counted(tasks, tmp_path):
    file = tmp_path / "yolov8n-inside.yaml"
    file.write_text(format_cfg(base="yolov8n.yaml", inside="C2f", options={"groups": 8}), encoding="utf-8")
    plain, ours = info_of("yolov8n.yaml"), ultralytics_info(str(file), file)
    assert ours.rows[6].module == "C2f_EMA" and ours.rows[6].flops > plain.rows[6].flops
    # two bottlenecks of 64 channels in row 6, one of 128 in row 8
    assert ours.parameters - plain.parameters == 2 * (10 * 8**2 + 4 * 8) + 10 * 16**2 + 4 * 16
