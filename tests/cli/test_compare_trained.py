"""``yolov5-ema compare``: what it trains, skips and resumes, and the progress that it shows."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from played_comparisons import command, result

import yolov5_ema
from yolov5_ema.cli import compare
from yolov5_ema.cli.main import main
from yolov5_ema.comparing.runs import Runner
from yolov5_ema.settings import read

pytestmark = pytest.mark.usefixtures("two_cfgs")


def test_flags_reach_every_training(tiny_set, played):
    assert main(command(tiny_set, "--seeds", 2, "--hyp", "hyp.demo.yaml", "--workers", 1, "--quad")) == 0
    assert played.trained() == ["plain/seed0", "yolov5n-ema/seed0", "plain/seed1", "yolov5n-ema/seed1"]
    cut = [call.index("--cfg") for call in played.calls]
    shared = {tuple(call[:place]) for call, place in zip(played.calls, cut)}
    (flags,) = shared
    assert flags[:3] == ("train", "--weights", "") and "--quad" in flags
    assert flags[-1] == str(yolov5_ema.resources.find_shipped("hyp.demo.yaml"))
    assert {call[place + 1] for call, place in zip(played.calls, cut)} == {
        str(Path("plain.yaml").resolve()),
        str(yolov5_ema.resources.find_shipped("yolov5n-ema.yaml")),
    }


def test_the_same_command_again_trains_nothing(tiny_set, played, capsys):
    assert main(command(tiny_set, "--seeds", 2)) == 0
    before = result()
    played.calls.clear()
    assert main(command(tiny_set, "--seeds", 2)) == 0
    assert played.calls == [] and "4 of 4 runs are finished" in capsys.readouterr().out
    assert result()["models"] == before["models"]


def test_models_and_seeds_are_added(tiny_set, played):
    assert main(command(tiny_set, "--seeds", 2)) == 0
    played.calls.clear()
    assert main(command(tiny_set, "--seeds", 3, cfgs=("plain.yaml", "yolov5n-ema.yaml", "other.yaml"))) == 0
    assert played.trained() == [
        "other/seed0",
        "other/seed1",
        "plain/seed2",
        "yolov5n-ema/seed2",
        "other/seed2",
    ]
    recipe = json.loads(Path("runs/compare/exp/recipe.json").read_text())
    assert set(recipe["cfgs"]) == {"plain", "yolov5n-ema", "other"}


def test_a_plan_says_how_many_seeds_are_needed(tiny_set, played, capsys):
    assert main(command(tiny_set)) == 0
    for file in Path("runs/compare/exp").glob("*/seed*.json"):
        record = json.loads(file.read_text())
        record["attempts"][0]["seconds"] = 1800.0
        file.write_text(json.dumps(record))
    capsys.readouterr()
    played.calls.clear()
    assert main(command(tiny_set, "--plan", "--effect", "0.02", "0.01")) == 0
    out = capsys.readouterr().out
    rows = [line.split("  ") for line in out.splitlines() if line.startswith("yolov5n-ema")]
    # differences 0.01, 0.03, 0.01 of mAP50: sd 0.01 * 2 / sqrt(3), so 0.02 is 1.73 of them
    assert [[cell.strip() for cell in row if cell] for row in rows] == [
        ["yolov5n-ema", "mAP50", "3", "0.0115 (0.0060 to 0.0726)", "5", "13"],
        ["yolov5n-ema", "mAP50-95", "3", "0.0058 (0.0030 to 0.0363)", "3", "5"],
    ]
    assert "0.02 in every row: 5 seeds, 2 more, about 2:00:00" in out and "13 seeds, 10 more, about 10:00:00" in out
    assert played.calls == []
    Path("runs/compare/exp/plain/seed0.json").unlink()
    Path("runs/compare/exp/plain/seed1.json").unlink()
    assert main(command(tiny_set, "--plan")) == 2
    assert "--plan needs two finished seeds of yolov5n-ema and of plain" in capsys.readouterr().err


def test_seeds_are_added_until_the_interval_is_narrow(tiny_set, played, capsys):
    wide = ("--until-width", "0.02")
    assert main(command(tiny_set, *wide, "--hours", "1e-9")) == 0
    out = capsys.readouterr().out
    # sd 0.01 / sqrt(3) over the first three, t(0.975, 2) = 4.302653: (2 * 4.302653 * 0.0057735 / 0.02)^2 = 6.17
    assert "0.02 wide needs 7 seeds, by the spread over the first 3; the 4 that are left" in out
    assert "--hours is over after 3 of 7 seeds" in out and result()["seeds"] == [0, 1, 2]
    assert result()["design"] == {"pilot": 3, "width": 0.02} and "Stein 1945" in out

    assert main(command(tiny_set, *wide)) == 0
    assert len(played.calls) == 14 and result()["seeds"] == list(range(7))
    difference = result()["models"]["yolov5n-ema"]["differences"]["map50_95"]
    # 0.005, 0.015, 0.005, 0.005, 0.015, 0.005, 0.005
    assert difference["mean"] == pytest.approx(0.055 / 7) and difference["n"] == 7
    half = 4.302653 * 0.01 / math.sqrt(3) / math.sqrt(7)
    assert difference["high"] - difference["mean"] == pytest.approx(half, rel=1e-6) and 2 * half < 0.02

    # the design and its seeds stay, whatever is asked for later
    for flags in (wide, (), ("--no-train",)):
        assert main(command(tiny_set, *flags)) == 0
        assert result()["models"]["yolov5n-ema"]["differences"]["map50_95"] == difference
    assert main(command(tiny_set, "--until-width", "0.01")) == 2
    assert "begun with --until-width 0.02" in capsys.readouterr().err


def test_interrupted_and_resumed(tiny_set, played, capsys):
    played.fail["plain", 1] = "Ctrl-C"
    assert main(command(tiny_set, "--seeds", 2)) == 130
    assert "Run the same command again to continue" in capsys.readouterr().err
    assert json.loads(Path("runs/compare/exp/plain/seed1.json").read_text())["status"] == "training"
    played.fail.clear()
    played.calls.clear()
    assert main(command(tiny_set, "--seeds", 2)) == 0
    assert played.trained() == ["resume plain/seed1", "yolov5n-ema/seed1"]
    assert "plain, seed 1 was resumed at epoch 1" in capsys.readouterr().out
    attempts = next(run for run in result()["runs"] if (run["cfg"], run["seed"]) == ("plain", 1))["attempts"]
    assert [attempt["from_epoch"] for attempt in attempts] == [0, 1]


def test_a_failure_is_shown_and_the_others_go_on(tiny_set, played, capsys):
    played.fail["yolov5n-ema", 0] = "crash"
    assert main(command(tiny_set)) == 1
    out = capsys.readouterr().out
    assert "yolov5n-ema, seed 0: FAILED: train ended with exit code 1" in out and "    crash\n" in out
    assert "2 of 3" in out and "MISSING: yolov5n-ema, seed 0: train ended with exit code 1" in out
    difference = result()["models"]["yolov5n-ema"]["differences"]["map50"]
    assert difference["n"] == 2 and difference["mean"] == pytest.approx(0.02)  # seeds 1 and 2: 0.03, 0.01
    played.fail.clear()
    played.calls.clear()
    assert main(command(tiny_set, "--no-train")) == 1 and not played.calls
    assert main(command(tiny_set)) == 0
    assert played.trained() == ["resume yolov5n-ema/seed0"]


def test_two_trainings_at_the_same_time(tiny_set, played, capsys):
    assert main(command(tiny_set, "--jobs", 2)) == 0
    assert sorted(played.trained()) == [f"{name}/seed{seed}" for name in ("plain", "yolov5n-ema") for seed in range(3)]
    assert result()["models"]["yolov5n-ema"]["differences"]["map50"]["mean"] == pytest.approx(0.05 / 3)
    assert {f"[{number}/6] " for number in range(1, 7)} <= set(re.findall(r"\[\d/6\] ", capsys.readouterr().out))
    played.fail["plain", 3] = "Ctrl-C"
    assert main(command(tiny_set, "--jobs", 2, "--seeds", 6)) == 130
    assert "Run the same command again to continue" in capsys.readouterr().err
    assert len(played.trained()) < 12  # the last ones were not begun
    played.fail.clear()
    assert main(command(tiny_set, "--jobs", 2, "--seeds", 6)) == 0
    assert "resume plain/seed3" in played.trained()


def test_a_loss_that_is_no_number_is_a_failure(tiny_set, played, capsys):
    played.fail["yolov5n-ema", 0] = "nan"
    assert main(command(tiny_set, "--seeds", 1)) == 1
    out = capsys.readouterr().out
    assert "its loss is not finite from epoch 0 on" in out and "no pair of figures" in out
    assert result()["models"]["yolov5n-ema"]["metrics"]["map50"] is None
    played.calls.clear()
    assert main(command(tiny_set, "--seeds", 1)) == 1  # it would only diverge again
    assert played.calls == []


def test_progress_tells_what_is_left(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(compare.time, "monotonic", lambda: clock[0])
    progress = compare._Progress(["a", "b", "c"], epochs=10)
    progress.start("a", 0)
    clock[0] = 59.0
    progress.show("a", 1)
    assert capsys.readouterr().out == "[1/3] a: training\n"
    clock[0] = 60.0
    progress.show("a", 2)  # 30 s for each epoch, 8 + 20 epochs left
    assert capsys.readouterr().out == "[1/3] a: epoch 2/10, about 0:14:00 left\n"
    clock[0] = 300.0
    progress.show("a", 10)
    progress.end("a", "a: done")
    progress.start("b", 6)  # resumed: 300 s for 10 epochs so far
    assert "[2/3] b: training from epoch 6\n" in capsys.readouterr().out
    clock[0] = 360.0
    progress.show("b", 8)  # 360 s for 12 epochs; 2 + 10 left
    assert capsys.readouterr().out == "[2/3] b: epoch 8/10, about 0:06:00 left\n"
    progress.end("b", "b: done")
    progress.start("c", 10)
    assert capsys.readouterr().out.endswith("[3/3] c: scoring\n")


def test_progress_of_runs_at_the_same_time(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(compare.time, "monotonic", lambda: clock[0])
    progress = compare._Progress(["a", "b", "c"], epochs=10)
    progress.start("a", 0)
    progress.start("b", 5)
    clock[0] = 60.0
    progress.show("a", 3)
    capsys.readouterr()
    progress.show("b", 8)  # 60 s for 3 + 3 epochs; 7 + 2 + 10 left
    assert capsys.readouterr().out == "[2/3] b: epoch 8/10, about 0:03:10 left\n"
    progress.end("b", "b: done")
    progress.start("c", 0)
    clock[0] = 120.0
    progress.show("a", 9)  # 120 s for 9 + 3 epochs; 1 + 10 left
    assert capsys.readouterr().out.endswith("[1/3] a: epoch 9/10, about 0:01:50 left\n")


@pytest.mark.parametrize("how", ["flag", "environment"])
def test_identity_blocks_are_part_of_the_recipe(tiny_set, played, monkeypatch, capsys, weights, how):
    weights("a.pt", block="none")
    inits = []
    monkeypatch.setattr(
        Runner, "_call", lambda *args, **kwargs: (inits.append(read("init")), played(*args, **kwargs))[1]
    )
    plain = command(tiny_set, "--seeds", 1, "--weights", "a.pt")
    if how == "environment":
        monkeypatch.setenv("YOLOV5_EMA_INIT", "identity")
    assert main([*plain, "--init", "identity"] if how == "flag" else plain) == 0
    assert set(inits) == {"identity"}
    monkeypatch.delenv("YOLOV5_EMA_INIT", raising=False)
    assert main(plain) == 2
    assert "\n  init: 'identity' there, none now\n" in capsys.readouterr().err


def test_a_baseline_without_blocks_is_compared_with_identity_blocks(tiny_set, played, weights):
    weights("a.pt", block="none")
    assert main(command(tiny_set, "--seeds", 1, "--weights", "a.pt", "--init", "identity")) == 0
    flags = {Path(call[call.index("--cfg") + 1]).stem: call[-2:] for call in played.calls}
    assert flags["plain"] == ["--init", "none"]
    assert "--init" not in flags["yolov5n-ema"]
