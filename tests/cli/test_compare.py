"""``yolov5-ema compare``: what it refuses, trains, skips, resumes, computes and writes.

Most tests use simulated trainings: they write the files of a training, with figures from a table.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest
import torch
import yaml
from conftest import REPOSITORY, SMALL_YOLO, run_cli, small_cfg
from offline_ultralytics import environment

import yolov5_ema
from yolov5_ema.cfgs.dry_run import quiet
from yolov5_ema.cfgs.generator import build_cfg, format_cfg
from yolov5_ema.checkpoints.loading import save_checkpoint
from yolov5_ema.cli import compare
from yolov5_ema.cli.main import main
from yolov5_ema.comparing import by_ultralytics, by_yolov5, plan
from yolov5_ema.comparing import picture as comparison_picture
from yolov5_ema.comparing.runs import Runner
from yolov5_ema.reporting.epochs import read_epochs
from yolov5_ema.resources import find_shipped
from yolov5_ema.scripts import preflight
from yolov5_ema.settings import read

CHECK_MODEL, MODEL_INFO, DRAW = preflight.check_model, by_yolov5.model_info, comparison_picture.draw
YOLO_INFO, CHECK_YOLO = by_ultralytics.ultralytics_info, by_ultralytics.UltralyticsTrainer.check
MAP50 = {
    **{"plain": (0.50, 0.52, 0.54), "yolov5n-ema": (0.51, 0.55, 0.55), "other": (0.40, 0.42, 0.45)},
    **{"small": (0.60, 0.62, 0.65), "small26": (0.61, 0.64, 0.65)},
}


@pytest.fixture(autouse=True)
def two_cfgs(own_folder):
    """Each test runs in a folder with two cfgs."""
    for name in ("plain", "other"):
        Path(f"{name}.yaml").write_text(format_cfg(size="n", block="none", nc=3))


@pytest.fixture(scope="module", autouse=True)
def shim():
    with yolov5_ema.installed():
        yield


COLUMNS = (
    *("epoch", "train/box_loss", "train/obj_loss", "train/cls_loss"),
    *("metrics/precision", "metrics/recall", "metrics/mAP_0.5", "metrics/mAP_0.5:0.95"),
)


class Played:
    """Simulated trainings: `calls` lists the command lines, `fail` decides what a run with a name and a seed does."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.fail: dict[tuple[str, int], str] = {}

    def __call__(self, runner: Runner, run: object, arguments: list[str], watched: bool = False) -> int:
        if arguments[0] == "run":
            output = Path(arguments[arguments.index("--output") + 1])
            map50 = MAP50[run.cfg][run.seed % 3]
            output.write_text(json.dumps({"precision": 0.1, "recall": 0.2, "map50": map50, "map50_95": map50 / 2}))
            return 0
        if arguments[0] == "evaluate":
            write_evaluation(Path(arguments[arguments.index("--json") + 1]), MAP50[run.cfg][run.seed % 3])
            return 0
        self.calls.append(arguments)
        how = self.fail.get((run.cfg, run.seed), "")
        run.log.write_bytes(b"epoch 1\r" + f"{how or 'Transferred 3/9 items from a.pt'}\n".encode())
        run.best.parent.mkdir(parents=True, exist_ok=True)
        loss = "nan" if how == "nan" else "0.5"
        map50 = MAP50[run.cfg][run.seed % 3]
        rows = "".join(f"{e}, 0.1, {loss}, 0.3, 0.1, 0.2, {map50 + e / 50}, {map50 / 2}\n" for e in range(2))
        (run.folder / "results.csv").write_text(f"{', '.join(COLUMNS)}\n{rows}")
        (run.folder / "hyp.yaml").write_text("lr0: 0.01\nmosaic: 1.0\nanchor_t: 4.0\n")
        torch.save({"epoch": 0 if how else -1}, run.last)
        run.best.touch()
        if how == "Ctrl-C":
            raise KeyboardInterrupt
        return 1 if how == "crash" else 0

    def trained(self) -> list[str]:
        """The model and seed of each call, and whether it was resumed."""
        found = []
        for call in self.calls:
            words = dict(word.split("=", 1) for word in call if "=" in word)
            if "model" in words:
                folder = Path(words["model"]).parent.parent
                begun = f"resume {folder.parent.name}/{folder.name}" if "resume" in words else ""
                found.append(begun or f"{Path(words['project']).name}/{words['name']}")
            elif "--resume" in call:
                folder = Path(call[call.index("--resume") + 1]).parent.parent
                found.append(f"resume {folder.parent.name}/{folder.name}")
            else:
                found.append(f"{Path(call[call.index('--project') + 1]).name}/{call[call.index('--name') + 1]}")
        return found


