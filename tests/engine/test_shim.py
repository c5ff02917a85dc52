"""install, uninstall, installed: they can be repeated, and are undone completely."""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import sys
import threading
import types
from pathlib import Path

import pytest
from cases.shim import installs_in_a_clone
from fresh_process import run_in_copy

import yolov5_ema
from yolov5_ema.checkpoints import loading as checkpoints
from yolov5_ema.engine import activation, shim
from yolov5_ema.engine.quirks import Quirk
from yolov5_ema.errors import ConfigError, EngineNotFoundError, UserError
from yolov5_ema.upstream.locate import engine_at


@pytest.fixture(autouse=True)
def nothing_left_behind():
    yolov5_ema.uninstall()  # commands of other tests in this process leave it on
    yield
    yolov5_ema.uninstall()


def test_install_is_idempotent_and_uninstall_restores_everything(package_root):
    with yolov5_ema.installed():  # what YOLOv5 and its libraries change in a process when they are first imported stays
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

    assert yolo.parse_model.__module__ == "yolov5.models.yolo" and not hasattr(yolo.parse_model, "__wrapped__")
    assert general.np is numpy and general.torch is torch and metrics.np is numpy
    assert general.check_dataset.__code__.co_filename == general.__file__
    assert sys.meta_path == finders and dict(os.environ) == environment


def test_without_the_shim_yolov5_does_not_know_the_blocks():
    with yolov5_ema.installed():
        from yolov5.models.yolo import Model
    from yolov5_ema.cfgs.generator import build_cfg

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

    assert not hasattr(yolo.parse_model.__wrapped__, "__wrapped__")  # wrapped only once


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


@pytest.fixture
def fork(package_root, monkeypatch, tmp_path):
    """A YOLOv5 with its own CBAM, which only returns its input, and a cfg with such a row."""
    import torch
    import yaml

    from yolov5_ema.cfgs.generator import build_cfg

    class CBAM(torch.nn.Identity):
        __module__, __qualname__ = "yolov5.models.yolo", "CBAM"

    with yolov5_ema.installed():
        yolo = importlib.import_module("yolov5.models.yolo")
    monkeypatch.setattr(yolo, "CBAM", CBAM, raising=False)
    cfg = tmp_path / "fork.yaml"
    cfg.write_text(yaml.safe_dump(build_cfg(size="n", block="CBAM")))
    return cfg


@pytest.mark.parametrize("choice", ["ours", "theirs"])
def test_all_that_reads_a_cfg_keeps_to_the_choice_of_install(fork, choice, own_folder):
    from yolov5_ema.checkpoints.transferring import transfer_checkpoint
    from yolov5_ema.engine.model_info import model_info
    from yolov5_ema.scripts.preflight import check

    with yolov5_ema.installed(conflicts=choice) as engine:
        rows = model_info(fork, imgsz=64).rows
        assert (rows[7].parameters > 0) is (choice == "ours") and rows[7].module == "CBAM"
        check(argparse.Namespace(cfg=str(fork)), "train", engine)
        from yolov5.models.yolo import Model

        checkpoints.save_checkpoint({"model": Model(str(fork))}, "a.pt", engine=engine)
        transfer_checkpoint(Path("a.pt"), fork, Path("b.pt"), engine=engine)
    assert "YOLOV5_EMA_CONFLICTS" not in os.environ
    with yolov5_ema.installed(), pytest.raises(ConfigError, match="both a module of this YOLO"):
        model_info(fork, imgsz=64)


def test_a_later_choice_counts_and_an_inner_one_ends(fork):
    def is_ours() -> bool:
        from yolov5.models.yolo import Model

        return isinstance(Model(str(fork)).model[7], yolov5_ema.CBAM)

    yolov5_ema.install(conflicts="ours")
    with yolov5_ema.installed(conflicts="theirs"):
        assert not is_ours()
    assert is_ours()
    yolov5_ema.install()
    assert is_ours()
    yolov5_ema.install(conflicts="theirs")
    assert not is_ours()


