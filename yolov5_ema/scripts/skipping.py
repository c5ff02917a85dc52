"""Letting YOLOv5's detect skip files that it cannot read, and report them at the end.

YOLOv5's own loader ends the run at the first unreadable file, or mistakes the frames of the next file for its frames.
Here the loader that a script module uses is replaced by a subclass, which looks at each file first. Unreadable files
never reach YOLOv5; the others are passed to it decoded, so that no file is decoded twice.
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np

from yolov5_ema.data.image_files import read_image
from yolov5_ema.data.video_files import VideoFile
from yolov5_ema.errors import UserError
from yolov5_ema.files import free_names
from yolov5_ema.reading import read_text
from yolov5_ema.texts import counted, first_of
from yolov5_ema.upstream.patching import ModuleView, Patches

_LOGGER = logging.getLogger(__name__)

DONE, DONE_IN_PART = 0, 1
"""Exit codes: all files were used in full, or some were not. A user's mistake is 2, as in all commands."""

SCRIPTS = ("detect", "predict")
MOST_LINES = 20  # of a report; further lines are only counted


class SourceFiles:
    """What happened to the files of a run's ``--source``."""

    def __init__(self, script: str, opt: argparse.Namespace) -> None:
        self._script = script.replace(".", "/")
        self._source = str(getattr(opt, "source", ""))
        self._by_stem = bool(getattr(opt, "save_txt", False) or getattr(opt, "save_crop", False))
        self._problems: list[tuple[str, str]] = []
        self._renamed: list[tuple[str, str]] = []
        self._taken: dict[tuple[bool, str], str] = {}
        self._listed: set[str] = set()
        self.used = 0
        self.total = 0

    @classmethod
    def watched(cls, module: ModuleType, patches: Patches, script: str, opt: argparse.Namespace) -> SourceFiles:
        """Let ``detect``, and ``predict`` in segment/ and classify/, skip unreadable files; no other script changes."""
        files = cls(script, opt)
        if script.split(".")[-1] not in SCRIPTS:
            return files
        if hasattr(module, "LoadImages"):
            patches.set(module, "LoadImages", _tolerant(module.LoadImages, files, patches))
            patches.set(module, "cv2", ModuleView(module.cv2, imwrite=files.write_picture))
        else:  # classify/predict.py of v6.2 reads one image without a loader
            patches.set(module, "cv2", ModuleView(module.cv2, imread=_read_or_refuse))
        return files

    def finish(self) -> int:
        """Log what could not be used in full; return the exit code of the run."""
        if self._renamed:
            _LOGGER.warning(
                "%s: files with the same name as another file; their results have other names:\n%s",
                self._script,
                _lines(f"{_shown(file)}: {name}" for file, name in self._renamed),
            )
        if not self._problems:
            return DONE
        _LOGGER.warning(
            "%s: %d of %s could not be used in full:\n%s",
            self._script,
            len(self._problems),
            counted(self.total, "file"),
            _lines(f"{_shown(file)}: {reason}" for file, reason in self._problems),
        )
        return DONE_IN_PART

    def note(self, file: str, problem: str) -> None:
        """Record what is wrong with a file."""
        self._problems.append((file, problem))

    def refuse_if_none_was_used(self) -> None:
        """End the run if there is nothing to report.

        Raises:
            UserError: no file could be read; the message names the files.
        """
        if self.used:
            return
        source = f"--source {_printable(self._source)}"
        if not self._problems:
            raise UserError(f"{source}: names no file")
        if len(self._problems) == 1:
            (file, problem), *_ = self._problems
            named = "" if os.path.realpath(file) == os.path.realpath(self._source) else f"{_shown(file)}: "
            raise UserError(f"{source}: {named}{problem}")
        raise UserError(
            f"{source}: none of its {counted(self.total, 'file')} can be read:\n"
            + _lines(f"{_shown(file)}: {problem}" for file, problem in self._problems)
        )

    def note_listed(self, files: list[str]) -> None:
        """Record the names that are taken, so that results of other files do not get them."""
        self.total += len(files)
        self._listed = {self._key(Path(file), by_stem=self._by_stem) for file in files}

    def name_of_results(self, file: str, is_video: bool) -> str:
        """The file's own path, with another name if its results would overwrite or extend those of another file.

        Labels and crops are named after the stem, images after the whole name, and videos of later releases after the
        stem.
        """
        path, by_stem = Path(file), self._by_stem or is_video
        for name in free_names(path.stem, path.suffix):
            path = path.with_name(name)
            key = self._key(path, by_stem)
            is_own = path == Path(file)
            if (is_own or key not in self._listed) and self._taken.setdefault((is_video, key), file) == file:
                break
        if is_own:
            return file
        if (file, path.name) not in self._renamed:
            self._renamed.append((file, path.name))
        return str(path)

    def write_picture(self, path: str, picture: np.ndarray, *options: Any) -> bool:
        """`cv2.imwrite`, but as PNG for formats that OpenCV reads and cannot write (MPO, DNG)."""
        name = path if cv2.haveImageWriter(path) else f"{path}.png"
        is_written = bool(cv2.imwrite(name, picture, *options))
        if not is_written:  # YOLOv5 does not check this
            self.note(name, "could not be written")
        return is_written

    @staticmethod
    def _key(path: Path, by_stem: bool) -> str:
        return path.stem if by_stem else path.name