def write_evaluation(file: Path, map50: float) -> None:
    own = {"P": 0.1, "R": 0.2, "mAP50": map50, "mAP50-95": map50 / 2, "per_class": {"disc": {"labels": 12}}}
    file.write_text(json.dumps({"yolov5": own, "ultralytics": own, "coco": {"AP50": map50, "AP": map50 / 2}}))


@pytest.fixture
def played(monkeypatch):
    """Simulated trainings; models are built once for all tests, and no picture is drawn."""
    trainings = Played()
    monkeypatch.setattr(Runner, "_call", lambda *args, **kwargs: trainings(*args, **kwargs))
    monkeypatch.setattr(preflight, "check_model", by_content(CHECK_MODEL))
    monkeypatch.setattr(by_yolov5, "model_info", by_content(MODEL_INFO))
    monkeypatch.setattr(by_ultralytics.UltralyticsTrainer, "check", checked_once)
    info = by_content(info_of_yolo)
    monkeypatch.setattr(by_ultralytics, "ultralytics_info", lambda name, cfg, *args: info(cfg, *args))
    monkeypatch.setattr(comparison_picture, "draw", lambda *_: None)
    return trainings


BUILT: dict[tuple[object, ...], object] = {}


def by_content(function):
    """A function of a cfg that is called once for each content and set of arguments."""

    def wrapper(cfg, *args):
        key = (function, Path(cfg).read_bytes(), *args)
        if key not in BUILT:
            BUILT[key] = function(cfg, *args)
        return BUILT[key]

    return wrapper


def info_of_yolo(cfg, *args):
    return YOLO_INFO(cfg.name, cfg, *args)


def checked_once(trainer, name, cfg):
    key = (CHECK_YOLO, cfg.read_bytes())
    BUILT[key] = BUILT[key] if key in BUILT else CHECK_YOLO(trainer, name, cfg)


def command(tiny_set, *flags: object, cfgs: tuple[str, ...] = ("plain.yaml", "yolov5n-ema.yaml")) -> list[str]:
    usual = ["--epochs", 2, "--img", 64, "--batch", 4, "--latency-rounds", 0]
    return [str(f) for f in ("compare", "--data", tiny_set, "--cfgs", *cfgs, *usual, *flags)]


def result(name: str = "exp") -> dict:
    return json.loads(Path(f"runs/compare/{name}/comparison.json").read_text())


# --- what is refused ------------------------------------------------------------------------


@pytest.fixture
def refused(capsys, own_folder, played):
    """Run a comparison that must be refused before anything is trained or written; returns its message."""

    def run(argv: list[str]) -> str:
        before = {path: path.stat().st_mtime_ns for path in own_folder.rglob("*") if path.is_file()}
        calls = len(played.calls)
        capsys.readouterr()
        code = main(argv)
        message = capsys.readouterr().err
        assert code == 2 and message.startswith("yolov5-ema: error: "), message
        after = {path: path.stat().st_mtime_ns for path in own_folder.rglob("*") if path.is_file()}
        assert after == before and len(played.calls) == calls
        return message

    return run


