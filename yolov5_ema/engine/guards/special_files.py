"""Images and labels of a data set: YOLOv5 opens them unchecked, and waits forever if one of them is a pipe.

It also searches folders behind links, and never ends if these links form a circle.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import glob
import io
import os
from collections.abc import Callable
from typing import Any

from yolov5_ema.data.listing import IMAGE_SUFFIXES, files_below, has_suffix
from yolov5_ema.engine.quirks.base import Quirk, SourceModule
from yolov5_ema.errors import UserError
from yolov5_ema.files import open_regular, replacement
from yolov5_ema.reading import MOST_TEXT
from yolov5_ema.upstream.patching import Patches

_OPENS = frozenset({"cv2.imread", "Image.open", "open"})
_MODULES = ("datasets", "dataloaders")
_TO_READ = frozenset("rbt")


def open_file(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
    """`open`, which reads only regular files, and text files only up to a size limit.

    If a split of a data set is a single image, YOLOv5 opens the image as a list of images. It then gets a list with
    this one image.

    Raises:
        UserError: the file is a pipe, a socket or a device, or too large.
    """
    if set(mode) <= _TO_READ:
        _check(file, None if "b" in mode else MOST_TEXT)
    if mode == "r" and has_suffix(str(file), IMAGE_SUFFIXES):
        return io.StringIO(str(file))
    return builtins.open(file, mode, *args, **kwargs)


def checked(read: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function that reads an image: check first that the file is a regular file."""

    @functools.wraps(read)
    def wrapper(file: Any, *args: Any, **kwargs: Any) -> Any:
        _check(file)
        return read(file, *args, **kwargs)

    return wrapper


def found_by_glob(pattern: str, *args: Any, **kwargs: Any) -> list[str]:
    """`glob.glob`, but ``FOLDER/**/*.*`` (all files below a folder) does not follow links in circles.

    Raises:
        UserError: there are more folders than any data set has.
    """
    top, is_all, _ = str(pattern).partition(f"{os.sep}**{os.sep}*.*")
    if not is_all or glob.has_magic(top):
        return glob.glob(pattern, *args, **kwargs)
    return list(files_below(top))


def _saving_whole(make: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function that returns a Pillow image: saving it replaces the whole file, or a link in its place, at once.

    YOLOv5 rewrites a JPEG in place if its end marker is missing.
    """

    @functools.wraps(make)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        image = make(*args, **kwargs)
        if image is not None:
            image.save = functools.partial(_save, image.save)
        return image

    return wrapper


def _save(save: Callable[..., None], place: Any, *args: Any, **kwargs: Any) -> None:
    if not isinstance(place, (str, os.PathLike)):
        save(place, *args, **kwargs)
        return
    with replacement(place) as draft:
        save(draft, *args, **kwargs)


def _check(file: Any, most: int | None = None) -> None:
    if not isinstance(file, (str, os.PathLike)):
        return
    # other errors are reported by the function that reads the file
    with contextlib.suppress(OSError, ValueError), open_regular(file) as stream:
        if most is not None and os.fstat(stream.fileno()).st_size > most:
            raise UserError(f"{os.fspath(file)} is larger than {most // 2**20} MiB, too large for a text file")


def _apply(module: SourceModule, patches: Patches) -> None:
    patches.set(module.module, "open", open_file)
    theirs = module.module
    if hasattr(theirs, "glob"):
        patches.view(theirs, "glob", glob=found_by_glob)
    if hasattr(theirs, "cv2"):
        patches.view(theirs, "cv2", imread=checked(theirs.cv2.imread))
    if hasattr(theirs, "Image"):
        patches.view(theirs, "Image", open=_saving_whole(checked(theirs.Image.open)))
    if hasattr(theirs, "ImageOps"):
        patches.view(theirs, "ImageOps", exif_transpose=_saving_whole(theirs.ImageOps.exif_transpose))


SPECIAL_FILES = Quirk(
    name="special-files",
    symptom="train and val wait forever if an image of the data set is a named pipe",
    versions="all",
    needed=lambda module: module.name.split(".")[-1] in _MODULES and _OPENS & module.code.names,
    reason="it opens the images and labels of a data set",
    apply=_apply,
)
