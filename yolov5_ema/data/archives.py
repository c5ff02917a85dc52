"""Read the files of a data set in the same way from a folder or from a zip archive."""

from __future__ import annotations

import functools
import os
import re
import stat
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

from yolov5_ema.errors import UserError
from yolov5_ema.files import open_regular, reading_from
from yolov5_ema.reading import MOST_TEXT, leads_outside, read_bytes


class Place(NamedTuple):
    """A folder, or a folder within an archive.

    Attributes:
        path: the folder, or the zip file.
        inside: the folder within the zip file, "" or ending with a slash; None for a folder on disk.
    """

    path: str
    inside: str | None = None

    def __str__(self) -> str:
        return self.path if self.inside is None else f"{self.path}:{self.inside}"

    def sub(self, name: str) -> Place:
        """A subfolder."""
        if self.inside is None:
            return Place(f"{self.path}/{name}")
        return Place(self.path, f"{self.inside}{name}/")

    def name_of(self, file: str) -> str:
        """The name of a file of this folder, for messages."""
        return f"{self.path}/{file}" if self.inside is None else f"{self.path}:{self.inside}{file}"

    def signatures(self) -> dict[str, str]:
        """The files (not folders) directly in this folder, sorted, each with a signature of its content."""
        if self.inside is None:
            found = _folder_signatures(self.path)
        else:
            found = {
                info.filename[len(self.inside) :]: f"{info.CRC:08x}.{info.file_size}"
                for info in open_archive(self.path).infolist()
                if info.filename.startswith(self.inside) and not info.is_dir()
            }
        return {name: found[name] for name in sorted(found) if "/" not in name and name[:2] != "._"}

    def read(self, file: str) -> bytes:
        """The content of a file.

        Raises:
            UserError: the file cannot be read, or the archive is damaged at this file.
        """
        try:
            with reading_from(self.name_of(file)):
                if self.inside is not None:
                    return self._unpacked(self.inside + file)
                return read_bytes(f"{self.path}/{file}")
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise UserError(f"{self.name_of(file)} is damaged in the archive: {error}") from error

    def _unpacked(self, entry: str) -> bytes:
        archive = open_archive(self.path)
        size = archive.getinfo(entry).file_size
        if size > MOST_TEXT:
            raise UserError(
                f"{self.path}:{entry} has {size:,} bytes when it is unpacked, more than an image or its labels can have"
            )
        return archive.read(entry)


def open_archive(path: str) -> zipfile.ZipFile:
    """A zip file, opened once in each process.

    Raises:
        UserError: it is not a zip file, or it is cut off.
    """
    try:
        with reading_from(path):
            status = os.stat(path)
            return _opened(path, status.st_size, status.st_mtime_ns, os.getpid())
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise UserError(f"{path} is not a zip file, or it is cut off ({error}); download it again") from error


@functools.lru_cache(maxsize=8)
def _opened(path: str, size: int, mtime_ns: int, process: int) -> zipfile.ZipFile:
    """``process`` is in the key because a forked process would share, and move, the position in the file."""
    return zipfile.ZipFile(open_regular(path))


def check_archive(path: str) -> None:
    """Refuse an archive that has a password, or that would write outside the folder it is unpacked into.

    Raises:
        UserError: names the first such entry.
    """
    for info in open_archive(path).infolist():
        if leads_outside(info.orig_filename):
            raise UserError(
                f"{path}: the entry {info.orig_filename!r} would be written outside the folder; "
                "this archive cannot be trusted; nothing was written"
            )
        if stat.S_ISLNK(info.external_attr >> 16):
            raise UserError(
                f"{path}: the entry {info.orig_filename!r} is a symbolic link, which could lead outside the "
                "folder; nothing was written"
            )
        if info.flag_bits & 1:
            raise UserError(f"{path}: the entry {info.orig_filename!r} has a password; unpack the archive first")


def _folder_signatures(folder: str) -> dict[str, str]:
    found = {}
    with reading_from(folder), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                continue
            try:
                status = entry.stat()
                found[entry.name] = f"{status.st_size}.{status.st_mtime_ns}"
            except OSError:  # a link to nowhere: reading it will say so
                found[entry.name] = "unreadable"
    return found


def folders_of(path: Path, name: str) -> list[Place]:
    """The folders of an archive that contain a folder called ``name``, without duplicates.

    Raises:
        UserError: see `open_archive`.
    """
    pattern = re.compile(rf"((?:[^/]+/)*?){re.escape(name)}/[^/]")
    found = {
        match[1]: None
        for info in open_archive(str(path)).infolist()
        if not info.filename.startswith("__MACOSX/") and (match := pattern.match(info.filename))
    }
    return [Place(str(path), inside) for inside in found]