@pytest.fixture
def weights(engine, own_folder):
    """A function that writes a checkpoint of yolov5n with a block, at the usual places."""

    def write(name: str, block: str) -> None:
        with quiet():
            model = engine.module("models.yolo").Model(build_cfg(size="n", block=block, nc=3))
        content = {"model": model.half(), "ema": None, "epoch": -1, "optimizer": None}
        save_checkpoint(content, own_folder / name, engine=engine)

    return write


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--seeds", 0], ["--seeds", "at least 1", "not 0"]),
        (["--epochs", 0], ["--epochs", "at least 1", "not 0"]),
        (["--epochs", -3], ["--epochs", "not -3"]),
        (["--baseline", "yolov5s"], ["--baseline yolov5s", "plain, yolov5n-ema"]),
        (["--latency-rounds", 1], ["--latency-rounds"]),
        (["--jobs", 0], ["--jobs must be at least 1, not 0"]),
        (["--name", "a/b"], ["--name", "--project"]),
        (["--name", ".."], ["--name"]),
        (["--cfg", "plain.yaml"], ["--cfg", "--cfgs"]),
        (["--resume"], ["--resume", "same compare command"]),
        (["--seed", "4"], ["--seed", "--seeds N"]),
        (["--evolve=10"], ["--evolve", "one recipe"]),
        (["--hyp", "nowhere.yaml"], ["--hyp nowhere.yaml", "no such file"]),
        (["--weights", "nowhere.pt"], ["weights not found: nowhere.pt"]),
        (["--init", "identity"], ["--init identity", "from scratch there is nothing to keep"]),
        (["--init", "identity", "--weights", ""], ["--init identity", "from scratch there is nothing to keep"]),
        (["--project", "plain.yaml"], ["cannot write", "plain.yaml"]),
        (["--no-train"], ["--no-train", "no comparison in"]),
        (["--plan"], ["--plan", "no comparison in"]),
        (["--effect", "0.1"], ["--effect needs --plan"]),
        (["--plan", "--effect", "0"], ["--effect must be", "not 0"]),
        (["--hours", "1"], ["--hours needs --until-width"]),
        (["--until-width", "0.1", "--hours", "0"], ["--hours must be above 0"]),
        (["--until-width", "1.5"], ["--until-width must be between 0 and 1, not 1.5"]),
        (["--until-width", "0.1", "--plan"], ["leave one out"]),
        (["--last", 0], ["--last must be", "1 to --epochs 2, not 0"]),
        (["--last", 3], ["--last must be", "1 to --epochs 2, not 3"]),
        (["--last", 1, "--task", "test"], ["--last", "leave out --task test"]),
        (["--last", 1, "--noval"], ["--last", "leave out --noval"]),
    ],
)
def test_bad_flags(refused, tiny_set, flags, words):
    message = refused(command(tiny_set, *flags))
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    "cfgs, words",
    [
        (["plain.yaml"], ["at least two", "not 1"]),
        (["plain.yaml", "plain.yaml"], ["plain.yaml twice"]),
        (["plain.yaml", "./plain.yaml"], ["./plain.yaml twice"]),
        (["plain.yaml", "sub/plain.yaml"], ["both called plain", "rename"]),
        (["plain.yaml", "yolov5n-emma.yaml"], ["--cfgs yolov5n-emma.yaml: no such file", "yolov5-ema cfg"]),
        (["plain.yaml", "sub"], ["--cfgs sub: not a model YAML"]),
        (["plain.yaml", ""], ["not a model YAML"]),
        (["plain.yaml", "broken.yaml"], ["broken.yaml, backbone row 7", "EMAA"]),
    ],
)
def test_bad_cfgs(refused, tiny_set, cfgs, words):
    Path("sub").mkdir()
    text = Path("plain.yaml").read_text()
    Path("sub/plain.yaml").write_text(text)
    cfg = yaml.safe_load(text)
    cfg["backbone"][7] = [-1, 1, "EMAA", []]
    Path("broken.yaml").write_text(yaml.safe_dump(cfg))
    message = refused(command(tiny_set, cfgs=tuple(cfgs)))
    assert all(word in message for word in words), message


