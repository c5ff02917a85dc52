"""``yolov5-ema compare``: what it refuses before anything is trained or written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, SMALL_YOLO
from played_comparisons import BOTH, command

from yolov5_ema.cfgs.generator import format_cfg
from yolov5_ema.cli.main import main
from yolov5_ema.resources import find_shipped

pytestmark = pytest.mark.usefixtures("two_cfgs")


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
def test_bad_flags(refused_comparison, tiny_set, flags, words):
    message = refused_comparison(command(tiny_set, *flags))
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
def test_bad_cfgs(refused_comparison, tiny_set, cfgs, words):
    Path("sub").mkdir()
    text = Path("plain.yaml").read_text()
    Path("sub/plain.yaml").write_text(text)
    cfg = yaml.safe_load(text)
    cfg["backbone"][7] = [-1, 1, "EMAA", []]
    Path("broken.yaml").write_text(yaml.safe_dump(cfg))
    message = refused_comparison(command(tiny_set, cfgs=tuple(cfgs)))
    assert all(word in message for word in words), message


def test_bad_data(refused_comparison, tiny_set):
    assert "no such file" in refused_comparison(command("nowhere.yaml"))
    content = yaml.safe_load(tiny_set.read_text())
    del content["test"]
    Path("data.yaml").write_text(yaml.safe_dump(content))
    assert "the key 'test' is missing" in refused_comparison(command("data.yaml", "--task", "test"))


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
def test_blocks_that_cannot_start_as_identities_are_refused(refused_comparison, tiny_set, weights, of, cfgs, message):
    weights("a.pt", block=of)
    Path("simam.yaml").write_text(format_cfg(size="n", block="SimAM", nc=3))
    said = refused_comparison(command(tiny_set, "--weights", "a.pt", "--init", "identity", cfgs=cfgs))
    assert said == f"yolov5-ema: error: {message}\n"


def test_blocks_of_ultralytics_do_not_start_as_identities(refused_comparison, tiny_set, weights, two_yolos):
    weights("a.pt", block="none")
    flags = ("--weights", "a.pt", "pretrained=False", "--init", "identity")
    message = refused_comparison(command(tiny_set, *flags, cfgs=BOTH))  # small.yaml has a block, but is of ultralytics
    assert "no model of YOLOv5 in --cfgs has an attention block (plain)" in message


def test_a_folder_of_something_else(refused_comparison, tiny_set):
    Path("runs/compare/exp").mkdir(parents=True)
    Path("runs/compare/exp/letter.txt").write_text("mine")
    assert "does not hold a comparison" in refused_comparison(command(tiny_set))


def _write_hyp(lr0: float) -> None:
    shipped = yaml.safe_load(find_shipped("hyp.demo.yaml").read_text())
    Path("my.yaml").write_text(yaml.safe_dump({**shipped, "lr0": lr0}))


def test_a_changed_recipe_is_refused_by_what_differs(refused_comparison, tiny_set, played):
    flags = ("--hyp", "my.yaml", "--seeds", 1)
    _write_hyp(0.01)
    assert main(command(tiny_set, *flags)) == 0
    message = refused_comparison(command(tiny_set, *flags, "--epochs", 3, "--img", 96, "--quad"))
    for line in ("quad: False there, True now", "epochs: 2 there, 3 now", "imgsz: 64 there, 96 now"):
        assert f"\n  {line}\n" in message
    assert "--name" in message and "lr0" not in message
    _write_hyp(0.02)
    assert "hyp: the content of my.yaml has changed" in refused_comparison(command(tiny_set, *flags))
    _write_hyp(0.01)
    Path("plain.yaml").write_text(format_cfg(size="s", block="none", nc=3))
    assert "cfg plain: the content of" in refused_comparison(command(tiny_set, *flags))


def test_help_is_quick_and_names_the_way(capsys):
    code = "import sys; from yolov5_ema.cli.main import main; main(['compare', '--help'])"
    guard = f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); {code}"
    done = subprocess.run([sys.executable, "-c", guard], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0 and "--seeds N" in done.stdout and "comparison.json" in done.stdout
    assert done.stdout.endswith("False\n")


def test_init_is_for_models_of_yolov5(refused_comparison, tiny_set):
    pytest.importorskip("ultralytics")
    for name in ("small26.yaml", "other26.yaml"):
        Path(name).write_text(SMALL_YOLO)
    argv = command(tiny_set, "--init", "identity", cfgs=("small26.yaml", "other26.yaml"))
    assert "--init works only with models of YOLOv5" in refused_comparison(argv)
