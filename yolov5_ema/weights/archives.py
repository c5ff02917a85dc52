"""Reads zip archives, and refuses those that two readers could read differently.

An archive states most things twice: in the directory at its end, and in a header before each entry. It can have two
directories, names that differ only in case, or extra bytes before or after it. Readers differ in which of these they
use, so a check could see a harmless pickle where torch reads another one. An archive is accepted here only if it is
unambiguous: one directory, at the very end, that agrees with the entries, which follow each other from the start.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

START = b"PK\x03\x04"

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")

_STORED, _DEFLATED = 0, 8
_DESCRIPTOR, _UTF8 = 0x8, 0x800
# 0x6 is the compression level; the other flags are encryption and patches
_FLAGS = 0x6 | _DESCRIPTOR | _UTF8
_MOST_BETWEEN = 64
"""Bytes allowed between two entries: the sizes of an entry may be written after it, in up to 24 bytes."""
_MOST_DIRECTORY = 64 * 2**20
# the id of an extra field that gives the entry a second name
_ANOTHER_NAME = 0x7075
_SIZES_64 = 0x0001


class Ambiguous(ValueError):
    """Two readers could read an archive differently, or the file is not an archive, or is cut off."""


@dataclass(frozen=True)
class Entry:
    """One file in an archive.

    Attributes:
        name: its path.
        start: where its header begins, in bytes from the start of the archive.
        packed: its size in the archive, in bytes.
        size: its unpacked size, in bytes.
        flags, method, crc: as numbered by the zip format.
    """

    name: str
    start: int
    packed: int
    size: int
    flags: int
    method: int
    crc: int


def entries_of(stream: BinaryIO) -> list[Entry]:
    """The entries of an archive, in the order of its directory. Nothing is unpacked.

    Raises:
        Ambiguous: the archive is not accepted; the message says what is wrong with it.
    """
    size = stream.seek(0, os.SEEK_END)
    start, count, end = _directory(stream, size)
    if end - start > _MOST_DIRECTORY:
        raise Ambiguous("its directory is larger than the directory of any weights file")
    entries = list(_listed(_read(stream, start, end - start), count))
    _check_names(entries)
    _check_places(stream, entries, start)
    return entries


def content_of(stream: BinaryIO, entry: Entry) -> bytes:
    """The unpacked bytes of an entry. They are all in memory, so check `Entry.size` first."""
    head = _LOCAL.unpack(_read(stream, entry.start, _LOCAL.size))
    packed = _read(stream, entry.start + _LOCAL.size + head[9] + head[10], entry.packed)
    if entry.method == _STORED:
        return packed
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        found = unpacker.decompress(packed, entry.size + 1)
    except zlib.error as error:
        raise Ambiguous(f"{entry.name[:80]!r} in it is damaged: {error}") from None
    if len(found) != entry.size or not unpacker.eof:
        raise Ambiguous(f"{entry.name[:80]!r} in it does not have the size given in the directory")
    return found


def _read(stream: BinaryIO, place: int, count: int) -> bytes:
    if place < 0:
        raise Ambiguous("it is cut off")
    stream.seek(place)
    found = stream.read(count)
    if len(found) != count:
        raise Ambiguous("it is cut off")
    return found


# --- the directory -------------------------------------------------------------------------------


def _directory(stream: BinaryIO, size: int) -> tuple[int, int, int]:
    """Where the directory begins, how many entries it lists, and where it ends."""
    place = size - _END.size
    signature, *disks, count, length, start, comment = _END.unpack(_read(stream, place, _END.size))
    if signature != b"PK\x05\x06" or comment:
        raise Ambiguous("it is cut off, or something follows its end")
    if place >= _LOCATOR.size:
        found = _LOCATOR.unpack(_read(stream, place - _LOCATOR.size, _LOCATOR.size))
        if found[0] == b"PK\x06\x07":
            return _directory_64(stream, place - _LOCATOR.size, found[2], (count, length, start))
    if disks != [0, 0, count] or start + length != place:
        raise Ambiguous("its end record gives the wrong position of its directory")
    return start, count, place


def _directory_64(stream: BinaryIO, end: int, place: int, short: tuple[int, int, int]) -> tuple[int, int, int]:
    if place != end - _END_64.size:
        raise Ambiguous("its two end records are not next to each other")
    signature, _, _, _, *disks, count, length, start = _END_64.unpack(_read(stream, place, _END_64.size))
    fits = all(value in (one, most) for value, one, most in zip(short, (count, length, start), _FULL))
    if signature != b"PK\x06\x06" or disks != [0, 0, count] or not fits or start + length != place:
        raise Ambiguous("its two end records disagree")
    return start, count, place


_FULL = (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)


def _listed(directory: bytes, count: int) -> Iterator[Entry]:
    place = 0
    for _ in range(count):
        if place + _CENTRAL.size > len(directory):
            raise Ambiguous("its directory lists fewer entries than its end record says")
        head = _CENTRAL.unpack_from(directory, place)
        name_length, extra_length, comment_length, disk = head[10:14]
        behind = place + _CENTRAL.size
        place = behind + name_length + extra_length
        if head[0] != b"PK\x01\x02" or comment_length or disk or place > len(directory):
            raise Ambiguous("its directory is not written the way torch writes one")
        name = directory[behind : behind + name_length]
        yield _entry(head, name, directory[behind + name_length : place])
    if place != len(directory):
        raise Ambiguous("its directory lists more entries than its end record says")


def _entry(head: tuple[int, ...], raw: bytes, extra: bytes) -> Entry:
    flags, method, crc = head[3], head[4], head[7]
    packed, size, start = _sizes((head[8], head[9], head[16]), extra)
    name = _name(raw, flags)
    if flags & ~_FLAGS or method not in (_STORED, _DEFLATED) or (method == _STORED and packed != size):
        raise Ambiguous(f"{name[:80]!r} in it is encrypted, or compressed in a way that torch does not use")
    return Entry(name, start, packed, size, flags, method, crc)


def _name(raw: bytes, flags: int) -> str:
    try:
        name = raw.decode("utf-8" if flags & _UTF8 else "ascii")
    except UnicodeDecodeError:
        raise Ambiguous("the name of an entry is not text") from None
    if not name or "\\" in name or any(ord(char) < 32 for char in name):
        raise Ambiguous(f"{name[:80]!r} is not a valid name of an entry")
    return name


def _sizes(short: tuple[int, int, int], extra: bytes) -> tuple[int, int, int]:
    """Packed size, unpacked size and position; from the extra field if they do not fit into the usual fields."""
    fields = dict(_extra_fields(extra))
    if _ANOTHER_NAME in fields:
        raise Ambiguous("an entry has two names")
    packed, size, start = short
    wide = fields.get(_SIZES_64, b"")
    found = []
    # in the order of the format
    for value in (size, packed, start):
        if value == 0xFFFFFFFF and len(wide) >= 8:
            value, wide = struct.unpack("<Q", wide[:8])[0], wide[8:]
        found.append(value)
    return found[1], found[0], found[2]


def _extra_fields(extra: bytes) -> Iterator[tuple[int, bytes]]:
    seen: set[int] = set()
    while extra:
        kind, length = struct.unpack("<HH", extra[:4]) if len(extra) >= 4 else (0, len(extra))
        if len(extra) < 4 + length or kind in seen:
            raise Ambiguous("the extra fields of an entry are damaged")
        seen.add(kind)
        yield kind, extra[4 : 4 + length]
        extra = extra[4 + length :]


# --- the entries ---------------------------------------------------------------------------------


def _check_names(entries: list[Entry]) -> None:
    seen: set[str] = set()
    for entry in entries:
        # torch's reader ignores case
        name = entry.name.lower()
        if name in seen:
            raise Ambiguous(f"it holds {entry.name[:80]!r} twice, so two readers could read different entries")
        seen.add(name)


def _check_places(stream: BinaryIO, entries: list[Entry], end: int) -> None:
    """Check that the entries follow each other without gaps, as their own headers say."""
    place = 0
    for number, entry in enumerate(sorted(entries, key=lambda one: one.start)):
        between = entry.start - place
        if not 0 <= between <= (_MOST_BETWEEN if number else 0):
            raise Ambiguous(f"{entry.name[:80]!r} in it follows a gap, or overlaps another entry")
        place = _end_of(stream, entry)
    if not 0 <= end - place <= _MOST_BETWEEN:
        raise Ambiguous("there is something between its entries and its directory")


def _end_of(stream: BinaryIO, entry: Entry) -> int:
    head = _LOCAL.unpack(_read(stream, entry.start, _LOCAL.size))
    signature, _, flags, method, _, _, crc, packed, size, name_length, extra_length = head
    behind = _read(stream, entry.start + _LOCAL.size, name_length + extra_length)
    same_name = behind[:name_length].decode("utf-8", "replace") == entry.name
    sizes = _sizes((packed, size, 0), behind[name_length:])[:2]
    # the sizes may be written after the entry instead of in its header
    later = bool(flags & _DESCRIPTOR)
    same_sizes = all(
        one == other or (later and one in (0, 0xFFFFFFFF))
        for one, other in zip((*sizes, crc), (entry.packed, entry.size, entry.crc))
    )
    alike = flags == entry.flags and method == entry.method and same_name and same_sizes
    if signature != START or not alike:
        raise Ambiguous(f"{entry.name[:80]!r} in it has a header that disagrees with the directory")
    return entry.start + _LOCAL.size + len(behind) + entry.packed
