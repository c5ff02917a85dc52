"""Flags have the same meaning for us as for YOLOv5's parsers, however they are typed."""

from __future__ import annotations

import argparse

import pytest

from yolov5_ema.cli.main import main
from yolov5_ema.errors import UserError
from yolov5_ema.upstream.flags import given_flags, refuse_shortened


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


@pytest.mark.parametrize("weights", [["--weights", ""], ["--weight", ""], ["--weights="]])
def test_from_scratch_there_is_nothing_to_keep(weights, tiny_set, own_folder, capsys):
    given = ["train", "--data", str(tiny_set), "--cfg", "yolov5n-ema.yaml", "--init", "identity"]
    assert main([*given, *weights]) == 2
    assert "--init identity is for pretrained --weights" in capsys.readouterr().err
