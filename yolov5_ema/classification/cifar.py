"""CIFAR-100 in its published binary form: https://www.cs.toronto.edu/~kriz/cifar.html.

An image is one byte for the coarse class, one byte for the fine class, and 3072 bytes for the red, green and blue
planes of 32 x 32 pixels, row by row. The python form of the data set is a pickle, which can run code, and is not read.
"""

from __future__ import annotations

import gzip
import http.client
import tarfile
import urllib.error
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from yolov5_ema.errors import UserError
from yolov5_ema.files import open_regular, reading_from, replacement

URL = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
MD5 = "03b5dce01913d631647c71ecec9e9cb8"  # published on the page above
ARCHIVE = "cifar-100-binary.tar.gz"
FOLDER = "cifar-100-binary"
_PYTHON = "cifar-100-python"
NAMES = "fine_label_names.txt"
FILES = {"train": "train.bin", "val": "test.bin"}

SIDE = 32
CLASSES = 100
_RECORD = 2 + 3 * SIDE * SIDE
_MOST_BYTES = 200_000 * _RECORD  # more than three times the published size
_HEADERS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.GNUTYPE_SPARSE),
)
_MOST_HEADER = 2**20
_TORN = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile)


@dataclass
class CifarSplit:
    """One split of CIFAR-100.

    Attributes:
        images: uint8 of shape (N, 32, 32, 3), RGB.
        labels: int64 of shape (N,), the fine classes.
    """

    images: np.ndarray
    labels: np.ndarray


def is_cifar(place: Path) -> bool:
    """Whether a path is, by its file names, the published archive or a folder with its files."""
    if place.is_dir():
        files = (FILES["train"], f"{FOLDER}/{FILES['train']}", FILES["val"], f"{FOLDER}/{FILES['val']}")
        return place.name == _PYTHON or any((place / name).exists() for name in (*files, _PYTHON))
    return place.is_file() and place.name.endswith((".tar.gz", ".tgz", ".tar"))


def read_cifar(place: Path, split: str) -> CifarSplit:
    """Read one split.

    Args:
        place: the archive, its folder ``cifar-100-binary``, or a folder that contains that folder.
        split: ``train``, or ``val`` for the published test images.

    Raises:
        UserError: the data are missing, incomplete, damaged or in another form; the message says which form is needed.
    """
    name = FILES[split]
    content = _content(place, name, _MOST_BYTES)
    if not content or len(content) % _RECORD:
        raise UserError(
            f"{place}: {name} has {len(content):,} bytes, which is not a whole number of images of {_RECORD} bytes: "
            "it is cut off, or belongs to another data set"
        )
    rows = np.frombuffer(content, np.uint8).reshape(-1, _RECORD)  # (N, 3074)
    labels = rows[:, 1].astype(np.int64)  # (N,)
    if labels.max() >= CLASSES or rows[:, 0].max() >= 20:
        bad = int(np.argmax((labels >= CLASSES) | (rows[:, 0] >= 20)))
        raise UserError(
            f"{place}: image {bad} of {name} has coarse class {rows[bad, 0]} and fine class {labels[bad]}, but there "
            "are only 20 and 100 of them: the file is damaged, or belongs to another data set"
        )
    planes = rows[:, 2:].reshape(-1, 3, SIDE, SIDE)  # (N, 3, 32, 32)
    return CifarSplit(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels)


def read_names(place: Path) -> list[str]:
    """Read the names of the 100 fine classes from ``fine_label_names.txt``.

    Raises:
        UserError: the file is missing or does not hold 100 names.
    """
    text = _content(place, NAMES, 1 << 20).decode("utf-8", "replace")
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if len(names) != CLASSES or len(set(names)) != CLASSES:
        raise UserError(f"{place}: {NAMES} holds {len(set(names))} names; CIFAR-100 has {CLASSES} classes")
    return names


def download(folder: Path, *, url: str = URL, md5: str = MD5, timeout: float = 20.0) -> Path:
    """Download the published archive, check it, and put it into ``folder`` completely or not at all.

    Args:
        folder: the folder; it is made if it does not exist.
        url: the address of the archive.
        md5: the checksum of the archive.
        timeout: seconds to wait for an answer.

    Returns:
        The archive. An existing archive with the right checksum is not downloaded again.

    Raises:
        UserError: there is no network, or the downloaded file is not the published one.
    """
    from torchvision.datasets.utils import calculate_md5

    place = folder / ARCHIVE
    if place.is_file() and calculate_md5(place) == md5:
        return place
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacement(place) as draft:
            _fetch(url, draft, timeout)
            found = calculate_md5(draft)
            if found != md5:
                raise UserError(
                    f"{url}: the downloaded file has the MD5 {found}, not the published {md5}; it was deleted"
                )
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror or error}") from error
    finally:
        if made and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    return place


def _fetch(url: str, draft: Path, timeout: float) -> None:
    from tqdm import tqdm

    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer, draft.open("wb") as stream:
            total = int(answer.headers.get("Content-Length") or 0) or None
            with tqdm(total=total, unit="B", unit_scale=True, desc=ARCHIVE, disable=None) as bar:
                while chunk := answer.read(1 << 20):
                    stream.write(chunk)
                    bar.update(len(chunk))
    except (TimeoutError, urllib.error.URLError, http.client.HTTPException, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"{url} cannot be reached: {reason}. Without a network, fetch {ARCHIVE} elsewhere and name it: "
            f"--data path/to/{ARCHIVE}"
        ) from error


def _content(place: Path, name: str, most: int) -> bytes:
    """The bytes of one of the files; nothing is unpacked to disk."""
    with reading_from(place):
        if place.is_dir():
            folder = place if (place / name).is_file() else place / FOLDER
            if not (folder / name).is_file():
                raise UserError(_missing_message(place, name))
            with open_regular(folder / name) as stream:
                return _limited(stream, place, name, most)
        if not place.is_file():
            raise UserError(f"{place}: no such file or folder")
        return _from_archive(place, name, most)


class _Member(tarfile.TarInfo):
    """An archive entry with a limit on its header, so that a name of gigabytes is not read."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _HEADERS and self.size > _MOST_HEADER:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes")
        return super()._proc_member(archive)  # type: ignore[misc]


def _from_archive(place: Path, name: str, most: int) -> bytes:
    try:
        with tarfile.open(place, "r:*", tarinfo=_Member) as archive:
            for member in archive:
                if member.isfile() and member.name.split("/")[-1] == name:
                    stream = archive.extractfile(member)
                    assert stream is not None
                    return _limited(stream, place, name, most)
    except _TORN as error:
        raise UserError(
            f"{place} is not a tar archive, or is cut off or damaged ({error}); download it again"
        ) from error
    raise UserError(_missing_message(place, name))


def _limited(stream: IO[bytes], place: Path, name: str, most: int) -> bytes:
    content = stream.read(most + 1)
    if len(content) > most:
        raise UserError(f"{place}: {name} is larger than a file of CIFAR-100 can be; download it again")
    return content


def _missing_message(place: Path, name: str) -> str:
    if "python" in place.name or (place / _PYTHON).is_dir():
        return (
            f"{place} is CIFAR-100 in its python form, a pickle, which could run code and is not read. "
            f"Use the binary form: {URL} (MD5 {MD5})"
        )
    return (
        f"{place} has no {name}. Use CIFAR-100 in its binary form: {ARCHIVE} or the folder in it, {FOLDER}, "
        f"from {URL} (MD5 {MD5})"
    )
