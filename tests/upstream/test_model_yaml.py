"""Which YOLO the name of a model YAML belongs to."""

from __future__ import annotations

from pathlib import Path

import pytest

from yolov5_ema.cfgs.generator import format_cfg
from yolov5_ema.errors import ConfigError
from yolov5_ema.resources import models_dir
from yolov5_ema.upstream.model_yaml import cfg_of_ultralytics
from yolov5_ema.upstream.ultralytics import located

pytest.importorskip("ultralytics")


def test_names(own_folder):
    root = located().root / "cfg/models"
    assert cfg_of_ultralytics("yolo26n-ema.yaml") == models_dir() / "ultralytics/yolo26-ema.yaml"
    assert cfg_of_ultralytics("yolo11s.yaml") == root / "11/yolo11.yaml"
    for name in ("yolov5n-ema.yaml", "nowhere.yaml", "", "."):
        assert cfg_of_ultralytics(name) is None


def test_a_name_of_both_means_yolov5s_unless_asked(own_folder):
    assert cfg_of_ultralytics("yolov3.yaml") is None and cfg_of_ultralytics("yolov3.yaml", "yolov5") is None
    assert cfg_of_ultralytics("yolov3.yaml", "ultralytics") == located().root / "cfg/models/v3/yolov3.yaml"


def test_own_files_are_recognised_by_their_form(own_folder):
    Path("a.yaml").write_text("scales: {n: [1, 1, 1024]}\n")
    Path("b.yaml").write_text(format_cfg(size="n"))
    Path("c").mkdir()
    assert cfg_of_ultralytics("a.yaml") == Path("a.yaml")
    assert cfg_of_ultralytics("b.yaml") is None and cfg_of_ultralytics("c") is None


def test_what_is_missing_is_named(own_folder):
    with pytest.raises(ConfigError, match=r"yolo12q.yaml: there is no such size; .* one of n, s, m, l, x"):
        cfg_of_ultralytics("yolo12q.yaml")
    with pytest.raises(ConfigError, match=r"nowhere.yaml: no such file here, among the YAMLs"):
        cfg_of_ultralytics("nowhere.yaml", "ultralytics")
