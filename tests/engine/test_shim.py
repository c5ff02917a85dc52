"""install, uninstall, installed: idempotent, and undone completely."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import yolov5_ema
from yolov5_ema.errors import EngineNotFoundError, UserError


@pytest.fixture(autouse=True)
def nothing_left_behind():
    yolov5_ema.uninstall()  # commands that other tests ran in this process leave it on
    yield
    yolov5_ema.uninstall()


def test_install_is_idempotent_and_uninstall_restores_everything(package_root):
    with (
        yolov5_ema.installed()
    ):  # what YOLOv5 and its libraries do to a process when they are first imported stays
        importlib.import_module("yolov5.utils.metrics")
    finders, environment = list(sys.meta_path), dict(os.environ)
    yolov5_ema.install()
    assert sys.meta_path != finders and dict(os.environ) != environment
    import yolov5.models.yolo as yolo
    import yolov5.utils.general as general
    import yolov5.utils.metrics as metrics

    wrapped = yolo.parse_model
    assert yolov5_ema.install().root == package_root and yolo.parse_model is wrapped
    yolov5_ema.uninstall()
    yolov5_ema.uninstall()

    import numpy
    import torch

    assert yolo.parse_model.__module__ == "yolov5.models.yolo" and not hasattr(
        yolo.parse_model, "__wrapped__"
    )
    assert general.np is numpy and general.torch is torch and metrics.np is numpy
    assert general.check_dataset.__code__.co_filename == general.__file__
    assert sys.meta_path == finders and dict(os.environ) == environment


def test_without_the_shim_yolov5_does_not_know_the_blocks():
    with yolov5_ema.installed():
        from yolov5.models.yolo import Model
    from yolov5_ema.engine.cfg_generator import build_cfg

    with pytest.raises(NameError):
        Model(build_cfg(size="n", block="EMA"))
    with yolov5_ema.installed():
        assert type(Model(build_cfg(size="n", block="EMA")).model[7]) is yolov5_ema.EMA


def test_installed_leaves_an_earlier_install_in_place():
    yolov5_ema.install()
    with yolov5_ema.installed():
        pass
    assert yolov5_ema.is_installed()


def test_install_from_many_threads():
    errors: list[BaseException] = []

    def work():
        try:
            for _ in range(20):
                yolov5_ema.install()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    import yolov5.models.yolo as yolo

    assert not hasattr(yolo.parse_model.__wrapped__, "__wrapped__")  # wrapped once


def test_a_module_names_its_yolov5(package_root):
    with yolov5_ema.installed():
        import yolov5
        import yolov5.models.yolo as yolo
    assert yolov5_ema.install(yolo).root == package_root
    yolov5_ema.uninstall(yolo)
    assert yolov5_ema.install(yolov5).root == package_root


def test_two_yolov5_in_one_process_are_refused(clone):
    yolov5_ema.install()
    with pytest.raises(UserError, match="uninstall"):
        yolov5_ema.install(clone)


def test_wrong_choice_of_conflicts():
    with pytest.raises(UserError, match="error, ours, theirs"):
        yolov5_ema.install(conflicts="mine")


def test_no_yolov5(tmp_path, monkeypatch):
    from yolov5_ema.engine import locate

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(locate, "_installed_package", lambda: None)
    with pytest.raises(EngineNotFoundError, match=r"pip install 'yolov5-ema\[v6\]'.*--yolov5 PATH"):
        locate.locate()
    with pytest.raises(EngineNotFoundError, match="no such folder"):
        locate.locate(tmp_path / "nowhere")
    with pytest.raises(EngineNotFoundError, match="is no YOLOv5"):
        locate.locate(tmp_path)


def test_what_is_found_where(clone, tmp_path, monkeypatch, package_root):
    from yolov5_ema.engine.locate import locate

    monkeypatch.chdir(tmp_path)
    assert locate().kind == "package" and locate().root == package_root
    assert locate(clone).kind == "clone"
    monkeypatch.setenv("YOLOV5_EMA_YOLOV5", str(clone))
    assert locate().root == clone
    monkeypatch.delenv("YOLOV5_EMA_YOLOV5")
    monkeypatch.chdir(clone)
    assert locate().root == clone
    monkeypatch.chdir(clone.parent)  # a folder with a clone called yolov5 in it: the package goes first
    assert locate().kind == "package"


IN_A_CLONE = """
import sys, yolov5_ema
engine = yolov5_ema.install({clone!r})
assert engine.kind == "clone" and engine.version == {version!r}, engine
from models.yolo import Model, parse_model
from yolov5_ema.engine.cfg_generator import build_cfg
model = Model(build_cfg(size="n", block="CBAM"))
assert type(model.model[7]) is yolov5_ema.CBAM
assert type(model).__module__ == "models.yolo" and "yolov5" not in sys.modules
import utils.general, numpy, torch
yolov5_ema.uninstall()
assert utils.general.np is numpy and utils.general.torch is torch
import models.yolo
assert not hasattr(models.yolo.parse_model, "__wrapped__")
"""


def test_a_clones_models_yolo(clone, package_root):
    from yolov5_ema.engine.locate import engine_at

    version = engine_at(package_root).version
    looks_like = {"6.0.7": "6.0", "7.0.14": "7.0+"}[version]
    code = IN_A_CLONE.format(clone=str(clone), version=looks_like)
    repository = Path(yolov5_ema.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
