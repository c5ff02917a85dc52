"""What blocks cost in a model: counts by closed forms, and the table, JSON and picture of ``blocks --at``."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest
import torch
from offline_ultralytics import offline
from torch import nn

import yolov5_ema
from yolov5_ema.cfgs.generator import format_cfg
from yolov5_ema.cli.main import main
from yolov5_ema.comparing.block_costs import block_costs


@pytest.fixture(autouse=True)
def plain(own_folder):
    Path("plain.yaml").write_text(format_cfg(size="n", block="none", nc=3))


def test_counts_and_memory():
    with yolov5_ema.installed():
        none, ema, se, sa = block_costs(
            "plain.yaml", ["EMA", "SE", "SA"], of_ultralytics=False, imgsz=64, device=torch.device("cpu"), rounds=2
        )
    # behind the C3 with 128 and 256 channels, at strides 16 and 32
    assert none.parameters == 1_767_976 and none.ratio == 1 and none.alone_ms is None
    assert ema.parameters == sum(10 * k * k + 4 * k for k in (4, 8))
    assert se.parameters == sum(2 * c * c // 16 for c in (128, 256))
    # a multiply-add counts as two; SE's layers see one pixel, and so do no others
    assert se.gflops == pytest.approx(2 * se.parameters / 1e9)
    # of one image EMA keeps its input, in float32, and a few numbers for each row, column and group
    assert 1 <= ema.kept_mib / (4 * (128 * 4 * 4 + 256 * 2 * 2) / 2**20) < 1.5
    assert sa.parameters == 3 * (128 + 256) // 64 and sa.gflops == 0
    low, high = ema.detector_quartiles_ms
    assert 0 < low <= ema.detector_ms <= high and ema.alone_ms > 0 and "2305.13563" in ema.paper


def test_a_block_that_does_not_fit_says_why():
    Path("thin.yaml").write_text(
        format_cfg(size="n", block="none", nc=3).replace("width_multiple: 0.25", "width_multiple: 0.125")
    )
    with yolov5_ema.installed():
        _, sa = block_costs("thin.yaml", ["SA"], of_ultralytics=False, imgsz=64, device=torch.device("cpu"), rounds=2)
    assert sa.parameters is None and "SA" in sa.reason and "64" in sa.reason


def test_the_command(capsys):
    assert main(["blocks", "EC*", "--at", "plain.yaml", "--imgsz", "60", "--rounds", "2", "--picture", "p.png"]) == 0
    title, table, engines, support, how = capsys.readouterr().out.split("\n\n")
    assert title.startswith("plain at 64 pixels, blocks behind the last two stages of the backbone")
    assert [line.split()[0] for line in table.splitlines()] == ["block", "none", "ECA"]
    assert table.splitlines()[2].split()[1] == "10" and "arXiv 1910.03151" in table
    assert (cv2.imread("p.png") == 255).mean() > 0.5
    assert engines == "exported from YOLOv5 6.0.7, YOLOv5 7.0.14, as tested:"
    assert "tested behind the last two stages of the backbone" in how
    heads, row = support.splitlines()
    assert row.split()[0] == "ECA" and all(f"  {name} " in heads for name in ("TorchScript", "OpenVINO", "OpenCV"))


class Mine(nn.Identity):
    def __init__(self, channels):
        super().__init__()


def test_a_block_of_the_users_was_not_tested(capsys):
    yolov5_ema.register_block(Mine)
    try:
        assert main(["blocks", "Mine", "--at", "plain.yaml", "--imgsz", "64", "--rounds", "2"]) == 0
    finally:
        yolov5_ema.blocks.unregister_block("Mine")
    assert capsys.readouterr().out.endswith("\n\nexported models with Mine were not tested\n")


def test_a_model_of_ultralytics(tmp_path, capsys):
    with offline(tmp_path):
        capsys.readouterr()
        assert main(["blocks", "CBAM", "--at", "yolo11n.yaml", "--imgsz", "64", "--rounds", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["model"], found["imgsz"]) == ("yolo11n.yaml", 64) and found["machine"]["threads"] >= 1
    none, cbam = found["blocks"]
    assert found["rounds"] == 2 and found["software"]["ultralytics"] and "opset 12" in found["support_tested"]
    assert none["support"] == {} and set(cbam["support"]) > {"YOLOv5 6.0.7", "YOLOv5 7.0.14"}
    # our CBAM, not ultralytics' own, behind 128 and 256 channels
    assert none["parameters"] == 2_624_080 and cbam["parameters"] == sum(
        2 * c * c // 16 + c // 16 + c + 98 + 2 for c in (128, 256)
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--picture", "p.png"], "--picture needs --at CFG"),
        (["--imgsz", "64"], "--imgsz needs --at CFG"),
        (["--at", "plain.yaml", "--rounds", "1"], "--rounds must be at least 2"),
        (["--at", "plain.yaml", "--imgsz", "0"], "--imgsz 0"),
        (["--at", "plain.yaml", "--picture", "no/p.png"], "there is no folder no"),
        (["--at", "gone.yaml"], "--at gone.yaml: no such file here"),
        (["ZZ", "--at", "plain.yaml"], "no block matches 'ZZ'; the blocks are A2, "),
    ],
)
def test_mistakes(flags, said, capsys):
    assert main(["blocks", *flags]) == 2
    assert said in capsys.readouterr().err
