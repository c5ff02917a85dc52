"""The command ``blocks``: the blocks, and their names in rows of each engine."""

from __future__ import annotations

import importlib
import json
import re
import sys

import pytest
from offline_ultralytics import offline

from yolov5_ema.blocks import list_blocks, registry
from yolov5_ema.blocks.by_timm import LIMITS
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


def test_the_layers_of_timm_are_listed_with_all_or_by_their_names(capsys):
    pytest.importorskip("timm")
    found = {block["name"]: block for block in in_json(capsys, "--all")["blocks"]}
    assert [name for name in found if "." not in name] == list_blocks()
    assert [name for name in found if "." in name] == list_blocks("timm.*", on_demand=True) != []
    eca, sk = found["timm.eca"], found["timm.sk"]
    assert (eca["parameters"], eca["options"], found["EMA"]["limits"]) == (5, {}, [])
    assert LIMITS["norms"] in sk["limits"] and sk["options"]["groups"] == 1 and "arXiv 1903.06586" in sk["paper"]
    assert eca["rows"]["yolov5"] == ["timm.eca", "C3_timm.eca"]
    assert main(["blocks", "timm.s*"]) == 0
    table, _, limits = capsys.readouterr().out.partition("what does not hold")
    assert [line.split()[0] for line in table.splitlines()[1:6]] == list_blocks("timm.s*", on_demand=True)
    assert re.search(rf"^{re.escape(LIMITS['norms'])}  +timm.sk$", limits, re.M)


def test_without_timm_ours_are_listed_and_one_line_says_why(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "timm.layers", None)
    monkeypatch.setattr(registry, "_MADE", {})
    assert main(["blocks", "--all", "--json"]) == 0
    out, err = capsys.readouterr()
    assert [block["name"] for block in json.loads(out)["blocks"]] == list_blocks()
    assert len(err.splitlines()) == 1 and "17 blocks are not listed: timm.cbam is an attention layer of timm" in err
    for command in (["blocks", "timm.*"], ["blocks", "--plugin", "timm"], ["cfg", "--block", "timm.eca"]):
        assert main(command) == 2
        err = capsys.readouterr().err
        assert len(err.splitlines()) == 1 and "pip install 'yolov5-ema[timm]'" in err


def test_the_plugin_timm_lists_its_layers_everywhere(monkeypatch, capsys):
    pytest.importorskip("timm")
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    ours = list_blocks()
    assert main(["blocks", "--plugin", "timm", "--json"]) == 0
    names = [block["name"] for block in json.loads(capsys.readouterr().out)["blocks"]]
    assert names == sorted([*ours, *list_blocks("timm.*", on_demand=True)]) == list_blocks()
