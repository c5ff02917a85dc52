"""``inspect`` and ``convert`` as commands: output, exit codes, and what plain YOLOv5 computes afterwards."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
from cases import plain_yolov5
from conftest import laid_aside, run_cli
from fresh_process import run_fresh

import yolov5_ema
from yolov5_ema.cfgs.generator import build_cfg
from yolov5_ema.cli.main import main
from yolov5_ema.upstream.locate import engine_at

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Use small layers with one thread: threads that wait for each other take longer than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Evil:
    def __reduce__(self):
        return os.system, ("touch ran",)


def model_of(root: Path) -> str:
    """The class name of a detector in a YOLOv5."""
    return "DetectionModel" if "class DetectionModel" in (root / "models/yolo.py").read_text() else "Model"


def test_inspect_prints_what_is_there(trained, capsys, package_root):
    assert main(["inspect", str(trained)]) == 0
    text = capsys.readouterr().out
    for words in (
        "YOLOv5 checkpoint, stripped for inference",
        f"model: models.yolo.{model_of(package_root)} (names of a clone)",
        "1,768,824 parameters, 361 tensors of float16, int64",
        "3 classes: disc, box, cross",
        "strides 8, 16, 32",
        "attention in row 7: EMA (channels=128, groups=32, cross_spatial=True",
        f"nothing outside the allow-list, judged by the allow-list for YOLOv5 {engine_at(package_root).version}",
    ):
        assert words in text
    assert re.search(r"^ +7 +-1 +1  EMA +\[\]$", text, re.MULTILINE)


def test_layers_of_timm_have_the_names_of_rows(own_folder, package_root, capsys):
    pytest.importorskip("timm")
    with yolov5_ema.installed() as engine:
        content = build_cfg(size="n", block="timm.eca", nc=3)
        torch.save({"model": engine.module("models.yolo").Model(content), "ema": None}, "eca.pt")
    assert main(["inspect", "eca.pt"]) == 0
    text = capsys.readouterr().out
    assert "attention in row 7: timm.eca (channels=128" in text and "TimmEca (" not in text
    assert "\n  timm: Sigmoid 2\n" in text and "others:" not in text


def test_inspect_warns_and_runs_nothing(own_folder, trained, capsys):
    torch.save({"model": Evil(), "ema": None}, "evil.pt")
    assert main(["inspect", "evil.pt"]) == 1
    assert re.search(r"^warning: \w+\.system: no checkpoint needs it", capsys.readouterr().out, re.MULTILINE)
    assert main(["inspect", "evil.pt", "nowhere.pt", str(trained), "--json"]) == 2
    output = capsys.readouterr()
    assert "weights not found: nowhere.pt" in output.err
    found = json.loads(output.out)
    assert [len(one["warnings"]) for one in found] == [1, 0]
    assert found[1]["models"][0]["blocks"][0]["row"] == 7
    assert not (own_folder / "ran").exists()


def test_inspect_without_a_yolov5(trained, capsys, monkeypatch):
    from yolov5_ema.upstream import locate

    monkeypatch.setattr(locate, "_installed_package", lambda: None)
    monkeypatch.delenv("YOLOV5_EMA_YOLOV5", raising=False)
    assert main(["inspect", str(trained)]) == 0
    assert "judged by the names of modules only, because no YOLOv5 was found" in capsys.readouterr().out


def test_inspect_shows_control_characters_as_text(capsys):
    layer = torch.nn.Conv2d(1, 1, 1)
    layer.names = ["\x1b]0;gone\x07", "\ud800", "x" * 1000]
    torch.save({"model": layer}, "a.pt")
    main(["inspect", "a.pt"])
    text = capsys.readouterr().out
    assert "\x1b" not in text and r"\x1b]0;gone\x07" in text and r"\ud800" in text and "x" * 100 not in text


def test_inspect_refuses_what_is_no_checkpoint(refused, own_folder):
    (own_folder / "text.pt").write_text("hello")
    (own_folder / "graph.onnx").write_bytes(b"\x08\x08\x12\x07pytorch")
    assert "not a PyTorch checkpoint, or is cut off" in refused("inspect", "text.pt")
    assert "an ONNX graph" in refused("inspect", "graph.onnx")
    assert "is a folder" in refused("inspect", ".")
    assert "weights not found" in refused("inspect", "nowhere.pt")


def test_convert_there_and_back(own_folder, trained, capsys, package_root):
    assert main(["convert", str(trained), "-o", "best"]) == 0
    written = f"best.safetensors and best.yaml written: {model_of(package_root)}, 27 rows, 3 classes"
    assert written in capsys.readouterr().out
    assert main(["inspect", "best.safetensors"]) == 0
    assert "3 classes: disc, box, cross" in capsys.readouterr().out
    assert main(["convert", "best.safetensors", "-o", "back.pt"]) == 0
    assert main(["info", "best.yaml", "--img", "64"]) == 0
    assert "27 rows, 1,768,824 parameters" in capsys.readouterr().out
    assert main(["inspect", "back.pt"]) == 0
    assert sorted(path.name for path in own_folder.iterdir()) == ["back.pt", "best.safetensors", "best.yaml"]


def test_convert_refuses(refused, own_folder, trained):
    torch.save({"model": Evil()}, "evil.pt")
    assert "holds what no YOLOv5 checkpoint needs" in refused("convert", "evil.pt")
    assert "this writes .safetensors" in refused("convert", trained, "-o", "x.pt")
    (own_folder / "there.yaml").write_text("mine")
    assert "there.yaml is there already" in refused("convert", trained, "-o", "there")
    (own_folder / "cfg.yaml").write_text("nc: 1")
    assert "--cfg is for files with tensors only" in refused("convert", trained, "--cfg", "cfg.yaml", "-o", "y")
    assert "weights not found" in refused("convert", "nowhere.pt")
    assert not (own_folder / "ran").exists()


@pytest.mark.slow
def test_plain_yolov5_takes_what_came_back(own_folder, trained, clone):
    """Without the shim: BACK.pt computes in a clone what BEST.pt computes there."""
    assert main(["convert", str(trained), "-o", "best"]) == 0
    assert main(["convert", "best.safetensors", "-o", "back.pt"]) == 0
    config = own_folder / "config"
    config.mkdir()
    from yolov5_ema.engine.quirks.fonts import _font_on_disk

    (config / "Arial.ttf").write_bytes(_font_on_disk("Arial.ttf").read_bytes())
    env = {"YOLOV5_CONFIG_DIR": str(config)}
    done = run_fresh(plain_yolov5.reads_checkpoints, clone, trained, "back.pt", cwd=own_folder, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = done.stdout.splitlines()[-2:]
    assert first == second and "disc" in first


@pytest.mark.slow
@pytest.mark.parametrize("version", ["6.0.7", "7.0.14"])
def test_val_and_detect_give_the_same(own_folder, trained, tiny_set, version):
    env = {"YOLOV5_EMA_YOLOV5": str(laid_aside(version))}
    assert run_cli("convert", trained, "-o", "best", cwd=own_folder, env=env).returncode == 0
    assert run_cli("convert", "best.safetensors", "-o", "back.pt", cwd=own_folder, env=env).returncode == 0
    flags = ("--img", 64, "--save-txt", "--save-conf", "--conf-thres", 0.0001, "--project")
    for name, weights in (("one", trained), ("two", "back.pt")):
        for command, what in (
            ("val", ("--data", tiny_set)),
            ("detect", ("--source", tiny_set.parent / "images/test")),
        ):
            done = run_cli(command, "--weights", weights, *what, *flags, f"{name}-{command}", cwd=own_folder, env=env)
            assert done.returncode == 0, done.stderr[-2000:]
    for command in ("val", "detect"):
        one, two = (
            {path.name: path.read_text() for path in (own_folder / f"{name}-{command}/exp/labels").iterdir()}
            for name in ("one", "two")
        )
        assert one and one == two


@pytest.mark.slow
@pytest.mark.parametrize("version", ["4.0.14", "5.0.5", "6.1.9", "6.2.3"])
def test_checkpoints_of_other_releases(own_folder, version, capsys):
    root = laid_aside(version)
    done = run_fresh(plain_yolov5.writes_a_checkpoint, root.parent, "old.pt", cwd=own_folder)
    assert done.returncode == 0, done.stderr[-2000:]
    assert main(["inspect", "old.pt", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["models"][0]["cfg"]["nc"] == 3 and found["models"][0]["strides"] == [8, 16, 32]
    assert found["training"]["best_fitness"] == 0.25
    assert main(["convert", "old.pt", "-o", "new"]) == 0
    assert main(["convert", "new.safetensors", "-o", "back.pt"]) == 0