def _read_or_refuse(path: str, *flags: Any) -> np.ndarray:
    """`cv2.imread` for a script that reads one image and does not check the result."""
    pixels, problem = read_image(path)
    if pixels is None:
        raise UserError(f"--source {_printable(path)}: {problem}; this YOLOv5 takes one image here")
    return pixels


def _tolerant(base: Any, files: SourceFiles, patches: Patches) -> type:
    """Make a subclass of YOLOv5's ``LoadImages``, of any release, that skips unreadable files."""
    decoded: list[np.ndarray] = []  # the image that YOLOv5 is about to read

    def imread(path: str, *flags: Any) -> Any:
        return decoded.pop() if decoded else cv2.imread(path, *flags)

    own_module = sys.modules[base.__mro__[-2].__module__]  # --slice may have made a subclass already
    patches.set(own_module, "cv2", ModuleView(vars(own_module)["cv2"], imread=imread))

    class Tolerant(base):
        cap: Any

        def __init__(self, path: Any, *args: Any, **kwargs: Any) -> None:
            entries = _entries(path)
            there = [entry for entry in entries if "*" in entry or os.path.exists(entry)]
            for entry in sorted(set(entries) - set(there)):
                files.total += 1
                files.note(entry, "is not there")
            if not there:
                files.refuse_if_none_was_used()
            super().__init__(there if len(entries) > 1 else there[0], *args, **kwargs)
            files.note_listed(self.files)

        def __next__(self) -> Any:
            while self.count < self.nf:
                path, is_video = self.files[self.count], self.video_flag[self.count]
                if self.cap.has_frame() if is_video else self._reads(path):
                    files.used += 1
                    _, *rest = super().__next__()
                    return (files.name_of_results(path, is_video), *rest)
                self.count += 1
                if is_video:
                    self._end_video(path)
            files.refuse_if_none_was_used()
            raise StopIteration

        def _reads(self, path: str) -> bool:
            """Whether the image can be read; it is kept for YOLOv5, which asks for it next."""
            pixels, problem = read_image(path)
            if pixels is not None and not getattr(self, "transforms", None):
                thinness = _too_thin_reason(pixels.shape[:2], self.img_size)
                pixels, problem = (None, thinness) if thinness else (pixels, problem)
            if problem is not None:
                files.note(path, problem)
            if pixels is None:
                return False
            decoded[:] = [pixels]
            return True

        def _end_video(self, path: str) -> None:
            if self.cap.problem() is not None:
                files.note(path, self.cap.problem())
            self.cap.release()
            if self.count < self.nf:
                self.new_video(self.files[self.count])

        def new_video(self, path: str) -> None:  # its name in v6.0 and v6.1
            stride = getattr(self, "vid_stride", 1)
            self.cap = VideoFile(path, stride)
            self.frame = 0
            self.frames = max(int(self.cap.get(cv2.CAP_PROP_FRAME_COUNT) / stride), 0)

        _new_video = new_video  # its name in later releases

    Tolerant.__name__ = base.__name__
    return Tolerant


@contextlib.contextmanager
def any_name_printed() -> Iterator[None]:
    """Inside the ``with`` block, print characters that standard output cannot encode as escapes, as YOLOv5 does."""
    errors = getattr(sys.stdout, "errors", None)
    if errors != "strict" or not hasattr(sys.stdout, "reconfigure"):
        yield
        return
    sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        sys.stdout.reconfigure(errors=errors)


def _entries(source: Any) -> list[str]:
    """The files that a ``--source`` names, in a form that YOLOv5 lists correctly.

    YOLOv5 makes paths absolute, and then reads brackets in the name of any parent folder as a pattern. From v6.2 on, it
    also splits the lines of a list of files at each space.
    """
    if isinstance(source, (list, tuple)):
        return [_entry(str(path)) for path in source]
    if str(source).endswith(".txt") and os.path.isfile(source):
        lines = read_text(source, errors="surrogateescape").splitlines()
        named = ([line.strip()] if os.path.exists(line.strip()) else line.split() for line in lines if line.strip())
        return [_entry(path) for paths in named for path in paths]
    return [_entry(str(source))]


def _entry(path: str) -> str:
    absolute = str(Path(path).resolve())
    if os.path.isdir(path):
        escaped = glob.escape(absolute)
        return absolute if escaped == absolute else os.path.join(escaped, "*.*")
    if "*" not in path:
        return path
    if os.path.isfile(path):
        return glob.escape(absolute)
    return path if os.path.isabs(path) else os.path.join(glob.escape(str(Path.cwd())), path)


def _too_thin_reason(shape: tuple[int, ...], img_size: Any) -> str | None:
    """Why YOLOv5's letterbox cannot scale an image of shape (height, width); None if it can."""
    height, width = shape
    low, wide = img_size if isinstance(img_size, (list, tuple)) else (img_size, img_size)
    ratio = min(low / height, wide / width)
    if round(height * ratio) and round(width * ratio):
        return None
    size = low if low == wide else f"{low} {wide}"
    return f"is {width} x {height} pixels: scaled to --img {size}, its shorter side has no pixel left"


def _lines(texts: Iterator[str]) -> str:
    return "\n".join(f"  {line}" for line in first_of(list(texts), MOST_LINES, "… and {} more"))


def _shown(file: str) -> str:
    """A path on one line, relative to the working directory if it lies below it."""
    with contextlib.suppress(ValueError):
        file = str(Path(file).relative_to(Path.cwd()))
    return _printable(file)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
