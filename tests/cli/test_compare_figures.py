"""``yolov5-ema compare``: the figures, tables and notes of its report."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import cv2
import pytest
import torch
from played_comparisons import DRAW, command, result

from yolov5_ema.cli.main import main
from yolov5_ema.comparing import picture as comparison_picture

pytestmark = pytest.mark.usefixtures("two_cfgs")


def test_figures_tables_and_picture(tiny_set, played, capsys, monkeypatch):
    monkeypatch.setattr(comparison_picture, "draw", DRAW)
    assert main(command(tiny_set, "--latency-rounds", 3)) == 0
    out = capsys.readouterr().out
    found = result()
    plain, ema = found["models"]["plain"], found["models"]["yolov5n-ema"]
    assert plain["metrics"]["map50"]["mean"] == pytest.approx(0.52)
    assert plain["metrics"]["map50"]["sd"] == pytest.approx(0.02)
    assert plain["metrics"]["map50"]["values"] == {"0": 0.50, "1": 0.52, "2": 0.54}
    # differences 0.01, 0.03, 0.01: mean 5/300, sd 0.02 / sqrt(3), half width 4.302653 * sd / sqrt(3)
    difference = ema["differences"]["map50"]
    assert difference["mean"] == pytest.approx(0.05 / 3) and difference["n"] == 3
    assert difference["low"] == pytest.approx(0.05 / 3 - 4.302653 * 0.02 / 3, abs=1e-6)
    assert difference["verdict"] == "no difference shown"
    assert ema["differences"]["map50_95"]["mean"] == pytest.approx(0.05 / 6)
    assert (plain["parameters"], ema["parameters"]) == (1767976, 1768824)
    assert 0 < plain["gflops"] < ema["gflops"] < 0.1
    assert plain["latency_ms"]["ratio"] == 1 and 0 < ema["latency_ms"]["median"] < 60000
    assert found["level"] == 0.95 and found["recipe"]["options"]["epochs"] == 2
    assert found["software"]["torch"] == torch.__version__ and found["machine"]["threads"] >= 1
    assert [(run["cfg"], run["seed"], run["status"]) for run in found["runs"][:3]] == [
        ("plain", 0, "finished"),
        ("yolov5n-ema", 0, "finished"),
        ("plain", 1, "finished"),
    ]
    for text in (out, Path("runs/compare/exp/comparison.md").read_text()):
        assert "+0.0167" in text and "-0.0120 to +0.0454" in text and "no difference shown" in text
        assert "0.5200 ± 0.0200" in text and "0.5000 to 0.5400" in text and "test split (4 images)" in text
    rows = list(csv.DictReader(Path("runs/compare/exp/comparison.csv").open()))
    assert [(row["model"], row["metric"], row["verdict"]) for row in rows] == [
        ("plain", "mAP50", "baseline"),
        ("plain", "mAP50-95", "baseline"),
        ("yolov5n-ema", "mAP50", "no difference shown"),
        ("yolov5n-ema", "mAP50-95", "no difference shown"),
    ]
    assert float(rows[2]["low"]) == pytest.approx(difference["low"], abs=1e-6)
    picture = cv2.imread("runs/compare/exp/comparison.png")
    assert picture.shape[1] == 1800 and 0.5 < (picture == 255).mean() < 0.99


def test_several_models_widen_the_intervals(tiny_set, played, capsys):
    cfgs = ("plain.yaml", "yolov5n-ema.yaml", "other.yaml")
    assert main(command(tiny_set, "--baseline", "yolov5n-ema.yaml", cfgs=cfgs)) == 0
    found = result()
    assert found["baseline"] == "yolov5n-ema" and found["level"] == pytest.approx(0.975)
    difference = found["models"]["other"]["differences"]["map50"]  # -0.11, -0.13, -0.10
    sd = math.sqrt(7 / 3) / 100
    half = 6.205347 * sd / math.sqrt(3)  # t(0.9875, 2)
    assert difference["high"] == pytest.approx(-0.34 / 3 + half, abs=1e-6)
    assert difference["verdict"] == "worse"
    assert "Bonferroni-corrected for 2 models" in capsys.readouterr().out


def test_one_seed_gives_no_verdict(tiny_set, played, capsys):
    assert main(command(tiny_set, "--seeds", 1)) == 0
    out = capsys.readouterr().out
    assert out.count("one seed: no interval") == 2 and "One seed shows no spread" in out
    difference = result()["models"]["yolov5n-ema"]["differences"]["map50"]
    assert difference["mean"] == pytest.approx(0.01) and difference["low"] is None


def test_the_split_that_is_reported_is_named(tiny_set, played, capsys):
    assert main(command(tiny_set, "--seeds", 1)) == 0
    assert "best.pt was chosen on val; the figures are from test" in capsys.readouterr().out
    assert main(command(tiny_set, "--seeds", 1, "--task", "val", "--name", "val")) == 0
    assert "chosen on the split that is reported (val)" in capsys.readouterr().out
    assert main(command(tiny_set, "--seeds", 1, "--noval", "--name", "noval")) == 0
    assert "best.pt is from the last epoch" in capsys.readouterr().out


def test_figures_of_the_last_epochs(tiny_set, played, capsys):
    assert main(command(tiny_set, "--last", 2)) == 0
    out = capsys.readouterr().out
    assert "figures from the mean of the last 2 epochs on the val split" in out
    assert "Figures: the mean of the last 2 epochs, by the val that each training runs" in out
    assert "figures on the val split (4 images), the mean of the last 2 epochs" in out and "chosen on" not in out
    found = result()
    values = found["models"]["plain"]["metrics"]["map50"]["values"]
    assert values == pytest.approx({"0": 0.51, "1": 0.53, "2": 0.55})  # of epoch 0 and of epoch 1, which is 0.02 higher
    assert found["models"]["plain"]["metrics"]["map50_95"]["values"]["0"] == 0.25
    assert found["figures_from"] == "the mean of the last 2 epochs" and found["recipe"]["last"] == 2
    rows = list(csv.DictReader(Path("runs/compare/exp/comparison.csv").open()))
    assert {row["figures_from"] for row in rows} == {"the mean of the last 2 epochs"}

    # the number belongs to the recipe
    for flags, now in ((("--last", 1), "1"), ((), "none")):
        assert main(command(tiny_set, *flags, "--task", "val")) == 2
        assert f"\n  --last: 2 there, {now} now\n" in capsys.readouterr().err


def test_different_starts_are_told(tiny_set, played, capsys):
    torch.save({"epoch": -1}, "a.pt")
    played.fail["yolov5n-ema", 0] = "Transferred 1/9 items from a.pt"
    assert main(command(tiny_set, "--seeds", 1, "--weights", "a.pt")) == 0
    assert (
        "--weights gave the models different starts (weights copied: plain 3 of 9, yolov5n-ema 1 of 9): layers that "
        "are missing from the checkpoint, such as an inserted block, start with fresh weights.\n"
    ) in capsys.readouterr().out
    assert all(str(Path("a.pt").resolve()) in call for call in played.calls)


@pytest.mark.parametrize(
    ("of_ema", "begins"),
    [
        ("3/9", "--weights: "),
        ("1/9", "--weights gave the models different starts (weights copied: plain 3 of 9, yolov5n-ema 1 of 9): "),
    ],
)
def test_starts_as_identities_are_told(tiny_set, played, weights, capsys, of_ema, begins):
    weights("a.pt", block="none")
    played.fail["yolov5n-ema", 0] = f"Transferred {of_ema} items from a.pt"
    assert main(command(tiny_set, "--seeds", 1, "--weights", "a.pt", "--init", "identity")) == 0
    note = (
        f"{begins}attention blocks of YOLOv5's models that are missing from the checkpoint change nothing at first "
        "(--init identity); all other layers that are missing from it start with fresh weights.\n"
    )
    assert f"\n{note}" in capsys.readouterr().out
    assert f"\n- {note}" in Path("runs/compare/exp/comparison.md").read_text()
