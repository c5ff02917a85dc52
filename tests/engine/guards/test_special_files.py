"""Data sets with named pipes among their images, and versions of Ray that let anybody connect."""

from __future__ import annotations

import glob
import os
import types

import cv2
import numpy as np
import pytest
from PIL import Image

from yolov5_ema.detecting import by_ray as ray_engine
from yolov5_ema.engine.guards.special_files import SPECIAL_FILES, found_by_glob
from yolov5_ema.engine.quirks.base import SourceModule
from yolov5_ema.errors import UserError
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.patching import Patches

pytestmark = pytest.mark.usefixtures("messages")

SOURCE = "def read(file):\n    return cv2.imread(file), Image.open(file).size, open(file, 'rb').read(2)\n"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_yolov5_opens_regular_files_only_of_a_data_set(tmp_path):
    module = types.ModuleType("dataloaders")
    vars(module).update(cv2=cv2, Image=Image)
    exec(SOURCE, vars(module))
    subject = SourceModule(Engine(tmp_path, "clone", "7.0"), "utils.dataloaders", SOURCE, module)
    assert SPECIAL_FILES.needed(subject)
    patches = Patches()
    SPECIAL_FILES.apply(subject, patches)
    image, pipe = tmp_path / "a.png", tmp_path / "pipe.png"
    cv2.imwrite(str(image), np.zeros((4, 6, 3), np.uint8))
    os.mkfifo(pipe)
    pixels, size, head = module.read(str(image))
    assert pixels.shape == (4, 6, 3) and size == (6, 4) and head == b"\x89P"
    for function in (module.cv2.imread, module.Image.open, module.open):
        with pytest.raises(UserError, match="a pipe"):
            function(str(pipe))
        with pytest.raises(UserError, match="a pipe"):
            function("/dev/zero")
    with module.open(tmp_path / "new.txt", "a") as stream:
        stream.write("x")
    assert module.open(tmp_path / "new.txt").read() == "x"
    patches.undo()
    assert module.cv2 is cv2 and module.Image is Image and not hasattr(module, "open")


def test_images_are_found_as_glob_finds_them_but_not_in_circles(tmp_path):
    top = tmp_path / "images"
    for file in ("a.jpg", "b", ".hidden.jpg", "sub/c.png", "sub/deep/d.jpg", "with.dot/e.jpg", ".git/f.jpg"):
        (top / file).parent.mkdir(parents=True, exist_ok=True)
        (top / file).touch()
    (tmp_path / "elsewhere/more").mkdir(parents=True)
    (tmp_path / "elsewhere/more/g.jpg").touch()
    (top / "link").symlink_to(tmp_path / "elsewhere")
    pattern = str(top / "**" / "*.*")
    found = found_by_glob(pattern, recursive=True)
    assert sorted(found) == sorted(glob.glob(pattern, recursive=True)) and len(found) == 6
    assert found_by_glob(str(top / "*.jpg")) == [str(top / "a.jpg")]
    (top / "sub" / "round").symlink_to(top)
    assert sorted(found_by_glob(pattern, recursive=True)) == sorted(found)
    assert len(glob.glob(pattern, recursive=True)) > 100  # and with a second such link it never ends
    (top / "sub" / "again").symlink_to(top)
    assert sorted(found_by_glob(pattern, recursive=True)) == sorted(found)


@pytest.mark.slow
def test_the_ray_that_is_here_asks_for_a_token(monkeypatch, capsys):
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    ray_engine.check_installed("10.0.0.1:6379")  # its owner is responsible for that
    assert "RAY_AUTH_MODE" not in os.environ
    ray_engine.check_installed()
    assert os.environ["RAY_AUTH_MODE"] == "token" and capsys.readouterr().err == ""


def test_a_ray_that_knows_no_token_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setattr(ray_engine, "_TOKENS", "json.decoder")
    ray_engine._check_keeps_strangers_out("2.60.0")
    monkeypatch.setattr(ray_engine, "_TOKENS", "json.no_such_module")
    with pytest.raises(UserError, match=r"Ray 2\.51\.0 .* lets anybody run code"):
        ray_engine._check_keeps_strangers_out("2.51.0")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    ray_engine._check_keeps_strangers_out("2.51.0")
    assert "RAY_AUTH_MODE=disabled: while Ray runs" in capsys.readouterr().err