def test_bad_data(refused, tiny_set):
    assert "no such file" in refused(command("nowhere.yaml"))
    content = yaml.safe_load(tiny_set.read_text())
    del content["test"]
    Path("data.yaml").write_text(yaml.safe_dump(content))
    assert "the key 'test' is missing" in refused(command("data.yaml", "--task", "test"))


def test_a_flag_that_nobody_knows(tiny_set, capsys, played):
    assert main(command(tiny_set, "--no-such-flag", 3)) == 2
    assert "unrecognized arguments: --no-such-flag 3" in capsys.readouterr().err
    assert not played.calls and not Path("runs").exists()


@pytest.mark.parametrize(
    ("of", "cfgs", "message"),
    [
        (
            "none",
            ("plain.yaml", "other.yaml"),
            "--init identity would change nothing: no model of YOLOv5 in --cfgs has an attention block "
            "(plain, other); leave --init out, or name a model with blocks",
        ),
        (
            "EMA",
            ("plain.yaml", "yolov5n-ema.yaml"),
            "--cfgs yolov5n-ema with --weights a.pt: --init identity: no row of the cfg is a fresh attention block: "
            "the weights already hold all of its blocks; leave --init out",
        ),
        (
            "none",
            ("yolov5n-ema.yaml", "simam.yaml"),
            "--cfgs simam with --weights a.pt: --init identity: row 7 (SimAM) is a SimAM, which has no method "
            "zero_gate_() to make its gate a constant; leave --init out, or add the method to the block "
            "(CONTRIBUTING.md)",
        ),
    ],
)
def test_blocks_that_cannot_start_as_identities_are_refused(refused, tiny_set, weights, of, cfgs, message):
    weights("a.pt", block=of)
    Path("simam.yaml").write_text(format_cfg(size="n", block="SimAM", nc=3))
    said = refused(command(tiny_set, "--weights", "a.pt", "--init", "identity", cfgs=cfgs))
    assert said == f"yolov5-ema: error: {message}\n"


def test_blocks_of_ultralytics_do_not_start_as_identities(refused, tiny_set, weights, two_yolos):
    weights("a.pt", block="none")
    flags = ("--weights", "a.pt", "pretrained=False", "--init", "identity")
    message = refused(command(tiny_set, *flags, cfgs=BOTH))  # small.yaml has a block, but is of ultralytics
    assert "no model of YOLOv5 in --cfgs has an attention block (plain)" in message


def test_a_folder_of_something_else(refused, tiny_set):
    Path("runs/compare/exp").mkdir(parents=True)
    Path("runs/compare/exp/letter.txt").write_text("mine")
    assert "does not hold a comparison" in refused(command(tiny_set))


def _write_hyp(lr0: float) -> None:
    shipped = yaml.safe_load(find_shipped("hyp.demo.yaml").read_text())
    Path("my.yaml").write_text(yaml.safe_dump({**shipped, "lr0": lr0}))


def test_a_changed_recipe_is_refused_by_what_differs(refused, tiny_set, played):
    flags = ("--hyp", "my.yaml", "--seeds", 1)
    _write_hyp(0.01)
    assert main(command(tiny_set, *flags)) == 0
    message = refused(command(tiny_set, *flags, "--epochs", 3, "--img", 96, "--quad"))
    for line in ("quad: False there, True now", "epochs: 2 there, 3 now", "imgsz: 64 there, 96 now"):
        assert f"\n  {line}\n" in message
    assert "--name" in message and "lr0" not in message
    _write_hyp(0.02)
    assert "hyp: the content of my.yaml has changed" in refused(command(tiny_set, *flags))
    _write_hyp(0.01)
    Path("plain.yaml").write_text(format_cfg(size="s", block="none", nc=3))
    assert "cfg plain: the content of" in refused(command(tiny_set, *flags))


