"""Fixtures of the tests of ``yolov5-ema compare``, most of which use simulated trainings (`played_comparisons`)."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import SMALL_YOLO
from played_comparisons import CHECK_MODEL, MODEL_INFO, Played, by_content, checked_once, info_of_yolo

from yolov5_ema.cfgs.dry_run import quiet
from yolov5_ema.cfgs.generator import build_cfg, format_cfg
from yolov5_ema.checkpoints.loading import save_checkpoint
from yolov5_ema.cli.main import main
from yolov5_ema.comparing import by_ultralytics, by_yolov5
from yolov5_ema.comparing import picture as comparison_picture
from yolov5_ema.comparing.runs import Runner
from yolov5_ema.scripts import preflight


@pytest.fixture
def two_cfgs(engine, own_folder):
    """The test runs in a folder with two cfgs, with the shim installed."""
    for name in ("plain", "other"):
        Path(f"{name}.yaml").write_text(format_cfg(size="n", block="none", nc=3))


@pytest.fixture
def played(monkeypatch):
    """Simulated trainings; models are built once for all tests, and no picture is drawn."""
    trainings = Played()
    monkeypatch.setattr(Runner, "_call", lambda *args, **kwargs: trainings(*args, **kwargs))
    monkeypatch.setattr(preflight, "check_model", by_content(CHECK_MODEL))
    monkeypatch.setattr(by_yolov5, "model_info", by_content(MODEL_INFO))
    monkeypatch.setattr(by_ultralytics.UltralyticsTrainer, "check", checked_once)
    info = by_content(info_of_yolo)
    monkeypatch.setattr(by_ultralytics, "ultralytics_info", lambda name, cfg, *args: info(cfg, *args))
    monkeypatch.setattr(comparison_picture, "draw", lambda *_: None)
    return trainings


@pytest.fixture
def refused_comparison(capsys, own_folder, played):
    """Run a comparison that must be refused before anything is trained or written; returns its message."""

    def run(argv: list[str]) -> str:
        before = {path: path.stat().st_mtime_ns for path in own_folder.rglob("*") if path.is_file()}
        calls = len(played.calls)
        capsys.readouterr()
        code = main(argv)
        message = capsys.readouterr().err
        assert code == 2 and message.startswith("yolov5-ema: error: "), message
        after = {path: path.stat().st_mtime_ns for path in own_folder.rglob("*") if path.is_file()}
        assert after == before and len(played.calls) == calls
        return message

    return run


@pytest.fixture
def weights(engine, own_folder):
    """A function that writes a checkpoint of yolov5n with a block, at the usual places."""

    def write(name: str, block: str) -> None:
        with quiet():
            model = engine.module("models.yolo").Model(build_cfg(size="n", block=block, nc=3))
        content = {"model": model.half(), "ema": None, "epoch": -1, "optimizer": None}
        save_checkpoint(content, own_folder / name, engine=engine)

    return write


@pytest.fixture
def two_yolos(ultralytics, own_folder):
    for name in ("small", "small26"):
        Path(f"{name}.yaml").write_text(SMALL_YOLO)
