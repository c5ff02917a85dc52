"""Rows inserted without renumbering build and train; `info`, `train` and `cfg` warn that this looks like a mistake."""

from __future__ import annotations

import copy
import json

import pytest
import yaml

from yolov5_ema.cfgs.generator import SHIPPED, build_cfg
from yolov5_ema.cfgs.graph import Graph
from yolov5_ema.cfgs.oddities import likely_mistakes
from yolov5_ema.cli import main

PLAIN = build_cfg(size="n", block="none", nc=3)


def stale(section, *places):
    """Rows of EMA inserted at places of a section, without changing any row number."""
    cfg = copy.deepcopy(PLAIN)
    for place in places:
        cfg[section].insert(place, [-1, 1, "EMA", [{"groups": 8}]])
    return cfg


def found(cfg):
    return likely_mistakes(Graph.from_cfg(cfg))


def test_blocks_in_the_head_that_only_detect_should_read():
    said = found(stale("head", 8, 12, 16))
    assert said == [
        "row 26 (EMA) is read by nothing",
        "Detect reads row 20 (Concat): maps that no layer has joined yet",
        "Detect reads row 23 (Conv), which only halves the size of the maps before it",
    ]


def test_a_block_in_the_backbone():
    said = found(stale("backbone", 9))
    assert said[0] == "row 24 (C3) is read by nothing"
    assert [line for line in said if "Concat" in line] == said[1:] and len(said) == 4


def test_levels_of_one_stride_and_what_is_half_way():
    cfg = copy.deepcopy(PLAIN)
    cfg["head"][-1][0] = [17, 17, 23]
    assert "Detect reads strides 8, 8, 32: each level needs its own stride, from fine to coarse" in found(cfg)
    cfg["head"][-1][0] = [15, 14, 23]
    said = found(cfg)
    assert any("row 15 (nn.Upsample): maps that are only enlarged" in line for line in said)
    assert any("row 14 (Conv), which only narrows" in line for line in said)
    assert "row 17 (C3) is read by nothing" not in said and "row 20 (C3) is read by nothing" not in said


@pytest.mark.parametrize("name", SHIPPED)
def test_what_ships_is_not_odd(name):
    assert likely_mistakes(SHIPPED[name].graph()) == []


def test_yolov5s_own_yamls_are_not_odd(package_root):
    seen = 0
    for file in sorted((package_root / "models").rglob("*.yaml")):
        try:
            content = yaml.safe_load(file.read_text(errors="ignore"))
        except yaml.YAMLError:
            continue
        if "backbone" in content:
            assert found(content) == [], file
            seen += 1
    assert seen >= 20


def test_info_cfg_and_train_warn(own_folder, tiny_set, capsys):
    (own_folder / "stale.yaml").write_text(yaml.safe_dump(stale("head", 8, 12, 16)))
    assert main.main(["info", "stale.yaml", "--json", "--img", "64"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["warnings"] == found(stale("head", 8, 12, 16))
    assert "warning: stale.yaml: row 26 (EMA) is read by nothing" in captured.err
    assert "without renumbering" in captured.err
    assert main.main(["cfg", "--base", "stale.yaml", "--block", "none", "-o", "new.yaml"]) == 0
    assert "warning: new.yaml: row 26 (EMA) is read by nothing" in capsys.readouterr().err
    flags = ["--data", str(tiny_set), "--cfg", "stale.yaml", "--weights", "missing.pt", "--img", "64"]
    assert main.main(["train", *flags]) == 2  # stops at the weights, which are read after the cfg
    assert "warning: stale.yaml: Detect reads row 20 (Concat)" in capsys.readouterr().err
    assert main.main(["info", "yolov5n-ema.yaml", "--img", "64"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert any(line.split()[:4] == ["26", "[19,", "22,", "25]"] for line in captured.out.splitlines())
