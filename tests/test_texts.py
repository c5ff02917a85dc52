"""Lists of names, "did you mean", first lines of errors, tables for a terminal."""

from __future__ import annotations

import ast
import doctest
import os
import re
import shlex
from pathlib import Path

import pytest

import yolov5_ema
from yolov5_ema import texts
from yolov5_ema.cli.main import COMMANDS
from yolov5_ema.settings import read
from yolov5_ema.texts import aligned, did_you_mean, first_line, listed, nearest, suggested


def test_examples_in_the_docstrings():
    result = doctest.testmod(texts)
    assert result.attempted >= 5 and result.failed == 0


@pytest.mark.parametrize(
    "names, most, text",
    [
        ([], None, ""),
        (["a"], 1, "a"),
        (["a", 3, "c"], None, "a, 3, c"),
        (["a", "b", "c"], 3, "a, b, c"),
        (iter(["a", "b", "c"]), 1, "a and 2 more"),
    ],
)
def test_a_list_of_names(names, most, text):
    assert listed(names, most) == text


@pytest.mark.parametrize(
    "name, most, found",
    [
        ("TRAIN", 1, ["train"]),
        ("ema", 3, ["EMA"]),
        ("detekt", 2, ["detect"]),
        ("", 1, []),
        (7, 1, []),
        ("quite another", 3, []),
    ],
)
def test_the_nearest_name(name, most, found):
    assert nearest(name, ["train", "detect", "EMA"], most) == found


def test_how_like_a_name_must_be():
    assert nearest("abxy", ["abcd"]) == [] and nearest("abxy", ["abcd"], likeness=0.5) == ["abcd"]


def test_did_you_mean():
    assert did_you_mean(["EMA", "ECA"]) == "; did you mean EMA or ECA?"
    assert did_you_mean([], otherwise="") == ""


@pytest.mark.parametrize(
    "error, line",
    [
        (ValueError("\n  bad\nmore"), "bad"),
        (AssertionError(), "AssertionError"),
        (RuntimeError(" \n "), "RuntimeError"),
        (ValueError("x" * 600), "x" * 500),
    ],
)
def test_the_first_line_of_an_error(error, line):
    assert first_line(error) == line


def test_a_table_is_aligned():
    table = [("name", "n", "what"), ("a", "10,000", "b"), ("abcdef", "2", "")]
    assert aligned(table, left=(0, 2)).split("\n") == [
        "name         n  what",
        "a       10,000  b",
        "abcdef       2",
    ]


def test_no_second_door_in_the_package():
    """Code that needs one of these functions takes it from texts.py."""
    package = Path(yolov5_ema.__file__).parent
    second = re.compile(r"get_close_matches|str\(error\)(\.strip\(\))?\.splitlines\(\)\[0\]|[rl]just\(")
    found = [file.name for file in package.rglob("*.py") if second.search(file.read_text())]
    assert sorted(found) == ["texts.py"]


def test_a_suggested_command_can_be_pasted_into_a_shell(monkeypatch):
    name = "my runs/it's $HOME; rm.pt"
    assert shlex.split(suggested("data stats", Path(name))) == ["yolov5-ema", "data", "stats", name]
    assert suggested("train", f"model={name}", rest="data=…").endswith(" data=…")
    monkeypatch.setenv("YOLOV5_EMA_PLUGINS", os.pathsep.join(["timm", "mine", "my blocks.py"]))
    assert read("plugins") == ("timm", "mine", "my blocks.py")
    assert suggested("val", "--data", "a.yaml") == (
        "yolov5-ema val --plugin mine --plugin 'my blocks.py' --data a.yaml"
    )


def test_no_command_with_a_name_in_it_is_written_without_quotes():
    """Names of files are put into suggested commands by `suggested`, which quotes them."""
    commands = "|".join(set(COMMANDS) - {"yolo"})  # of `yolo`, a task is put in, not a name
    unquoted = re.compile(rf"yolov5-ema ({commands})\b[^'`:<\n]*$")
    found = []
    for file in sorted(Path(yolov5_ema.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.JoinedStr):
                continue
            said = ""
            for part in node.values:
                if isinstance(part, ast.Constant):
                    said += str(part.value)
                elif unquoted.search(said):
                    found.append(f"{file.name}:{node.lineno}: {said}")
    assert not found
