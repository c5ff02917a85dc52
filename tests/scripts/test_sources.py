"""Sources of ``detect`` without a display, a network, or the package that YOLOv5 needs for them."""

from __future__ import annotations

import argparse
import re
import shlex
import types

import pytest
from conftest import laid_aside

import yolov5_ema
from yolov5_ema.engine.quirks import display, wandb_epochs
from yolov5_ema.engine.quirks.base import SourceModule
from yolov5_ema.errors import UserError
from yolov5_ema.scripts import sources
from yolov5_ema.upstream.locate import Engine, engine_at
from yolov5_ema.upstream.patching import Patches

pytestmark = pytest.mark.usefixtures("messages")

SCREENS = ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")


@pytest.fixture
def no_display(monkeypatch):
    monkeypatch.setattr(display.sys, "platform", "linux")
    for name in SCREENS:
        monkeypatch.delenv(name, raising=False)
    display.has_display.cache_clear()
    yield
    display.has_display.cache_clear()


def options(source: object, **flags: object) -> argparse.Namespace:
    return argparse.Namespace(source=str(source), **flags)


def test_no_window_is_opened_without_a_display(no_display, capsys):
    """YOLOv5's own check opens a window, and OpenCV's Qt would end this process."""
    with yolov5_ema.installed() as engine:
        general = engine.module("utils.general")
        assert general.check_imshow() is False
    assert "no display here" in capsys.readouterr().out


def test_a_display_that_is_named_and_not_there_is_none(no_display, monkeypatch):
    monkeypatch.setenv("DISPLAY", ":987")
    assert display.has_display() is False


def test_view_img_is_left_out_without_a_display(no_display, tiny_set, capsys):
    opt = options(tiny_set.parent / "images/val", view_img=True)
    with yolov5_ema.installed() as engine:
        sources.check_source(opt, engine)
    assert opt.view_img is False and "--view-img is ignored" in capsys.readouterr().out


@pytest.mark.parametrize("source", ["https://youtu.be/abc", "https://www.youtube.com/watch?v=abc"])
def test_youtube_says_what_to_install(monkeypatch, source):
    with yolov5_ema.installed() as engine:
        monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(UserError, match=rf"pip install pafy .*yt-dlp {re.escape(shlex.quote(source))}\)"):
            sources.check_source(options(source), engine)


def test_the_package_for_youtube_is_the_one_that_the_release_imports(monkeypatch, tmp_path):
    (tmp_path / "utils").mkdir()
    asking = "def load():\n    from ultralytics.data.loaders import get_best_youtube_url\n"
    (tmp_path / "utils/dataloaders.py").write_text(asking)  # as upstream's newest does
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install pytubefix"):
        sources.check_source(options("https://youtu.be/abc"), Engine(tmp_path, "clone", "newest"))


def test_the_screen_says_what_to_install_or_which_release(no_display, monkeypatch, own_folder):
    with (
        yolov5_ema.installed() as engine,
        pytest.raises(UserError, match=r"cannot look at the screen; v7\.0"),
    ):
        sources.check_source(options("screen 0"), engine)
    newer = engine_at(laid_aside("7.0.14"))
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install mss"):
        sources.check_source(options("screen"), newer)
    (own_folder / "screens").mkdir()
    (own_folder / "screens/a.jpg").touch()
    opt = options("screens")
    sources.check_source(opt, newer)  # a folder, not the screen
    assert opt.source == str(own_folder / "screens")


def test_a_list_of_images_is_not_read_as_streams(own_folder):
    """v6.0 would detect in a black frame for each image."""
    (own_folder / "a.jpg").touch()
    (own_folder / "list.txt").write_text("\na.jpg\ngone.jpg\n")
    (own_folder / "streams.txt").write_text("rtsp://example.org/a.jpg\n0\nfilm.mp4\n")
    with yolov5_ema.installed() as engine:
        sources.check_source(options("streams.txt"), engine)
        with pytest.raises(UserError, match=r"list\.txt: detect of .*a\.jpg is an image.*yolov5-ema predict"):
            sources.check_source(options("list.txt"), engine)
    newer = engine_at(laid_aside("7.0.14"))
    sources.check_source(options("list.txt"), newer)
    sources.check_source(options("list.txt"), newer, "segment.predict")


def test_a_failed_download_and_a_missing_package_are_messages():
    import urllib.error

    from yolov5_ema.scripts.mistakes import errors_as_user_errors

    with yolov5_ema.installed() as engine:
        with pytest.raises(UserError, match=r"a download has failed: .*no route"), errors_as_user_errors(engine):
            raise urllib.error.URLError("no route")
        code = compile("import no_such_package.part", str(engine.root / "detect.py"), "exec")
        with pytest.raises(UserError, match="pip install no_such_package"), errors_as_user_errors(engine):
            exec(code, {})
        with pytest.raises(ModuleNotFoundError), errors_as_user_errors(engine):  # not from YOLOv5: our own mistake
            exec(compile("import no_such_package", "ours.py", "exec"), {})


def test_wandb_takes_the_argument_that_7_0_14_gives(tmp_path):
    root = laid_aside("7.0.14")
    source = (root / "utils/loggers/wandb/wandb_utils.py").read_text()
    ended = []
    logger = type("WandbLogger", (), {"end_epoch": lambda self: ended.append(self)})
    subject = SourceModule(
        engine_at(root), "utils.loggers.wandb.wandb_utils", source, types.SimpleNamespace(WandbLogger=logger)
    )
    with pytest.raises(TypeError, match="best_result"):
        logger().end_epoch(best_result=True)
    assert wandb_epochs.WANDB_EPOCHS.needed(subject)
    patches = Patches()
    wandb_epochs.WANDB_EPOCHS.apply(subject, patches)
    logger().end_epoch(best_result=True)
    assert len(ended) == 1
    patches.undo()
    with pytest.raises(TypeError):
        logger().end_epoch(best_result=True)
