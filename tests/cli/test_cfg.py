"""``yolov5-ema cfg``: what it prints, what it writes, and what it does not touch."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys

import pytest
import yaml
from cases import PLUGINS
from offline_ultralytics import needs_yolo26

from yolov5_ema.cfgs.generator import SHIPPED, SHIPPED_FOR_ULTRALYTICS, build_cfg, format_cfg
from yolov5_ema.cli import cfg as command
from yolov5_ema.errors import ConfigError, UserError


def output_of(capsys, *argv):
    assert command.COMMAND.main([str(word) for word in argv]) == 0
    return capsys.readouterr().out


def test_prints_to_standard_output(capsys):
    assert output_of(capsys) == format_cfg(size="s", block="EMA", at="backbone")
    assert output_of(capsys, "--size", "n", "--block", "CA", "--at", "neck") == format_cfg(
        size="n", block="CA", at="neck"
    )


@pytest.mark.parametrize(
    "line",
    [
        "--size x --head p2 --block none --nc 10",
        "--size m --head p2 --block EMA --at neck --option groups=16 --option cross_spatial=false",
        "--size s --block SA --after 4 23",
        "--base yolov5s-eca.yaml --block CA --after 4 --nc 3",
        "--base yolov5s-eca.yaml --size l --block CA --at neck",
        "--size n --block EMA --inside C3 --at neck --option groups=8",
        "--base yolo11s.yaml --head p2 --block EMA --at neck --nc 10",
        "--base yolov8-seg.yaml --size m --block CA --inside C2f --after 4 6",
    ],
)
def test_first_line_of_a_file_writes_it_again(capsys, line):
    text = output_of(capsys, *shlex.split(line))
    words = shlex.split(text.splitlines()[0].lstrip("# "))
    assert words == ["yolov5-ema", "cfg", *shlex.split(line)]
    assert output_of(capsys, *words[2:]) == text


def test_writes_a_file_and_says_what_next(capsys, tmp_path):
    out = tmp_path / "my cfg.yaml"
    said = output_of(capsys, "--nc", 3, "--output", out)
    assert said == f"{out} written. Next: yolov5-ema train --cfg '{out}' --data DATA.yaml --weights ''\n"
    assert out.read_text(encoding="utf-8") == format_cfg(nc=3)
    assert [path.name for path in tmp_path.iterdir()] == ["my cfg.yaml"]


def test_never_overwrites_without_force(capsys, tmp_path):
    out = tmp_path / "my.yaml"
    out.write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match=r"my\.yaml exists and is left as it is.*--force"):
        command.COMMAND.main(["-o", str(out)])
    assert out.read_text(encoding="utf-8") == "mine"
    command.COMMAND.main(["-o", str(out), "--force"])
    assert yaml.safe_load(out.read_text(encoding="utf-8")) == build_cfg()


def test_base_can_be_replaced_by_itself_with_a_block(tmp_path):
    mine = tmp_path / "my.yaml"
    mine.write_text(format_cfg(block="none"), encoding="utf-8")
    command.COMMAND.main(["--base", str(mine), "--block", "SE", "-o", str(mine), "--force"])
    assert yaml.safe_load(mine.read_text(encoding="utf-8")) == build_cfg(block="SE")


def test_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="cannot be written: No such file or directory"):
        command.COMMAND.main(["-o", str(tmp_path / "none" / "my.yaml")])

    def fail(*args):
        raise OSError(28, "No space left on device")

    old = tmp_path / "old.yaml"
    old.write_text("mine", encoding="utf-8")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match="No space left on device"):
        command.COMMAND.main(["-o", str(old), "--force"])
    assert {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == {"old.yaml": "mine"}


def test_wrong_flags_write_no_file(tmp_path):
    out = tmp_path / "my.yaml"
    for argv in (["--block", "EMMA"], ["--after", "99"], ["--option", "groups"], ["--base", "gone.yaml"]):
        with pytest.raises(ConfigError):
            command.COMMAND.main([*argv, "-o", str(out)])
    assert not out.exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--block", "EMMA"], r"no block is named .EMMA.\. Did you mean EMA.*--block none.*--plugin"),
        (["--block", "../x"], "no block is named"),
        (["--option", "group=16"], "EMA has no option group; did you mean groups"),
        (["--option", "channels=16"], "EMA has no option channels"),
        (["--block", "none", "--at", "neck"], "block none has no place"),
        (["--base", "yolov5s-ema.yaml", "--head", "p2"], "base and head exclude each other"),
        (["--shipped", ".", "--size", "n"], "--shipped DIR writes a fixed set of files"),
    ],
)
def test_messages(argv, message):
    with pytest.raises(ConfigError, match=message):
        command.COMMAND.main(argv)


@pytest.mark.parametrize("written", ["ema", "Ema", "EMA"])
def test_block_names_in_any_case(capsys, written):
    assert output_of(capsys, "--block", written) == format_cfg(block="EMA")
    assert output_of(capsys, "--block", "NONE") == format_cfg(block="none")


def test_unknown_choices_end_with_code_2(capsys):
    with pytest.raises(SystemExit) as end:
        command.COMMAND.main(["--size", "q"])
    assert end.value.code == 2
    assert "invalid choice: 'q'" in capsys.readouterr().err


@needs_yolo26
def test_help_shows_examples_that_work(capsys, tmp_path, monkeypatch):
    with pytest.raises(SystemExit) as end:
        command.COMMAND.main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for name in ("my.yaml", "tutorial.yaml"):
        (tmp_path / name).write_text(format_cfg(block="none"), encoding="utf-8")
    examples = [line.split()[2:] for line in text.splitlines() if line.startswith("  yolov5-ema cfg ")]
    assert len(examples) >= 5
    for argv in examples:
        assert command.COMMAND.main(argv) == 0


def test_a_translated_file_is_written_and_each_change_is_printed(capsys, tmp_path):
    theirs, ours = tmp_path / "theirs.yaml", tmp_path / "ours.yaml"
    theirs.write_text(format_cfg(size="n", block="CA").replace("CA, []", "CoordAtt, [512, 32]", 1))
    said = output_of(capsys, "--translate", theirs, "-o", ours).splitlines()
    assert said[0] == f"{theirs}: row 7: CoordAtt is called CA here" and said[-1].startswith(f"{ours} written. Next:")
    assert yaml.safe_load(ours.read_text())["backbone"][7] == [-1, 1, "CA", [{"reduction": 32}]]
    assert "[-1, 1, CA, [{reduction: 32}]],  # 7-P4/16, attention on row 6 (C3)" in output_of(
        capsys, "--translate", theirs
    )
    with pytest.raises(ConfigError, match="keeps the file's model"):
        command.COMMAND.main(["--translate", str(theirs), "--size", "n"])


@needs_yolo26
def test_shipped_writes_all_and_touches_only_what_differs(capsys, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        command.COMMAND.main(["--shipped", str(tmp_path / "none")])
    count = len(SHIPPED) + len(SHIPPED_FOR_ULTRALYTICS)
    assert f"{count} files written, 0 up to date" in output_of(capsys, "--shipped", tmp_path)
    assert f"0 files written, {count} up to date" in output_of(capsys, "--shipped", tmp_path)
    (tmp_path / "yolov5s-ema.yaml").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match=r"other versions of yolov5s-ema\.yaml; they are left as they are"):
        command.COMMAND.main(["--shipped", str(tmp_path)])
    assert (tmp_path / "yolov5s-ema.yaml").read_text(encoding="utf-8") == "mine"
    assert "1 file written, " in output_of(capsys, "--shipped", tmp_path, "--force")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*SHIPPED, "ultralytics"])
    assert {path.name for path in (tmp_path / "ultralytics").iterdir()} == set(SHIPPED_FOR_ULTRALYTICS)


def test_shipped_without_ultralytics_says_what_is_left_out(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "at_hand", lambda: None)
    assert command.COMMAND.main(["--shipped", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert f"{len(SHIPPED)} files written" in printed.out
    assert "yolo26-p2-ema.yaml not written: the package ultralytics, which is not installed" in printed.err
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(SHIPPED)


@pytest.mark.parametrize(
    ("flags", "output", "said", "warned"),
    [
        ("--base yolo11n.yaml", "yolo11n-ema.yaml", "model={}", ""),
        ("--base yolo11.yaml --size x", "yolo11x-ema.yaml", "model={}", ""),
        ("--base yolo11.yaml", "yolo11-ema.yaml", "It holds the sizes n, s, m, l, x; a letter in its name chooses", ""),
        ("--base yolo11x.yaml", "yolo11-ema.yaml", "ultralytics finds it as yolo11x-ema.yaml", ""),
        (
            "--base yolo11x.yaml",
            "mine.yaml",
            "model={}",
            "size x was asked for, .* would build n: name it like yolo26x",
        ),
        ("--base yolo11x.yaml", "yolo11s-a.yaml", "model={}", "size x was asked for, .* would build s"),
        ("--base yolo11n.yaml", "mine.yaml", "Its name has no letter of a size, so ultralytics builds the first", ""),
        ("--base rtdetr-l.yaml", "rtdetr-mine.yaml", "model={}", ""),
        ("--base rtdetr-l.yaml", "mine.yaml", "{} written", "only if its name contains rtdetr: .* rtdetr-mine.yaml"),
    ],
)
def test_what_becomes_of_the_letter_of_the_size(capsys, tmp_path, messages, flags, output, said, warned):
    pytest.importorskip("ultralytics")
    out = tmp_path / output
    assert command.COMMAND.main([*flags.split(), "-o", str(out)]) == 0
    printed = capsys.readouterr()
    assert said.format(out) in printed.out
    assert re.search(warned, printed.err) if warned else not printed.err
    assert yaml.safe_load(out.read_text(encoding="utf-8"))["backbone"]


def test_a_size_in_which_the_block_does_not_fit_is_named(capsys, messages):
    pytest.importorskip("ultralytics")
    assert command.COMMAND.main(["--base", "yolo11.yaml", "--block", "SA", "--at", "neck"]) == 0
    printed = capsys.readouterr()
    assert "the block does not fit in size n" in printed.err
    assert printed.out.splitlines()[0] == "# yolov5-ema cfg --base yolo11.yaml --block SA --at neck"


def test_a_layer_of_timm(capsys):
    pytest.importorskip("timm")
    text = output_of(capsys, "--block", "timm.ELA", "--option", "kernel_size=5", "--nc", "3")
    assert yaml.safe_load(text)["backbone"][7] == [-1, 1, "timm.ela", [{"kernel_size": 5}]]
    assert "timm.ela in rows 7, 10." in text
    inside = yaml.safe_load(output_of(capsys, "--block", "timm.eca", "--inside", "C3"))
    assert inside["backbone"][8] == [-1, 3, "C3_timm.eca", [1024]]
    with pytest.raises(ConfigError, match=r"timm\.ela has no option kernel; did you mean kernel_size"):
        command.COMMAND.main(["--block", "timm.ela", "--option", "kernel=5"])


def test_block_of_a_plugin(capsys, tmp_path, monkeypatch):
    from yolov5_ema.blocks import unregister_block

    shutil.copy(PLUGINS / "cfg_test_plugin.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("YOLOV5_EMA_PLUGINS", "cfg_test_plugin")
    try:
        text = output_of(capsys, "--block", "cfgtestblock", "--option", "strength=2")
        said = output_of(capsys, "--block", "cfgtestblock", "-o", "x.yaml")
    finally:
        unregister_block("CfgTestBlock")
        sys.modules.pop("cfg_test_plugin", None)
    assert yaml.safe_load(text)["backbone"][7] == [-1, 1, "CfgTestBlock", [{"strength": 2}]]
    assert "Next: yolov5-ema train --plugin cfg_test_plugin --cfg x.yaml " in said
