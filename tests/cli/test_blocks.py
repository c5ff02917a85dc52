"""The command ``blocks``: the blocks, and their names in rows of each engine."""

from __future__ import annotations

import importlib
import json
import sys

import pytest
from offline_ultralytics import offline

from yolov5_ema.cfgs.generator import HOSTS
from yolov5_ema.cli.main import main


@pytest.fixture(autouse=True)
def in_own_folder(own_folder):
    """Not in the repository, so that no clone is found there."""


def in_json(capsys, *argv):
    assert main(["blocks", *argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_json(capsys):
    found = in_json(capsys, "E[CM]A", "--channels", "6")
    assert found["channels"] == 6
    ecas = [block for block in found["blocks"] if block["name"] == "ECA"]
    assert [block["name"] for block in found["blocks"]] == ["ECA", "EMA"]
    assert ecas[0]["parameters"] > 0 and "kernel_size" in ecas[0]["options"] and "arXiv" in ecas[0]["paper"]


def test_table(capsys):
    assert main(["blocks"]) == 0
    table, _, names = capsys.readouterr().out.partition("\n\n")
    counts = dict(line.split()[:2] for line in table.splitlines()[1:])
    assert counts["EMA"] == "2,624" and counts["CA"] == "25,648" and counts["CBAM"] == "33,412"
    assert counts["SA"] == "24" and counts["ECA"] == "5" and counts["NAM"] == "1,024"
    assert "arXiv 2305.13563" in table and [line.split()[0] for line in names.splitlines()[1:]] == list(counts)


def test_names_in_rows_are_those_of_the_engines_modules(engine, tmp_path, capsys):
    found = in_json(capsys, "EMA")
    assert found["engines"]["yolov5"] == engine.version
    parsers = {"yolov5": engine.module("models.yolo")}
    with offline(tmp_path) as ultralytics:
        assert found["engines"]["ultralytics"] == ultralytics.__version__
        parsers["ultralytics"] = importlib.import_module("ultralytics.nn.tasks")
    for name, parser in parsers.items():
        hosts = [host for host in HOSTS if hasattr(parser, host)]
        assert "C3" in hosts
        assert found["blocks"][0]["rows"][name] == ["EMA", *(f"{host}_EMA" for host in hosts)]


def test_a_name_that_the_engine_has_itself_gets_the_prefix(clone, tmp_path, capsys):
    fork = tmp_path / "fork"
    for file in ("models/yolo.py", "utils/general.py", "train.py", "models/common.py"):
        (fork / file).parent.mkdir(parents=True, exist_ok=True)
        (fork / file).write_text((clone / file).read_text())
    with (fork / "models/common.py").open("a") as file:
        file.write("class CBAM(nn.Module): ...\nclass C3_SE(C3): ...\n")
    found = {one["name"]: one["rows"]["yolov5"] for one in in_json(capsys, "--yolov5", str(fork))["blocks"]}
    assert found["CBAM"] == ["yolov5_ema.CBAM", "C3_CBAM"] and found["SE"] == ["SE", "yolov5_ema.C3_SE"]
    assert found["EMA"] == ["EMA", "C3_EMA"]


def test_an_engine_that_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ultralytics", None)
    assert main(["blocks", "CA"]) == 0
    head, row = capsys.readouterr().out.splitlines()[-2:]
    assert head.endswith("in a row of ultralytics (not found)") and row.split() == ["CA", "CA,", "C3_CA", "-"]
    monkeypatch.setitem(sys.modules, "yolov5", None)
    found = in_json(capsys, "CA")
    assert found["engines"] == {"yolov5": None, "ultralytics": None} and found["blocks"][0]["rows"] == {}
