"""The structure of commands: shared flags, their old names, and what is printed on standard output."""

from __future__ import annotations

import argparse
import json

import pytest

from yolov5_ema.cli.command import Command, Group, own_parser
from yolov5_ema.cli.main import TOP, main
from yolov5_ema.errors import UserError


def all_commands(group: Group = TOP) -> list[Command]:
    found = []
    for _, command in group.commands():
        found += all_commands(command) if isinstance(command, Group) else [command]
    return found


ALL = {command.name: command for command in all_commands()}


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    return {flag for action in parser._actions for flag in action.option_strings}


@pytest.mark.parametrize("name", ALL)
def test_every_command_takes_the_common_flags_and_nothing_shortened(name, capsys):
    parser = ALL[name].parser()
    assert not parser.allow_abbrev
    assert {"--yolov5", "--plugin", "--conflicts", "--trust-checkpoint", "--quiet"} <= flags_of(parser)
    assert ("--verbose" in flags_of(parser)) == (name not in {"val", "export", "evaluate", "submit", "run", "yolo"})
    if ALL[name].passes_to or name in ("run", "yolo"):
        return
    with pytest.raises(SystemExit) as stopped:
        ALL[name].main(["--trust-check", "a", "b"])
    assert stopped.value.code == 2


def test_a_flag_that_is_none_is_named_with_the_nearest(capsys):
    with pytest.raises(SystemExit):
        main(["info", "yolov5s-ema.yaml", "--jso"])
    assert "unrecognized arguments: --jso; did you mean --json?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["cfg", "--outptu", "x"])
    assert "did you mean --output?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, old, new, value",
    [
        ("predict", "--out", "output", "a.json"),
        ("transfer", "--out", "output", "a.pt"),
        ("convert", "--out", "output", "a.pt"),
        ("data coco", "--out", "output", "a"),
        ("data visdrone", "--out", "output", "a"),
        ("data slice", "--out", "output", "a"),
        ("data stats", "--picture", "output", "a.png"),
        ("demo", "--dir", "output", "a"),
        ("evaluate", "--noplots", "no_plots", None),
        ("evaluate", "--nosave", "no_save", None),
        ("classify predict", "--nosave", "no_save", None),
        ("classify train", "--average", "average", "0.9"),
        ("classify train", "--ema", "average", "0.9"),
    ],
)
def test_old_names_of_flags_work_and_are_not_listed(name, old, new, value):
    needed = {
        "predict": ["--weights", "w.pt", "--source", "s"],
        "transfer": ["w.pt", "--cfg", "c.yaml"],
        "convert": ["w.pt"],
        "classify predict": ["--weights", "w.pt", "--source", "s"],
    }.get(name, ["x"] if name.startswith("data") else [])
    listed = flags_of(ALL[name].parser())
    assert old not in listed and old not in ALL[name].parser().format_help().split()
    line = [*needed, old, *([value] if value else [])]
    args, rest = ALL[name].parse(line)
    assert rest == [] and str(getattr(args, new)) == (value or "True")
    if value:
        args, _ = ALL[name].parse([*needed, f"{old}={value}"])
        assert str(getattr(args, new)) == value


@pytest.mark.parametrize("name", ["predict", "transfer", "convert", "cfg", "submit", "report", "demo", "paper tables"])
def test_what_is_written_is_named_with_o(name):
    assert {"-o", "--output"} <= flags_of(ALL[name].parser())


@pytest.mark.parametrize("name", ["info", "blocks", "doctor", "inspect", "evaluate", "data stats", "paper tables"])
def test_tables_can_be_had_as_json(name):
    assert "--json" in flags_of(ALL[name].parser())


def test_json_leaves_standard_output_to_itself(own_folder, monkeypatch, capsys):
    """What a plugin prints while it is imported does not go to standard output."""
    (own_folder / "talks.py").write_text("print('hello from a plugin')")
    monkeypatch.syspath_prepend(own_folder)
    assert main(["blocks", "EMA", "--plugin", "talks", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["blocks"][0]["name"] == "EMA" and "hello from a plugin" in err


# --- groups -----------------------------------------------------------------------------------


def test_a_group_lists_its_commands_and_knows_the_nearest(capsys):
    assert main(["data"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: yolov5-ema data COMMAND [flags]") and "\n  slice     cut the images" in out
    assert (main(["paper"]), main(["paper", "--help"])) == (2, 0)
    capsys.readouterr()
    assert main(["data", "stat"]) == 2
    assert "data: no command 'stat'; did you mean stats? There are: visdrone, coco" in capsys.readouterr().err
    with pytest.raises(UserError, match="no command 'trian'; did you mean train"):
        TOP.command("trian")


def test_flags_of_a_script_that_is_run_stay_its_own():
    """YOLOv5's own parser reads the flags that the command does not know, abbreviated or not."""
    args, rest = ALL["val"].parse(["--slice", "320", "--verb", "--single", "--weights", "a.pt", "b.pt"])
    assert args.slice == "320" and rest == ["--verb", "--single", "--weights", "a.pt", "b.pt"]
    args, rest = ALL["run"].parse(["--", "mine.py", "--help", "--", "x"])
    assert args.script == "mine.py" and rest == ["--help", "--", "x"]


def test_a_parser_of_a_few_flags_has_no_help():
    parser = own_parser(lambda flags: flags.add_argument("--only"))
    assert flags_of(parser) == {"--only"} and parser.parse_known_args(["-h", "--onl", "1"])[1] == [
        "-h",
        "--onl",
        "1",
    ]
