"""The containers that weights come in, opened for reading only: which one a file is, and the pickles in it."""

from __future__ import annotations

import json
import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

from yolov5_ema.errors import CheckpointError
from yolov5_ema.weights.inert_pickle import Followed, Items, MalformedPickle, Named, Stored, follow, walk

MAX_PICKLE = 64 * 2**20
"""Bytes of a pickle that are read: tensors lie outside it, and a detector's is about a megabyte."""

HEADER = "yolov5-ema"
"""Key of the safetensors metadata under which 'yolov5-ema convert' puts all but the tensors, as JSON."""

_ZIP = b"PK\x03\x04"
# What `zipfile` raises for archives that are torn, encrypted, or packed in some other way.
_TORN = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(RuntimeError, EOFError, ValueError, OverflowError, IndexError),
)
_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file before torch 1.6 (torch.serialization)
_ITEM_SIZES = {"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2}
_ITEM_SIZES |= {"Char": 1, "Byte": 1, "Bool": 1, "ComplexFloat": 8, "ComplexDouble": 16}

# How files begin that people hand in by mistake.
_MISTAKEN = (
    (b"<!DOCTYPE", "a web page; the download has gone wrong"),
    (b"<html", "a web page; the download has gone wrong"),
    (b"version https://git-lfs", "a pointer of Git LFS; fetch the file itself with git lfs pull"),
    (b"\x89HDF", "an HDF5 file (Keras)"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"Rar!", "a rar archive; unpack it first"),
)


@dataclass
class PickleFile:
    """A file of pickles, followed but not unpickled.

    Attributes:
        container: what the file is, in words.
        root: the pickle that holds what was saved.
        others: further pickles in the file.
        script: whether it is a TorchScript archive.
        recorded: what the container records of versions and the machine.
        notes: what is odd about the container.
        storage: the first bytes of a tensor's storage by its key, or None.
        little_endian: the byte order of the storages.
        sizes: bytes of the storages by their keys, where the container says.
    """

    container: str
    root: Followed
    others: list[Followed] = field(default_factory=list)
    script: bool = False
    recorded: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    storage: Callable[[str, int], bytes | None] = lambda key, count: None
    little_endian: bool = True
    sizes: dict[str, int] = field(default_factory=dict)


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as one of safetensors: a length, then a JSON object."""
    with path.open("rb") as stream:
        head = stream.read(16)
    return len(head) >= 10 and head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") < 2**32


def header_of(metadata: dict[str, str], path: Path) -> dict[str, Any] | None:
    """What 'yolov5-ema convert' wrote of a model beside its tensors; None if another program wrote the file.

    Raises:
        CheckpointError: it is no JSON object, or nested as none of ours is.
    """
    if HEADER not in metadata:
        return None
    try:
        header = json.loads(metadata[HEADER])
        if isinstance(header, dict) and _depth_is_sane(header):
            return header
        reason = "no object as 'yolov5-ema convert' writes it"
    except (ValueError, RecursionError) as error:
        reason = f"no JSON ({type(error).__name__})"
    raise CheckpointError(f"{path}: the metadata under {HEADER!r} is {reason}")


def _depth_is_sane(value: Any, most: int = 16) -> bool:
    if isinstance(value, (dict, list)):
        held = value.values() if isinstance(value, dict) else value
        return most > 0 and all(_depth_is_sane(item, most - 1) for item in held)
    return True


def check_readable(path: Path) -> None:
    """Raise a `CheckpointError` if there is no such file, it is a folder, is empty or cannot be opened."""
    try:
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder, not a weights file")
        with path.open("rb") as stream:
            if not stream.read(1):
                raise CheckpointError(
                    f"{path} is empty: no checkpoint, or cut off. Copy or download it again."
                )
    except FileNotFoundError:
        raise CheckpointError(f"weights not found: {path}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def open_pickles(path: Path) -> PickleFile:
    """Follow the pickles of a checkpoint: a zip archive of torch >= 1.6, an older file, or a bare pickle.

    Raises:
        CheckpointError: it is none of these, or torn. The message says what it is instead, where that can be told,
            and what a torn pickle has named.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(4096)
        _refuse_mistaken(path, head)
        return _open_zip(path) if head.startswith(_ZIP) else _open_sequence(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except MalformedPickle as error:
        named = f" It names {', '.join(sorted(error.names)[:12])}; nothing was run." if error.names else ""
        raise CheckpointError(
            f"{path} is no PyTorch checkpoint, or cut off: its pickle breaks off ({error}).{named}"
        ) from None


def _refuse_mistaken(path: Path, head: bytes) -> None:
    for start, what in _MISTAKEN:
        if head.lstrip()[: len(start)].lower() == start.lower():
            raise CheckpointError(f"{path} is no PyTorch checkpoint but {what}")
    if head[257:262] == b"ustar":
        raise CheckpointError(f"{path} is a tar archive, as torch before 0.1.10 wrote; nothing reads it here")
    if head[:1] == b"\x08" and (path.suffix == ".onnx" or b"pytorch" in head[:64] or b"onnx" in head[:64]):
        raise CheckpointError(f"{path} is an ONNX graph: exported, no checkpoint")


# --- zip archives --------------------------------------------------------------------------------


def _open_zip(path: Path) -> PickleFile:
    try:
        with zipfile.ZipFile(path) as archive:
            return _of_archive(path, archive)
    except _TORN as error:
        raise CheckpointError(f"{path} is no PyTorch checkpoint, or cut off: {error}") from None


def _of_archive(path: Path, archive: zipfile.ZipFile) -> PickleFile:
    entries = archive.infolist()
    refuse_bomb(path, entries)
    folder = entries[0].filename.split("/")[0] if entries else ""
    main = [entry for entry in entries if entry.filename.lower() == f"{folder}/data.pkl".lower()]
    if not main:
        raise CheckpointError(f"{path} is a zip archive without a data.pkl: no PyTorch checkpoint")
    pickles = [entry for entry in entries if entry.filename.lower().endswith(".pkl") and entry is not main[0]]
    script = any(entry.filename.startswith(f"{folder}/code/") for entry in entries)
    found = PickleFile(
        container="TorchScript archive" if script else "zip archive of torch >= 1.6",
        root=follow(_read(archive, main[0], MAX_PICKLE)),
        others=[follow(_read(archive, entry, MAX_PICKLE)) for entry in pickles],
        script=script,
        recorded=_recorded(archive, folder),
        storage=_storage_in(path, folder),
        sizes={
            entry.filename[len(folder) + 6 :]: entry.file_size
            for entry in entries
            if entry.filename.startswith(f"{folder}/data/")
        },
    )
    found.little_endian = found.recorded.get("byteorder") != "big"
    if len(main) > 1:
        found.notes.append(
            f"the archive holds {len(main)} entries called data.pkl; which one is read is chance"
        )
    return found


def refuse_bomb(path: Path, entries: Sequence[zipfile.ZipInfo]) -> None:
    """Raise a `CheckpointError` for an archive that unpacks to many times its size, as none of weights does."""
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > 8 * path.stat().st_size + 4 * MAX_PICKLE:
        raise CheckpointError(
            f"{path} is no PyTorch checkpoint: {path.stat().st_size:,} bytes that unpack to {unpacked:,}"
        )


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, most: int) -> bytes:
    with archive.open(entry) as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{entry.filename[:80]!r} in it is larger than {most // 2**20} MiB")
    return content


def _recorded(archive: zipfile.ZipFile, folder: str) -> dict[str, Any]:
    """The small text entries: versions of the format, byte order, what an exporter left beside the code."""
    found: dict[str, Any] = {}
    for entry in archive.infolist():
        name = entry.filename[len(folder) + 1 :]
        is_version = name in ("version", ".format_version", "byteorder")
        if (is_version or name.startswith("extra/")) and entry.file_size <= 65536 and len(found) < 12:
            found[name.strip(".")] = _read(archive, entry, 65536).decode("utf-8", "replace").strip()
    return found


def _storage_in(path: Path, folder: str) -> Callable[[str, int], bytes | None]:
    def read(key: str, count: int) -> bytes | None:
        try:
            with zipfile.ZipFile(path) as archive, archive.open(f"{folder}/data/{key}") as stream:
                return stream.read(count)
        except (*_TORN, KeyError, OSError):
            return None

    return read


# --- pickles one after another -------------------------------------------------------------------


def _open_sequence(path: Path) -> PickleFile:
    with path.open("rb") as stream:
        data = stream.read(MAX_PICKLE)
    first = follow(data)
    if first.value != _MAGIC:
        return PickleFile("pickle", first)
    version = follow(data, first.end)
    machine = follow(data, version.end)
    root = follow(data, machine.end)
    keys = follow(data, root.end)
    recorded = {"version": str(version.value)} if isinstance(version.value, int) else {}
    return PickleFile(
        container="file of torch < 1.6, or saved as such",
        root=root,
        others=[version, machine, keys],
        recorded=recorded,
        storage=_storage_behind(path, keys, root),
    )


def _storage_behind(path: Path, keys: Followed, root: Followed) -> Callable[[str, int], bytes | None]:
    """Storages lie behind the pickles in the order of the keys: each a number of elements, then the elements."""
    sizes = dict(_item_sizes(root))
    places: dict[str, int] = {}
    names = keys.value.items if isinstance(keys.value, Items) else []

    def read(key: str, count: int) -> bytes | None:
        with path.open("rb") as stream:
            if not places:
                places.update(_places(stream, keys.end, names, sizes))
            if key not in places:
                return None
            stream.seek(places[key])
            return stream.read(count)

    return read


def _item_sizes(root: Followed) -> Iterator[tuple[str, int]]:
    for value in walk(root.value):
        if isinstance(value, Stored) and isinstance(value.description, Items):
            parts = value.description.items
            if len(parts) >= 3 and isinstance(parts[1], Named) and isinstance(parts[2], str):
                yield parts[2], item_size(parts[1].name)


def item_size(storage: str) -> int:
    """Bytes of an element of a storage, by its class's name; 0 where that is not known."""
    return _ITEM_SIZES.get(storage.rsplit(".", 1)[-1].removesuffix("Storage"), 0)


def _places(stream: Any, start: int, names: list[Any], sizes: dict[str, int]) -> Iterator[tuple[str, int]]:
    place, end = start, stream.seek(0, os.SEEK_END)
    for name in names:
        stream.seek(place)
        head = stream.read(8)
        if len(head) < 8 or not isinstance(name, str) or not sizes.get(name):
            return
        yield name, place + 8
        place += 8 + struct.unpack("<q", head)[0] * sizes[name]
        if not 0 <= place < end:
            return
