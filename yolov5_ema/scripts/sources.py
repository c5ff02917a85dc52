"""Checks of ``detect --source`` before YOLOv5 starts: files, cameras, addresses, or the screen."""

from __future__ import annotations

import argparse
import glob
import importlib.util
import logging
import re
import shlex
from pathlib import Path
from urllib.parse import urlparse

from yolov5_ema.engine.quirks.display import has_display
from yolov5_ema.errors import UserError
from yolov5_ema.files import open_regular
from yolov5_ema.reading import read_text
from yolov5_ema.upstream.loaders import image_suffixes, loader_code, video_suffixes
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.source_code import code_in

_LOGGER = logging.getLogger(__name__)

ADDRESS = ("http://", "https://", "http:/", "https:/", "rtsp://", "rtmp://")
_YOUTUBE = ("www.youtube.com", "youtube.com", "youtu.be", "m.youtube.com")
_SCREEN = re.compile(r"screen(\s+\d+)*\s*", re.IGNORECASE)


def check_source(opt: argparse.Namespace, engine: Engine, script: str = "detect") -> None:
    """Check the source among the flags of a script that detects; without a display, switch ``--view-img`` off.

    Raises:
        UserError: the source does not exist, or needs something that is not installed; the message says what to do.
    """
    source = str(opt.source)
    if getattr(opt, "view_img", False) and not has_display():
        _LOGGER.info("no display here: --view-img is ignored, results are saved")
        opt.view_img = False
    if Path(source).exists():
        _check_file(source, engine, script)
        if source.lower().startswith("screen"):  # v7.0 and later would read this as the screen
            opt.source = str(Path(source).absolute())
    elif source.lower().startswith(ADDRESS):
        _check_address(source, engine)
    elif _SCREEN.fullmatch(source):
        _check_screen(source, engine)
    elif not source.isnumeric() and not source.endswith((".txt", ".streams")):
        _check_pattern(source)


def _check_file(source: str, engine: Engine, script: str) -> None:
    path = Path(source)
    if not path.is_dir():
        with open_regular(source):  # also a list of streams; a camera is named by a number, not as a file
            pass
        if path.suffix == ".txt":
            _check_list(path, engine, script)
        return
    known = image_suffixes(engine) | video_suffixes(engine)
    if not any(file.suffix.lower() in known for file in path.glob("*.*")):
        endings = ", ".join(sorted(suffix[1:] for suffix in known))
        raise UserError(f"--source {source}: no images or videos in this folder; known are {endings}")


def _check_list(file: Path, engine: Engine, script: str) -> None:
    """Refuse a list of images where its lines are addresses of streams: each image would be a black frame."""
    texts = code_in(engine.script_file(script)).texts
    if ".txt" not in texts or ".streams" in texts:
        return
    known = image_suffixes(engine)
    lines = map(str.strip, read_text(file, errors="replace").splitlines())
    image = next((line for line in lines if Path(line).suffix.lower() in known and Path(line).is_file()), None)
    if image is not None:
        raise UserError(
            f"--source {file}: {script.replace('.', '/')} of {engine} takes the lines of a .txt as addresses of "
            f"streams, and {image} is an image. Name the folder or a quoted glob, or use yolov5-ema predict, which "
            "takes lists"
        )


def _check_pattern(source: str) -> None:
    if "*" not in source:
        raise UserError(f"--source {source}: no such file or folder")
    if not glob.glob(source, recursive=True):
        raise UserError(f"--source {source}: no file matches")


def _check_address(source: str, engine: Engine) -> None:
    if urlparse(source).hostname not in _YOUTUBE:
        return
    package, install = "pafy", "pafy youtube_dl"
    if loader_code(engine).imports("ultralytics", "get_best_youtube_url"):
        package = install = "pytubefix"
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"--source {source}: {engine} downloads YouTube videos with the package {package}, which is not "
            f"installed: pip install {install}. Or download the video yourself (pip install yt-dlp; "
            f"yt-dlp {shlex.quote(source)}) and name the file"
        )


def _check_screen(source: str, engine: Engine) -> None:
    if not loader_code(engine).defines("LoadScreenshots"):
        raise UserError(f"--source {source}: {engine} cannot look at the screen; v7.0 and later can")
    if importlib.util.find_spec("mss") is None:
        raise UserError(f"--source {source}: looking at the screen needs the package mss: pip install mss")
    if not has_display():
        raise UserError(f"--source {source}: there is no display here")
