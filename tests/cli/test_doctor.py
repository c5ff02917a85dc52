"""The command ``doctor``: what it says of YOLOv5 and ultralytics, if both, one or none of them can be used."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from offline_ultralytics import offline

import yolov5_ema
from yolov5_ema.cli.main import main
from yolov5_ema.kernels import native, self_test
from yolov5_ema.kernels.ema import cpp

pytest.importorskip("ultralytics")


@pytest.fixture(autouse=True)
def no_network(own_folder):
    with offline(own_folder / "config"):
        yield


def test_json_of_both_engines(package_root, capsys):
    import ultralytics

    before = yolov5_ema.is_installed()
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["torch"] and set(found["implementations"]) >= {"cpu"} and "EMA" in found["blocks"]
    assert found["yolov5"]["version"].startswith(("6", "7")) and Path(found["yolov5"]["folder"]).samefile(package_root)
    assert found["ultralytics"]["version"] == ultralytics.__version__
    assert found["yolov5"]["problem"] == found["ultralytics"]["problem"] == ""
    assert "checkpoints" in found["ultralytics"]["guards"]
    on = [one["name"] for one in (*found["quirks"], *found["guards"]) if one["on"]]
    assert "safe-checkpoints" in on and "evaluating" in on
    assert yolov5_ema.is_installed() == before and not yolov5_ema.is_installed("ultralytics")


def test_check_compares_every_kernel(monkeypatch, capsys):
    for name in ("yolov5", "ultralytics"):
        monkeypatch.setattr(f"yolov5_ema.cli.doctor._{name}", lambda show, name=name: {name: {"problem": ""}})
    monkeypatch.setattr(self_test, "SHAPES", self_test.SHAPES[:2])
    monkeypatch.setattr(self_test, "_places", lambda: [("cpp", torch.device("cpu"))])
    if native.library().handle is None:
        pytest.skip(native.library().reason)
    assert main(["doctor", "--check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (start,) = (place for place, line in enumerate(lines) if line.startswith("kernels, compared"))
    assert lines[start + 1].split() == [
        *("block", "kernel", "pass", "device", "dtype", "layout", "result", "error", "allowed"),
    ]
    row = next(line for line in lines if "EMA    cpp     backward  cpu     bfloat16  sliced         right" in line)
    assert 0 < float(row.split()[-2]) < float(row.split()[-1]) == pytest.approx(2**-5, abs=1e-3)
    checks = len(lines) - start - 4
    assert checks > 50 and lines[-2:] == ["", f"{checks} checks: none failed"]
    monkeypatch.setattr(cpp, "backward", lambda *arguments: (_ for _ in ()).throw(RuntimeError("an illegal launch")))
    assert main(["doctor", "--check", "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)["kernels"]
    assert len(rows) == checks
    wrong = [row for row in rows if row["is_fault"]]
    assert len(wrong) == 4 * 3 and all(row["block"] == "EMA" and row["kind"] == "backward" for row in wrong)
    assert wrong[0]["result"] == "fails" and wrong[0]["error"] is None
    assert wrong[0]["reason"] == "at (2, 8, 5, 7): RuntimeError: an illegal launch"
    assert main(["doctor", "--check"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"{checks} checks: 12 failed: EMA cpp backward cpu float32 contiguous, ")
    assert last.endswith(" and 4 more") and last.count("EMA cpp backward cpu") == 8


def test_without_yolov5(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "yolov5", None)
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "\nYOLOv5         no YOLOv5 found. Install one (pip install 'yolov5-ema[v6]', or [v7])" in said
    assert "\nultralytics    ultralytics 8" in said and "\nquirks" not in said
    assert said.endswith("can be imported, and its parse_model knows the blocks.\n")


def test_without_ultralytics_in_a_clone(clone, monkeypatch, capsys):
    """The code of the clone is not run, because it was not named."""
    monkeypatch.setitem(sys.modules, "ultralytics", None)
    monkeypatch.chdir(clone)
    monkeypatch.setenv("YOLOV5_EMA_IMPLEMENTATION", "exact")
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert said.endswith(
        "\nultralytics    the package ultralytics is not installed: pip install 'yolov5-ema[ultralytics]'\n"
    )
    assert said.count("can be imported, and its parse_model knows the blocks.\n") == 1
    assert f"(clone, {clone}): train, val, detect and other commands that run YOLOv5 use this one" in said
    assert "YOLOV5_EMA_IMPLEMENTATION=exact\nEMA on cpu     exact: asked for" in said


def test_without_either(monkeypatch, capsys):
    for name in ("yolov5", "ultralytics"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["doctor", "--json"]) == 2
    out, error = capsys.readouterr()
    found = json.loads(out)
    assert found["yolov5"]["version"] is found["ultralytics"]["folder"] is None and found["quirks"] == []
    assert "error: neither YOLOv5 nor ultralytics can be used here. no YOLOv5 found. Install one" in error


@pytest.fixture
def broken(package_root, tmp_path, monkeypatch):
    """The folder of an installed package ``yolov5`` that cannot be imported, and whose ``train.py`` was rewritten."""
    root = tmp_path / "packages" / "yolov5"
    train = (package_root / "train.py").read_text().replace("torch.save(", "write_checkpoint(")
    files = {"models/yolo": "import yolov5\nraise OSError('not here')", "train": train, "__init__": ""}
    for name, text in {**files, "models/common": "", "utils/general": ""}.items():
        (root / f"{name}.py").parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.py").write_text(text)
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "yolov5"}
    monkeypatch.syspath_prepend(root.parent)
    for name in before:
        del sys.modules[name]
    yield root
    for name in [name for name in sys.modules if name.split(".")[0] == "yolov5"]:
        del sys.modules[name]
    sys.modules.update(before)


def test_a_yolov5_that_cannot_be_imported(broken, capsys):
    """That is an error only if it was named, because ultralytics can be used."""
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    reason = f"YOLOv5 6.0.7 (PyPI package, {broken}) cannot be imported: OSError: not here"
    assert f"\nnot usable     {reason}\n\nultralytics    ultralytics 8" in said
    assert "resume-after-kill         off, and not known whether it is needed" in said
    assert "If it is needed: train --resume after a kill" in said
    assert "runs-here                 off: not needed" in said
    assert "not known      crops-stay, data-sets, " in said
    assert main(["doctor", "--yolov5", str(broken)]) == 2
    assert f"error: {reason}" in capsys.readouterr().err