def test_help_is_quick_and_names_the_way(capsys):
    code = "import sys; from yolov5_ema.cli.main import main; main(['compare', '--help'])"
    guard = f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); {code}"
    done = subprocess.run([sys.executable, "-c", guard], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0 and "--seeds N" in done.stdout and "comparison.json" in done.stdout
    assert done.stdout.endswith("False\n")


# --- figures --------------------------------------------------------------------------------


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


def test_init_is_for_models_of_yolov5(refused, tiny_set):
    pytest.importorskip("ultralytics")
    for name in ("small26.yaml", "other26.yaml"):
        Path(name).write_text(SMALL_YOLO)
    argv = command(tiny_set, "--init", "identity", cfgs=("small26.yaml", "other26.yaml"))
    assert "--init works only with models of YOLOv5" in refused(argv)


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


# --- what is trained, skipped and resumed ---------------------------------------------------


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


# --- with ultralytics -----------------------------------------------------------------------


@pytest.fixture
def two_yolos(ultralytics, own_folder):
    for name in ("small", "small26"):
        Path(f"{name}.yaml").write_text(SMALL_YOLO)


BOTH, OF_ULTRALYTICS = ("plain.yaml", "small.yaml"), ("small.yaml", "small26.yaml")


def test_both_engines_in_one_table(tiny_set, played, two_yolos, capsys, monkeypatch):
    monkeypatch.setattr(comparison_picture, "draw", DRAW)
    flags = ("--seeds", 2, "--latency-rounds", 2, "--device", "cpu", "mosaic=0.5")
    assert main(command(tiny_set, *flags, cfgs=BOTH)) == 0
    assert played.trained() == ["plain/seed0", "small/seed0", "plain/seed1", "small/seed1"]
    of_yolov5, of_ultralytics, *_, last = played.calls
    assert "--epochs" in of_yolov5 and not any("mosaic" in word for word in of_yolov5)
    assert {"epochs=2", "imgsz=64", "batch=4", "device=cpu", "mosaic=0.5", "seed=0"} <= set(of_ultralytics)
    assert "seed=1" in last and f"data={Path('runs/compare/exp/data.yaml').resolve()}" in last
    found = result()
    assert {name: model["engine"] for name, model in found["models"].items()} == {
        **{"plain": "YOLOv5", "small": "ultralytics"}
    }
    assert found["models"]["small"]["differences"]["map50"]["mean"] == pytest.approx(0.10)
    assert set(found["software"]) > {"yolov5", "ultralytics"} and found["recipe"]["protocol"] == "coco"
    assert found["recipe"]["ultralytics"]["options"]["mosaic"] == 0.5 and found["recipe"]["options"]["epochs"] == 2
    out = capsys.readouterr().out
    for words in (
        "plain (YOLOv5, baseline)",
        "small (ultralytics)",
        "by COCO's protocol (mAP50-95 is its AP) on the same 12 objects",
        "YOLOv5 trained plain from scratch; optimizer SGD, lr0 0.01, batch 4, mosaic 1.0; loss: boxes by CIoU",
        "ultralytics trained small from scratch; optimizer auto (and its own lr0), lrf 0.01",
        "mosaic 0.5",
        "Not alike in the two engines",
    ):
        assert words in out, words
    assert cv2.imread("runs/compare/exp/comparison.png").shape[1] == 1800


def test_ultralytics_alone_is_scored_by_its_own_protocol(tiny_set, played, two_yolos, capsys):
    assert main(command(tiny_set, "--seeds", 1, cfgs=OF_ULTRALYTICS)) == 0
    assert result()["recipe"]["protocol"] == "ultralytics" and "yolov5" not in result()["software"]
    out = capsys.readouterr().out
    assert "by ultralytics' own val" in out and "Not alike" not in out and "(ultralytics)" not in out


def test_of_yolov5_alone_the_recipe_has_the_form_that_it_always_had(tiny_set, played):
    assert main(command(tiny_set, "--seeds", 1)) == 0
    recipe = json.loads(Path("runs/compare/exp/recipe.json").read_text())
    assert list(recipe) == ["options", "task", "data", "hyp", "weights", "cfgs", "software"]
    assert set(recipe["software"]) == {"yolov5", "torch", "yolov5_ema"}
    assert not Path("runs/compare/exp/data.yaml").exists() and "engine" not in result()["models"]["plain"]


def test_an_interrupted_training_of_ultralytics_goes_on(tiny_set, played, two_yolos, capsys):
    played.fail["small", 0] = "Ctrl-C"
    assert main(command(tiny_set, "--seeds", 2, cfgs=BOTH)) == 130
    played.fail.clear()
    played.calls.clear()
    assert main(command(tiny_set, "--seeds", 2, cfgs=(*BOTH, "small26.yaml"))) == 0
    assert played.trained() == ["resume small/seed0", "small26/seed0", "plain/seed1", "small/seed1", "small26/seed1"]
    assert "small, seed 0 was resumed at epoch 1" in capsys.readouterr().out


def test_a_model_that_was_scored_on_other_objects_is_a_failure(tiny_set, played, two_yolos, monkeypatch, capsys):
    monkeypatch.setattr(plan, "_objects", lambda *_: 13)
    assert main(command(tiny_set, "--seeds", 1, cfgs=BOTH)) == 1
    assert "val evaluated images with 12 objects, but the test split has 13" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("cfgs", "flags", "words"),
    [
        (BOTH, ["--hyp", "hyp.demo.yaml"], "--hyp hyp.demo.yaml: with a model of ultralytics, train takes --imgsz"),
        (BOTH, ["epochs=3"], "epochs= would hold for ultralytics only: write --epochs"),
        (("plain.yaml", "other.yaml", "lr0=0.1"), [], "lr0=0.1 is an argument of ultralytics, but none of the --cfgs"),
        (BOTH, ["--last", "1"], "--last compares models of one engine"),
        (OF_ULTRALYTICS, ["--last", "1", "val=False"], "--last needs the figures of every epoch"),
        (OF_ULTRALYTICS, ["seed=3"], "compare takes no seed=: --seeds N"),
        (("small.yaml", "yolo11n-seg.yaml"), [], "yolo11n-seg.yaml is a model for the task segment"),
        (("small.yaml", "yolo11q.yaml"), [], "yolo11q.yaml: there is no such size"),
    ],
)
def test_what_does_not_fit_the_engines_is_refused(refused, tiny_set, two_yolos, cfgs, flags, words):
    assert words in refused(command(tiny_set, *flags, cfgs=cfgs))


