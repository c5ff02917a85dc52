"""Flags have the same meaning for us as for YOLOv5's parsers, however they are typed."""

from __future__ import annotations

import argparse
import importlib

import pytest
from cases.light_imports import runs
from conftest import laid_aside
from fresh_process import run_fresh

from yolov5_ema.cli.main import main
from yolov5_ema.errors import UserError
from yolov5_ema.scripts.running import run_script
from yolov5_ema.upstream.flags import given_flags, parser_in_text, parser_of, refuse_shortened
from yolov5_ema.upstream.locate import Engine, engine_at

SCRIPTS = ("train", "val", "detect", "export")


def flags_of(parser):
    """What the parser says of each flag. Defaults are compared without the folder, which quirks change."""
    said = ("option_strings", "dest", "nargs", "const", "type", "choices", "help")
    return [
        ([getattr(action, name) for name in said], getattr(action.default, "name", action.default))
        for action in parser._actions
    ]


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_text_of_a_script_gives_its_flags_and_its_help(engine, script, capsys):
    found = parser_in_text(engine, script)
    assert found is not None and flags_of(found) == flags_of(parser_of(engine.module(script)))
    with pytest.raises(SystemExit) as ended:
        main([script, "--help"])
    assert ended.value.code == 0
    help_without_import = capsys.readouterr().out
    command = importlib.import_module(f"yolov5_ema.cli.{script}").COMMAND
    with pytest.raises(SystemExit):
        run_script(engine, script, ["--help"], more_help=command.help_of_own_flags())
    assert capsys.readouterr().out == help_without_import


def test_help_and_completion_import_no_yolov5():
    lines = [*(f"{script} --help" for script in SCRIPTS), "run val.py -h", "completion bash"]
    done = run_fresh(runs, *lines)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "['numpy']", done.stderr


@pytest.mark.parametrize("release", ["6.0.7", "6.1.9", "6.2.3", "7.0.14"])
def test_the_text_is_enough_in_every_release(release):
    engine = engine_at(laid_aside(release))
    segments = [f"segment.{name}" for name in ("train", "val", "predict") if engine.has_script("segment.train")]
    for script in (*SCRIPTS, *segments):
        parser = parser_in_text(engine, script, prog="x")
        assert parser is not None and parser.prog == "x" and "--img-size" in parser._option_string_actions


@pytest.mark.parametrize(
    ("text", "is_enough"),
    [
        ("import argparse as a\ndef parse_opt(): a.ArgumentParser().parse_args()", False),
        ("import argparse, os\nX = os.sep\ndef parse_opt(): P", False),
        ("from helpers import X\nimport argparse\ndef parse_opt(): argparse.ArgumentParser(X).parse_args()", False),
        ("import argparse\nraise SystemExit\ndef parse_opt(): argparse.ArgumentParser('p').parse_args()", True),
        ("import argparse as argparse\nif argparse: X = '1'\n"
         "def parse_opt(): p = argparse.ArgumentParser(X); o = p.parse_args(); helper(o)", True),
        ("def main(): pass", False),
    ],
)  # fmt: skip
def test_of_a_fork_only_what_the_parser_needs_is_run(text, is_enough, tmp_path):
    (tmp_path / "train.py").write_text(text)
    assert (parser_in_text(Engine(tmp_path, "clone", "6.0"), "train") is not None) == is_enough


@pytest.mark.parametrize(
    ("argv", "given"),
    [
        (["--single-cls"], {"single_cls": ("--single-cls", None)}),
        (["--single", "--half"], {"single_cls": ("--single", None), "half": ("--half", None)}),
        (["--img", "64"], {"imgsz": ("--img", "64")}),
        (["--batch=4"], {"batch_size": ("--batch", "4")}),
        (["--s"], {}),  # --single-cls, --save-txt …: YOLOv5 refuses it
        (["--nothing", "--", "x", "-h"], {"help": ("-h", None)}),
        (["--weights", ""], {"weights": ("--weights", "")}),
        (["--conf", "0.1", "--conf-thres", "0.2"], {"conf_thres": ("--conf-thres", "0.2")}),
    ],
)
def test_flags_are_found_as_the_parser_finds_them(engine, argv, given):
    assert given_flags(engine, "val", argv) == given


def test_shortened_flags_of_the_command_itself_are_refused(engine):
    parser = argparse.ArgumentParser(prog="yolov5-ema evaluate")
    parser.add_argument("--task")
    refuse_shortened(given_flags(engine, "val", ["--task", "test", "--img", "9"]), parser)
    with pytest.raises(UserError, match="--tas: write --task in full; 'yolov5-ema evaluate' reads that flag itself"):
        refuse_shortened(given_flags(engine, "val", ["--tas", "test"]), parser)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--resum"], "compare takes no --resume"),
        (["--evol", "3"], "compare takes no --evolve"),
        (["--exist"], "compare takes no --exist-ok"),
        (["--cf=x.yaml"], "compare takes no --cfg:"),
        (["--local_r", "1"], "compare takes no --local_rank"),
        (["--seed", "1"], "compare takes no --seed:"),  # this YOLOv5 does not have it
        (["--dat", "x.yaml"], "--dat: write --data in full"),
        (["--nam", "x"], "--nam: write --name in full"),
    ],
)
def test_compare_reads_shortened_flags(flags, words, tiny_set, refused):
    given = ["compare", "--data", str(tiny_set), "--cfgs", "yolov5n.yaml", "yolov5n-ema.yaml"]
    assert words in refused(*given, *flags)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["val", "--img", 256, 192], "val: unrecognized arguments: 192; --img takes one value"),
        (["val", "--half", 1], "val: unrecognized arguments: 1; --half takes no value"),
        (["train", "--batchsize", 8], "train: unrecognized arguments: --batchsize 8; did you mean --batch-size?"),
        (
            ["detect", "-o", "x"],
            "detect: unrecognized arguments: -o x; the run folder is named with --project",
        ),
        (["evaluate", "-o", "x"], "evaluate: unrecognized arguments: -o x; the run folder is named with --project and"),
        (["evaluate", "--img", 64, 48], "evaluate: unrecognized arguments: 48; --img takes one value"),
        (["submit", "-o", "x", "--image", 64], "submit: unrecognized arguments: --image 64; did you mean --img?"),
        (["compare", "--batchsize", 8], "compare: unrecognized arguments: --batchsize 8; did you mean --batch-size?"),
    ],
)
def test_what_a_script_does_not_know_is_refused_in_the_name_of_the_command(line, said, tiny_set, refused):
    command, *flags = line
    models = ["--cfgs", "yolov5n.yaml", "yolov5n-ema.yaml"] if command == "compare" else ["--weights", "x.pt"]
    data = [] if command == "detect" else ["--data", tiny_set]
    assert f"yolov5-ema: error: {said}" in refused(command, *data, *models, *flags)


@pytest.mark.parametrize("weights", [["--weights", ""], ["--weight", ""], ["--weights="]])
def test_from_scratch_there_is_nothing_to_keep(weights, tiny_set, own_folder, capsys):
    given = ["train", "--data", str(tiny_set), "--cfg", "yolov5n-ema.yaml", "--init", "identity"]
    assert main([*given, *weights]) == 2
    assert "--init identity is for pretrained --weights" in capsys.readouterr().err