def test_an_environment_that_is_on_the_path_through_a_link_keeps_its_place(package_root, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(package_root.parent)
    path = ["first", *(str(tmp_path / "link") if place == str(package_root.parent) else place for place in sys.path)]
    monkeypatch.setattr(sys, "path", list(path))
    assert str(tmp_path / "link") in path
    with yolov5_ema.installed():
        assert sys.path == path


@pytest.mark.parametrize("place", ["a quirk", "models.yolo"])
def test_an_install_that_fails_half_way_leaves_nothing(package_root, monkeypatch, place):
    with yolov5_ema.installed():
        importlib.import_module("yolov5.utils.metrics")
        general = importlib.import_module("yolov5.utils.general")
    finders, environment, path = list(sys.meta_path), dict(os.environ), list(sys.path)
    before = dict(vars(general))

    def fail(*_):
        raise RuntimeError("half-way")

    with monkeypatch.context() as broken:
        if place == "a quirk":
            bad = Quirk("bad", "", "", needed=lambda module: module.name == "utils.metrics" or None, apply=fail)
            broken.setattr(activation, "GUARDS", (*activation.GUARDS, bad))
        else:
            broken.setattr(shim, "_with_parser", fail)
        with pytest.raises(RuntimeError, match="half-way"):
            yolov5_ema.install()
    assert (sys.meta_path, dict(os.environ), sys.path) == (finders, environment, path)
    assert dict(vars(general)) == before and not yolov5_ema.is_installed()
    yolov5_ema.install()
    assert yolov5_ema.is_installed()


def test_files_of_a_yolov5_may_be_links(clone, tmp_path):
    """As some installers arrange packages; if it is not recognised, it runs without any guard."""
    linked = tmp_path / "linked"
    for file in clone.rglob("*.py"):
        place = linked / file.relative_to(clone)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(file)
    engine = engine_at(linked)
    assert engine.owns(str(linked / "models/yolo.py")) and engine.owns(str(linked / "train.py"))
    assert not engine.owns(str(clone / "models/yolo.py"))
    assert not engine.owns(str(linked / "env/site-packages/torch.py"))
    (tmp_path / "folders").mkdir()
    for name in ("models", "utils"):
        (tmp_path / "folders" / name).symlink_to(clone / name)
    (tmp_path / "folders/train.py").symlink_to(clone / "train.py")
    assert engine_at(tmp_path / "folders").owns(str(tmp_path / "folders/models/yolo.py"))


def test_a_models_yolo_of_somebody_else_is_refused(clone, monkeypatch):
    stranger = types.ModuleType("models.yolo")
    stranger.__file__ = "/elsewhere/models/yolo.py"
    before = set(sys.modules)
    monkeypatch.setitem(sys.modules, "models.yolo", stranger)
    with pytest.raises(UserError, match=r"elsewhere.*would not be guarded\. Start a new Python process"):
        yolov5_ema.install(clone)
    assert not yolov5_ema.is_installed() and set(sys.modules) - before <= {"models.yolo"}


@pytest.mark.parametrize(
    "change, words",
    [
        (("def parse_model", "def parse_rows"), r"yolo\.py has no function parse_model"),
        (("class Detect(", "class Detect(("), r"cannot be imported: .*yolo\.py, line \d+: "),
    ],
)
def test_a_fork_that_is_none(change, words, clone, tmp_path, monkeypatch):
    shutil.copytree(clone, tmp_path / "fork")
    file = tmp_path / "fork/models/yolo.py"
    file.write_text(file.read_text().replace(*change))
    before = set(sys.modules)
    try:
        with pytest.raises(UserError, match=words):
            yolov5_ema.install(tmp_path / "fork")
        assert not yolov5_ema.is_installed()
    finally:
        for name in set(sys.modules) - before:
            del sys.modules[name]


def test_no_yolov5(tmp_path, monkeypatch):
    from yolov5_ema.upstream import locate

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(locate, "_installed_package", lambda: None)
    with pytest.raises(EngineNotFoundError, match=r"pip install 'yolov5-ema\[v6\]'.*--yolov5 PATH"):
        locate.locate()
    with pytest.raises(EngineNotFoundError, match="no such folder"):
        locate.locate(tmp_path / "nowhere")
    with pytest.raises(EngineNotFoundError, match="is not a YOLOv5"):
        locate.locate(tmp_path)


def test_what_is_found_where(clone, tmp_path, monkeypatch, package_root):
    from yolov5_ema.upstream.locate import locate

    monkeypatch.chdir(tmp_path)
    assert locate().kind == "package" and locate().root == package_root
    assert locate(clone).kind == "clone"
    monkeypatch.setenv("YOLOV5_EMA_YOLOV5", str(clone))
    assert locate().root == clone
    monkeypatch.delenv("YOLOV5_EMA_YOLOV5")
    monkeypatch.chdir(clone)
    assert locate().root == clone
    monkeypatch.chdir(clone.parent)  # a folder with a clone called yolov5 in it: the package has priority
    assert locate().kind == "package"


def test_a_clones_models_yolo(clone, package_root):
    from yolov5_ema.upstream.locate import engine_at

    version = engine_at(package_root).version
    looks_like = {"6.0.7": "6.0", "7.0.14": "7.0+"}[version]
    done = run_in_copy(installs_in_a_clone, clone, looks_like)
    assert done.returncode == 0, done.stderr
