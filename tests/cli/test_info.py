"""``yolov5-ema info``: which engine a YAML is for, and what is printed of a model of ultralytics."""

from __future__ import annotations

import json

import pytest
from conftest import run_cli
from offline_ultralytics import environment

from yolov5_ema.cfgs.generator import format_cfg

pytest.importorskip("ultralytics")


@pytest.fixture
def info(tmp_path):
    return lambda *args: run_cli("info", *args, cwd=tmp_path, env=environment(tmp_path))


def test_a_model_of_ultralytics_as_a_table_and_as_json(info):
    table = info("yolo11n-ema.yaml", "--nc", 3)
    assert table.returncode == 0, table.stderr
    # ultralytics says so when it makes a folder for its settings
    lines = [line for line in table.stdout.splitlines() if "ettings" not in line]
    assert lines[0].split() == ["from", "n", "module", "channels", "stride", "parameters", "GFLOPs", "args"]
    # 32 groups of 4 channels on 40 x 40: a 3x3 and a 1x1 convolution, and two products
    assert 32 * (2 * 16 * 9 * 1600 + 2 * 16 * 80 + 2 * 2 * 4 * 1600) == 15_646_720
    assert lines[8].split() == ["7", "-1", "1", "EMA", "128", "16", "176", "0.016", "[]"]
    assert lines[-1].startswith("yolo11n-ema.yaml: 26 rows, 2,591,273 parameters, ")
    found = json.loads(info("yolo11n-ema.yaml", "--nc", 3, "--json").stdout)
    assert (found["parameters"], found["nc"], len(found["rows"])) == (2_591_273, 3, 26)
    assert found["rows"][7]["module"] == "EMA"


def test_own_files_are_recognised_by_their_form(info, tmp_path):
    (tmp_path / "a.yaml").write_text(format_cfg(size="n"), encoding="utf-8")
    (tmp_path / "b.yaml").write_text(format_cfg(base="yolov8n.yaml"), encoding="utf-8")
    assert "a.yaml: 27 rows, 1,873,005 parameters" in info("a.yaml").stdout
    assert "b.yaml: 25 rows, 3,158,048 parameters" in info("b.yaml").stdout


def test_a_name_of_both_means_yolov5s_unless_asked(info):
    assert "Detect" in info("yolov3-tiny.yaml").stdout and "'anchors'" in info("yolov3-tiny.yaml").stdout
    assert "'anchors'" not in info("yolov3-tiny.yaml", "--engine", "ultralytics").stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("yolo11q.yaml",), "yolo11q.yaml: there is no such size; the letter of the size is one of n, s, m, l, x"),
        (("yolo99n.yaml",), "yolo99n.yaml: no such file here"),
        (("yolo99n.yaml", "--engine", "ultralytics"), "yolo99n.yaml: no such file here"),
        (
            ("yolov5n-ema.yaml", "--engine", "ultralytics"),
            "yolov5n-ema.yaml is a model YAML of YOLOv5, not of ultralytics",
        ),
        (("mine.yaml", "--engine", "yolov5"), "mine.yaml is a model YAML of ultralytics, not of YOLOv5"),
        (("neither.yaml",), "the key 'nc' is missing"),
    ],
)
def test_wrong_files_are_one_sentence(info, tmp_path, args, message):
    (tmp_path / "mine.yaml").write_text(format_cfg(base="yolov8n.yaml"), encoding="utf-8")
    (tmp_path / "neither.yaml").write_text("path: x\nnames: [a]\n", encoding="utf-8")
    done = info(*args)
    assert done.returncode == 2 and message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
