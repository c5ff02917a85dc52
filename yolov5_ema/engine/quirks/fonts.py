"""Fonts: one from this machine instead of a download; and ``getsize``, which Pillow 10 removed."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import PIL
from PIL import ImageFont

from yolov5_ema.engine.quirks.base import Quirk, SourceModule, by_absence
from yolov5_ema.files import replacement
from yolov5_ema.upstream.patching import Patches
from yolov5_ema.upstream.source_code import Code

CONFIG_ENV = "YOLOV5_CONFIG_DIR"
_FONT_NAMES = ("Arial.ttf", "Arial.Unicode.ttf")
_CJK_FAMILIES = ("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "SimHei", "Arial Unicode MS")


def _config_dir() -> Path:
    """Where YOLOv5 looks for its fonts."""
    named = os.environ.get(CONFIG_ENV)
    return Path(named) if named else Path.home() / ".config" / "Ultralytics"


def _own_config_dir() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    wanted = cache / "yolov5-ema" / "config"
    try:
        wanted.mkdir(parents=True, exist_ok=True)
        return wanted
    except OSError:  # the home folder is not writable
        return _made_for_this_process()


@functools.cache
def _made_for_this_process() -> Path:
    """A new folder that no other user can have prepared; worker processes learn its path from the environment."""
    folder = tempfile.mkdtemp(prefix="yolov5-ema-config-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _font_on_disk(name: str) -> Path:
    """Find a font file for a name: a CJK font for the 'Unicode' name if there is one, else DejaVu Sans."""
    from matplotlib import font_manager, get_data_path

    if "Unicode" in name:
        for family in _CJK_FAMILIES:
            with contextlib.suppress(ValueError):
                return Path(font_manager.findfont(family, fallback_to_default=False))
    return Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


def _is_there(name: str) -> bool:
    if (_config_dir() / name).is_file():
        return True
    try:
        ImageFont.truetype(name, 10)
        return True
    except OSError:
        return False


def _font_needed(module: SourceModule) -> str | None:
    if CONFIG_ENV not in module.code.texts:
        return None
    missing = [name for name in _FONT_NAMES if not _is_there(name)]
    return f"{', '.join(missing)} not on this machine; DejaVu Sans is used" if missing else None


@contextlib.contextmanager
def _font_while_running(module: SourceModule) -> Iterator[None]:
    """Point YOLOv5's config folder to one that has the fonts, until the process ends.

    `utils.general` defines where the folder is, and `utils.plots` reads that when it is imported. So the environment
    variable must stay set; child processes inherit it.
    """
    config = _own_config_dir()
    for name in _FONT_NAMES:
        theirs = _config_dir() / name
        if not (config / name).is_file():
            with replacement(config / name, sync=False) as draft:
                shutil.copyfile(theirs if theirs.is_file() else _font_on_disk(name), draft)
    os.environ[CONFIG_ENV] = str(config)
    yield


FONT_FROM_DISK = Quirk(
    name="font-from-disk",
    symptom="import downloads Arial.ttf, and fails without a network",
    versions="all",
    needed=_font_needed,
    settled=lambda module: CONFIG_ENV in module.code.texts,
    while_running=_font_while_running,
)


def _text_size(font: Any, text: str) -> tuple[int, int]:
    """Return width and height in pixels, measured from the text's origin as `getsize` did."""
    _, _, right, bottom = font.getbbox(text)
    return right, bottom


def _with_getsize(make_font: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    font = make_font(*args, **kwargs)
    if not hasattr(font, "getsize"):
        font.getsize = functools.partial(_text_size, font)
    return font


def _font_maker(code: Code) -> str | None:
    return next((name for name in ("check_font", "check_pil_font") if code.defines(name)), None)


def _getsize_needed(module: SourceModule) -> str | None:
    is_asked = any(name.endswith("font.getsize") for name in module.code.names)
    if not is_asked or _font_maker(module.code) is None:
        return None
    if hasattr(ImageFont.FreeTypeFont, "getsize"):
        return None
    return f"Pillow {PIL.__version__} has no FreeTypeFont.getsize"


def _getsize_apply(module: SourceModule, patches: Patches) -> None:
    name = _font_maker(module.code)
    assert name is not None
    patches.wrap(module.module, name, _with_getsize)


FONT_GETSIZE = Quirk(
    name="font-getsize",
    symptom="AttributeError: 'FreeTypeFont' object has no attribute 'getsize'",
    versions="6.0 to 7.0.14",
    needed=_getsize_needed,
    settled=by_absence,
    apply=_getsize_apply,
)
