"""Opens the containers of weights for reading: which one a file is, and the pickles in it."""

from __future__ import annotations

import functools
import io
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from yolov5_ema.errors import CheckpointError, UserError
from yolov5_ema.files import open_regular
from yolov5_ema.texts import first_line
from yolov5_ema.weights import archives, mistaken
from yolov5_ema.weights.archives import Entry
from yolov5_ema.weights.inert_pickle import Followed, Items, MalformedPickle, follow
from yolov5_ema.weights.inert_tensors import storages_in

MAX_PICKLE = 64 * 2**20
"""Limit in bytes for a pickle. Tensors are stored outside it, and a detector's pickle has about one MiB."""

HEADER = "yolov5-ema"
"""Key in the safetensors metadata under which 'yolov5-ema convert' puts everything but the tensors, as JSON."""

MAX_FILE = 8 * 2**30
"""Limit in bytes for a file that is loaded. A large detector with its training state has about two GiB."""

_MOST_TEXT = 2**20
"""Limit in bytes for an entry that is neither a pickle nor a tensor, and for a tensor that is shown."""
# the first pickle of a file that torch before 1.6 wrote (torch.serialization)
_MAGIC = 0x1950A86A20F9469CFC6C


@dataclass
class PickleFile:
    """A file of pickles, followed by `inert_pickle.follow` but not unpickled.

    Attributes:
        container: the format of the file, in words.
        root: the pickle that holds the saved object.
        others: further pickles in the file.
        script: whether it is a TorchScript archive.
        recorded: versions and properties of the machine that the container records.
        notes: anything unusual about the container.
        storage: returns the first ``count`` bytes of the storage with a key, or None.
        little_endian: whether the storages are little-endian.
        sizes: bytes of each storage by its key, if the container gives them.
        program: the bytes of the pickle that holds the saved object; empty if the file is not an archive.
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
    program: bytes = b""

    @property
    def pickles(self) -> tuple[Followed, ...]:
        """All pickles in the file."""
        return self.root, *self.others


def is_safetensors(path: Path) -> bool:
    """Whether a file begins like a safetensors file: a length, then a JSON object."""
    with reading(path) as stream:
        return mistaken.is_safetensors(stream.read(16))


def refuse_two_kinds(path: Path) -> None:
    """Raise a `CheckpointError` for a safetensors file that is also a pickle, which torch would unpickle."""
    with reading(path) as stream:
        head = stream.read(MAX_PICKLE)
    try:
        names: Mapping[str, int] = follow(head).names
    except MalformedPickle as error:
        names = error.names
    if names:
        raise CheckpointError(
            f"{path} is both safetensors and a pickle that names {', '.join(sorted(names)[:12])}; it is not loaded"
        )


def header_of(metadata: dict[str, str], path: Path) -> dict[str, Any] | None:
    """What 'yolov5-ema convert' wrote about a model besides its tensors; None if another program wrote the file.

    Raises:
        CheckpointError: it is not a JSON object, or is nested too deeply.
    """
    if HEADER not in metadata:
        return None
    try:
        header = json.loads(metadata[HEADER])
        if isinstance(header, dict) and _depth_is_sane(header):
            return header
        reason = "not an object that 'yolov5-ema convert' could have written"
    except (ValueError, RecursionError) as error:
        reason = f"not valid JSON ({type(error).__name__})"
    raise CheckpointError(f"{path}: the metadata under {HEADER!r} is {reason}")


def header_in(path: Path) -> dict[str, Any] | None:
    """`header_of` a safetensors file.

    Raises:
        CheckpointError: it is not a safetensors file, or is cut off.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as opened:
            return header_of(opened.metadata() or {}, path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a safetensors file, or is cut off: {error}") from None


def _depth_is_sane(value: Any, most: int = 16) -> bool:
    if isinstance(value, (dict, list)):
        held = value.values() if isinstance(value, dict) else value
        return most > 0 and all(_depth_is_sane(item, most - 1) for item in held)
    return True


@contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """A weights file, open for reading.

    Raises:
        CheckpointError: the file is missing, is a folder, a pipe or a device, or cannot be opened.
    """
    try:
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder, not a weights file")
        stream = open_regular(path)
    except FileNotFoundError:
        raise CheckpointError(f"weights not found: {path}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except UserError as error:
        raise CheckpointError(str(error)) from None
    with stream:
        yield stream


def check_readable(path: Path) -> None:
    """Raise a `CheckpointError` if a file is missing, is a folder, is empty or cannot be opened."""
    with reading(path) as stream:
        if not stream.read(1):
            raise CheckpointError(f"{path} is empty, not a checkpoint. Copy or download it again.")


def read_once(path: Path) -> io.BytesIO:
    """The content of a weights file in memory, so that a later change of the file cannot bypass the checks.

    Raises:
        CheckpointError: it cannot be read, or is larger than `MAX_FILE`.
    """
    with reading(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > MAX_FILE:
            raise CheckpointError(f"{path} is not a checkpoint: it has {size:,} bytes, and the limit is {MAX_FILE:,}")
        try:
            return io.BytesIO(stream.read(size))
        except (OSError, MemoryError) as error:
            reason = getattr(error, "strerror", None) or f"there is not enough memory for its {size:,} bytes"
            raise CheckpointError(f"{path} cannot be read: {reason}") from None


def open_pickles(path: Path, stream: BinaryIO | None = None) -> PickleFile:
    """Follow the pickles of a checkpoint: a zip archive of torch >= 1.6, an older file, or a bare pickle.

    Args:
        path: the file.
        stream: the content of the file if it has been read already. None: the file is opened.

    Raises:
        CheckpointError: the file is none of these, is damaged, or could be read in two ways. The message says what the
            file is instead, if that is known, and which names a damaged pickle holds.
    """
    if stream is None:
        with reading(path) as opened:
            return open_pickles(path, opened)
    try:
        stream.seek(0)
        head = stream.read(mistaken.HEAD)
        mistaken.refuse_mistaken(path, head)
        return _of_archive(path, stream) if head.startswith(archives.START) else _open_sequence(path, stream)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except MalformedPickle as error:
        named = f" It names {', '.join(sorted(error.names)[:12])}; no code was run." if error.names else ""
        raise CheckpointError(
            f"{path} is not a PyTorch checkpoint, or is cut off: its pickle is incomplete ({error}).{named}"
        ) from None
    except Exception as error:
        # pickletools raises many types for malformed files
        raise CheckpointError(f"{path} is not a PyTorch checkpoint, or is cut off: {error}") from error


def refuse_another_reading(path: Path, opened: PickleFile, stream: BinaryIO) -> None:
    """Raise a `CheckpointError` if torch's own reader finds another pickle in an archive than the one followed.

    No such archive is known: `archives` refuses those that two readers could read differently.
    """
    import torch

    if not is_archive(stream):
        return
    stream.seek(0)
    try:
        found = torch._C.PyTorchFileReader(stream).get_record("data.pkl")
    except RuntimeError as error:
        raise CheckpointError(f"{path} is not a PyTorch checkpoint, or is cut off: {first_line(error, 200)}") from None
    if found != opened.program:
        raise CheckpointError(
            f"{path} is an archive in which torch finds another pickle than the one that was checked; it is not loaded"
        )


def is_archive(stream: BinaryIO) -> bool:
    """Whether a file is a zip archive, by the test with which torch distinguishes its current format from the older."""
    stream.seek(0)
    return stream.read(4) == archives.START


# --- zip archives --------------------------------------------------------------------------------


def _of_archive(path: Path, stream: BinaryIO) -> PickleFile:
    listed = archives.entries_of(stream)
    refuse_zip_bomb(path, stream.seek(0, os.SEEK_END), listed)
    entries = _in_one_folder(path, listed)
    # torch uses the same test
    script = "constants.pkl" in entries
    _refuse_large(entries, script)
    program = archives.content_of(stream, entries["data.pkl"])
    pickles = [entry for name, entry in entries.items() if name.lower().endswith(".pkl") and name != "data.pkl"]
    found = PickleFile(
        container="TorchScript archive" if script else "zip archive of torch >= 1.6",
        root=_followed(program),
        others=[follow(archives.content_of(stream, entry)) for entry in pickles],
        script=script,
        recorded=_recorded(stream, entries),
        storage=_storage_in(path, entries),
        sizes={name[len("data/") :]: entry.size for name, entry in entries.items() if name.startswith("data/")},
        program=program,
    )
    found.little_endian = found.recorded.get("byteorder") != "big"
    return found


@functools.lru_cache(maxsize=1)
def _followed(program: bytes) -> Followed:
    """`follow`, once for a file that is checked and then loaded."""
    return follow(program)


def _in_one_folder(path: Path, listed: Sequence[Entry]) -> dict[str, Entry]:
    """The entries by their names within the archive's single folder."""
    folder = listed[0].name.split("/")[0] if listed else ""
    entries = {entry.name[len(folder) + 1 :]: entry for entry in listed if entry.name.startswith(f"{folder}/")}
    if "data.pkl" not in entries:
        raise CheckpointError(f"{path} is a zip archive without a data.pkl: not a PyTorch checkpoint")
    if len(entries) < len(listed):
        raise archives.Ambiguous(f"it holds entries outside its folder {folder[:80]!r}")
    return entries


def refuse_zip_bomb(path: Path, size: int, entries: Sequence[Entry]) -> None:
    """Raise a `CheckpointError` for an archive that unpacks to many times its size; archives of weights never do."""
    unpacked = sum(entry.size for entry in entries)
    if unpacked > 8 * size + 4 * MAX_PICKLE:
        raise CheckpointError(f"{path} is not a PyTorch checkpoint: {size:,} bytes that unpack to {unpacked:,}")


def _refuse_large(entries: dict[str, Entry], script: bool) -> None:
    """Raise a ``ValueError`` if an entry that is read whole is larger than torch would write it."""
    pickles = sum(entry.size for name, entry in entries.items() if name.lower().endswith(".pkl"))
    if pickles > MAX_PICKLE:
        raise ValueError(f"the pickles in it are larger than {MAX_PICKLE // 2**20} MiB")
    of_any_size = ("data/", "constants/", "code/", "extra/") if script else ("data/",)
    for name, entry in entries.items():
        is_small = entry.size <= _MOST_TEXT or name.lower().endswith(".pkl") or name.startswith(of_any_size)
        if not is_small:
            raise ValueError(f"{name[:80]!r} in it is larger than {_MOST_TEXT // 2**20} MiB")


def _recorded(stream: BinaryIO, entries: dict[str, Entry]) -> dict[str, Any]:
    """The small text entries: versions of the format, the byte order, and the files that an exporter added."""
    found: dict[str, Any] = {}
    for name, entry in entries.items():
        is_version = name in ("version", ".format_version", "byteorder")
        if (is_version or name.startswith("extra/")) and entry.size <= 65536 and len(found) < 12:
            found[name.strip(".")] = archives.content_of(stream, entry).decode("utf-8", "replace").strip()
    return found


def _storage_in(path: Path, entries: dict[str, Entry]) -> Callable[[str, int], bytes | None]:
    def read(key: str, count: int) -> bytes | None:
        entry = entries.get(f"data/{key}")
        if entry is None or not count <= entry.size <= _MOST_TEXT:
            return None
        try:
            with reading(path) as stream:
                return archives.content_of(stream, entry)[:count]
        except (archives.Ambiguous, CheckpointError, OSError):
            return None

    return read


# --- pickles one after another -------------------------------------------------------------------


def _open_sequence(path: Path, stream: BinaryIO) -> PickleFile:
    stream.seek(0)
    data = stream.read(MAX_PICKLE)
    first = follow(data)
    if first.value != _MAGIC:
        return PickleFile("pickle", first)
    version = follow(data, first.end)
    machine = follow(data, version.end)
    root = follow(data, machine.end)
    keys = follow(data, root.end)
    recorded = {"version": str(version.value)} if isinstance(version.value, int) else {}
    names = keys.value.items if isinstance(keys.value, Items) else []
    each = {storage.key: storage.kind[1] for storage in storages_in(root.stored)}
    places = dict(_places(stream, keys.end, names, each))
    return PickleFile(
        container="file in the format of torch < 1.6",
        root=root,
        others=[first, version, machine, keys],
        recorded=recorded,
        storage=_storage_behind(path, {name: place for name, (place, _) in places.items()}),
        sizes={**dict.fromkeys(each, 0), **{name: size for name, (_, size) in places.items()}},
    )


def _storage_behind(path: Path, places: dict[str, int]) -> Callable[[str, int], bytes | None]:
    def read(key: str, count: int) -> bytes | None:
        if key not in places:
            return None
        with reading(path) as stream:
            stream.seek(places[key])
            return stream.read(count)

    return read


def _places(
    stream: BinaryIO, start: int, names: list[Any], sizes: dict[str, int]
) -> Iterator[tuple[str, tuple[int, int]]]:
    """The position and size in bytes of each storage after the pickles, in the order of the keys.

    Each storage begins with its number of elements, in 8 bytes.
    """
    place, end = start, stream.seek(0, os.SEEK_END)
    for name in names:
        stream.seek(place)
        head = stream.read(8)
        if len(head) < 8 or not isinstance(name, str) or not sizes.get(name):
            return
        size = struct.unpack("<q", head)[0] * sizes[name]
        place += 8
        if not 0 <= size <= end - place:
            return
        yield name, (place, size)
        place += size