def test_other_engines_than_before_are_refused(refused, tiny_set, played, two_yolos):
    assert main(command(tiny_set, "--seeds", 1)) == 0
    message = refused(command(tiny_set, "--seeds", 1, cfgs=BOTH))
    assert "the models of one engine or of both, and with it the scoring: yolov5 there, coco now" in message


def test_a_changed_argument_of_ultralytics_is_named(refused, tiny_set, played, two_yolos):
    assert main(command(tiny_set, "--seeds", 1, "lr0=0.02", cfgs=BOTH)) == 0
    assert "ultralytics, lr0: 0.02 there, 0.01 now" in refused(command(tiny_set, "--seeds", 1, cfgs=BOTH))


def test_images_that_only_one_engine_may_evaluate_are_refused(refused, tiny_set, two_yolos):
    shutil.copytree(tiny_set.parent, "set", ignore=shutil.ignore_patterns("*.cache"))
    file = Path("set/tiny.yaml")
    file.write_text(file.read_text().replace(f"path: {tiny_set.parent}", f"path: {Path('set').resolve()}"))
    label = next(Path("set/labels/test").iterdir())
    label.write_text("0 0.5 0.5 1.5 0.2\n")
    assert "1 images of the test split cannot be used" in refused(command(file, cfgs=BOTH))


