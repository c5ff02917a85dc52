"""Which files belong to the package ultralytics, and how its YAMLs are found."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from yolov5_ema.cfgs.generator import SHIPPED
from yolov5_ema.resources import models_dir
from yolov5_ema.upstream.ultralytics import (
    find_cfg,
    is_cfg_of_ultralytics,
    located,
    names_ultralytics,
    shipped_cfg,
    size_in,
    without_size,
)

pytest.importorskip("ultralytics")


def test_the_package_is_found_without_importing_it():
    import ultralytics

    engine = located()
    assert engine.root == Path(ultralytics.__file__).parent and engine.version == ultralytics.__version__
    assert engine.module_name("nn.tasks") == "ultralytics.nn.tasks"
    assert engine.relative_name("ultralytics.nn.tasks") == "nn.tasks" and engine.relative_name("yolov5") is None
    assert names_ultralytics("ultralytics") and names_ultralytics(ultralytics) and not names_ultralytics(yaml)


def test_every_yaml_that_ultralytics_ships_has_its_form():
    files = [*(located().root / "cfg/models").rglob("*.yaml"), *(models_dir() / "ultralytics").glob("*.yaml")]
    assert len(files) > 40
    assert [file.name for file in files if not is_cfg_of_ultralytics(yaml.safe_load(file.read_text()))] == []


def test_no_yaml_for_yolov5_has_it(package_root):
    files = [*(models_dir() / name for name in SHIPPED), *(package_root / "models").glob("yolov5*.yaml")]
    assert len(files) > 20
    assert [file.name for file in files if is_cfg_of_ultralytics(yaml.safe_load(file.read_text()))] == []


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"scales": {}}, True),
        ({"backbone": [], "head": [[[1], 1, "Detect", ["nc"]]]}, True),
        ({"backbone": [], "head": [[[1], 1, "Detect", ["nc", "anchors"]]]}, False),  # its anchors were forgotten
        ({"backbone": [], "head": [], "anchors": 3}, False),
        ({"path": "x", "train": "images"}, False),
        (None, False),
        ([1], False),
    ],
)
def test_the_form(content, expected):
    assert is_cfg_of_ultralytics(content) is expected


def test_sizes_in_names():
    assert [size_in(name) for name in ("yolo11n-ema.yaml", "a/yolov8x.yaml", "yolo26-p2.yaml", "rtdetr-l.yaml")] == [
        *("n", "x", "", "")
    ]
    assert without_size("yolo26m-p2.yaml") == "yolo26-p2.yaml" and without_size("yolov9c.yaml") == "yolov9c.yaml"


def test_yamls_are_found_by_their_names(own_folder):
    engine = located()
    assert (
        find_cfg("yolo11n-ema.yaml", engine)
        == shipped_cfg("yolo11-ema.yaml")
        == models_dir() / "ultralytics/yolo11-ema.yaml"
    )
    assert find_cfg("yolo12s.yaml", engine) == engine.root / "cfg/models/12/yolo12.yaml"
    assert find_cfg("yolov9c.yaml", engine) == engine.root / "cfg/models/v9/yolov9c.yaml"
    assert find_cfg("nothing.yaml", engine) is None and find_cfg("12/yolo12.yaml", engine) is None
    Path("yolo12.yaml").write_text("scales: {}\n")
    assert find_cfg("yolo12n.yaml", engine) == Path("yolo12.yaml")
    Path("yolo12n.yaml").write_text("scales: {}\n")
    assert find_cfg("yolo12n.yaml", engine) == Path("yolo12n.yaml")