# --- for real -------------------------------------------------------------------------------

REAL = ("--img", 64, "--batch", 4, "--noautoanchor", "--latency-rounds", 2, "--hyp", "hyp.demo.yaml")


def real_command(tiny_set: Path, *flags: object) -> list[str]:
    cfgs = ("small.yaml", "small-ema.yaml")
    for cfg, block in zip(cfgs, (None, "EMA, [8]")):
        Path(cfg).write_text(small_cfg(block))
    return [str(f) for f in ("compare", "--data", tiny_set, "--cfgs", *cfgs, *REAL, *flags)]


@pytest.mark.slow
def test_two_real_trainings(tiny_set, own_folder):
    done = run_cli(*real_command(tiny_set, "--seeds", 1, "--epochs", 1, "--workers", 0), cwd=own_folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = result()
    for run in found["runs"]:
        assert run["status"] == "finished" and set(run["figures"]) >= {
            "precision",
            "recall",
            "map50",
            "map50_95",
        }
        assert all(0 <= value <= 1 for value in run["figures"].values())
        assert [attempt["exit_code"] for attempt in run["attempts"]] == [0]
    folders = [own_folder / "runs/compare/exp" / name / "seed0" for name in ("small", "small-ema")]
    images = [(folder / "train_batch0.jpg").read_bytes() for folder in folders]
    assert images[0] == images[1]  # both have seen the same images
    for folder in folders:
        assert (folder / "weights/best.pt").is_file() and len((folder / "results.csv").read_text().splitlines()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("cfg", ["small.yaml", "small26.yaml"])
def test_last_epochs_of_real_trainings(tiny_set, own_folder, cfg):
    Path("small26.yaml").write_text(SMALL_YOLO)
    Path("small.yaml").write_text(small_cfg())
    shutil.copy(cfg, "other.yaml")
    usual = ("--img", 96, "--batch", 4, "--latency-rounds", 0, "--seeds", 1, "--epochs", 3, "--workers", 0)
    argv = ["compare", "--data", tiny_set, "--cfgs", cfg, "other.yaml", *usual, "--last", 2]
    done = run_cli(*argv, cwd=own_folder, env=environment(own_folder))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for run in result()["runs"]:
        epochs = read_epochs(own_folder / "runs/compare/exp" / run["cfg"] / "seed0/results.csv")
        for metric, column in {"map50": "mAP50", "map50_95": "mAP50-95"}.items():
            *first, a, b = epochs.values(column)
            assert len(first) == 1 and run["figures"][metric] == pytest.approx((a + b) / 2)


@pytest.mark.slow
def test_two_seeds_killed_and_resumed(tiny_set, own_folder):
    """kill -9 in the second of four runs: the first is not trained again, the second is resumed."""
    argv = real_command(tiny_set, "--seeds", 2, "--epochs", 6, "--workers", 2)
    folder = own_folder / "runs/compare/exp"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen([sys.executable, "-m", "yolov5_ema", *argv], env=environment)
    interrupted = folder / "small-ema/seed0"
    until_s = time.monotonic() + 400
    while not (interrupted / "weights/last.pt").is_file():  # after its first epoch
        assert time.monotonic() < until_s and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(1)
    rows = len((interrupted / "results.csv").read_text().splitlines()) - 1
    assert 1 <= rows < 6
    time.sleep(5)
    # nothing trains in the background
    assert len((interrupted / "results.csv").read_text().splitlines()) - 1 == rows
    first = (folder / "small/seed0/weights/best.pt").stat().st_mtime_ns

    done = run_cli(*argv, cwd=own_folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "1 of 4 runs are finished already" in done.stdout
    assert (folder / "small/seed0/weights/best.pt").stat().st_mtime_ns == first
    runs = {(run["cfg"], run["seed"]): run for run in result()["runs"]}
    assert len(runs) == 4 and all(run["status"] == "finished" for run in runs.values())
    attempts = runs["small-ema", 0]["attempts"]
    assert attempts[0]["from_epoch"] == 0 and attempts[-1]["exit_code"] == 0 and len(attempts) == 2
    assert all(len(run["attempts"]) == 1 for key, run in runs.items() if key != ("small-ema", 0))
    epochs = {line.split(",")[0].strip() for line in (interrupted / "results.csv").read_text().splitlines()[1:]}
    assert epochs == {str(epoch) for epoch in range(6)}


@pytest.mark.slow
def test_two_at_once_interrupted_and_resumed(tiny_set, own_folder):
    """Ctrl-C ends both trainings; later, both go on."""
    argv = real_command(tiny_set, "--seeds", 1, "--epochs", 8, "--workers", 0, "--jobs", 2)
    folders = [own_folder / "runs/compare/exp" / name / "seed0" for name in ("small", "small-ema")]
    command = [sys.executable, "-m", "yolov5_ema", *argv]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    until_s = time.monotonic() + 400
    while not all((folder / "weights/last.pt").is_file() for folder in folders):  # both at the same time
        assert time.monotonic() < until_s and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    rows = [(folder / "results.csv").read_text() for folder in folders]
    time.sleep(5)
    assert [(folder / "results.csv").read_text() for folder in folders] == rows
    done = run_cli(*argv, cwd=own_folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    runs = result()["runs"]
    assert all(run["status"] == "finished" for run in runs)
    resumed = [run["attempts"][1]["from_epoch"] for run in runs if len(run["attempts"]) == 2]
    assert resumed and all(epoch > 0 for epoch in resumed)  # one of them may have been at its end


@pytest.mark.slow
def test_both_engines_for_real_killed_and_resumed(tiny_set, own_folder):
    """kill -9 in the training of ultralytics: it is resumed, and every best.pt is scored on the same objects."""
    Path("small.yaml").write_text(small_cfg())
    Path("small26.yaml").write_text(SMALL_YOLO)
    usual = ("--img", 64, "--batch", 4, "--latency-rounds", 2, "--seeds", 1, "--epochs", 4, "--workers", 0)
    argv = ["compare", "--data", tiny_set, "--cfgs", "small.yaml", "small26.yaml", *usual, "plots=False"]
    own = {"PYTHONPATH": str(REPOSITORY), **environment(own_folder)}
    command = [sys.executable, "-m", "yolov5_ema", *map(str, argv)]
    process = subprocess.Popen(command, env={**os.environ, **own})
    folder = own_folder / "runs/compare/exp/small26/seed0"
    until_s = time.monotonic() + 400
    while not (folder / "weights/last.pt").is_file():
        assert time.monotonic() < until_s and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(5)
    rows = len((folder / "results.csv").read_text().splitlines()) - 1
    assert 1 <= rows < 4
    done = run_cli(*argv, cwd=own_folder, env=own)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = result()
    runs = {run["cfg"]: run for run in found["runs"]}
    assert all(run["status"] == "finished" for run in runs.values())
    assert [attempt["from_epoch"] > 0 for attempt in runs["small26"]["attempts"]] == [False, True]
    assert len(runs["small"]["attempts"]) == 1
    epochs = [line.split(",")[0] for line in (folder / "results.csv").read_text().splitlines()[1:]]
    # ultralytics writes the row before last.pt: an epoch that is killed in between is trained, and written, again
    assert list(dict.fromkeys(epochs)) == ["1", "2", "3", "4"] and len(epochs) <= 5
    assert all(0 < model["latency_ms"]["median"] < 60000 for model in found["models"].values())
    assert (folder.parent.parent / "comparison.png").is_file()
