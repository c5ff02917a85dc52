"""Write into the folder of a data set: every file completely or not at all, and by one run at a time.

Unfinished files (drafts) are in ``DIR/.yolov5-ema/drafts`` and are moved to their final names when they are complete.
An interrupted run leaves only drafts, which the next run removes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import yaml

from yolov5_ema.errors import UserError
from yolov5_ema.files import (
    append_to,
    check_inside,
    exclusive,
    locked,
    make_folder,
    moved_when_whole,
    open_regular,
)
from yolov5_ema.reading import leads_outside, parse_json, read_bytes

STATE_FOLDER = ".yolov5-ema"
_LOCK_PATIENCE_S = 5.0  # the workers of a killed run end within a second or two
MOST_JOURNAL = 2**30
"""Bytes; some ten million images."""
_MOST_PIXELS = 2**31


@contextlib.contextmanager
def workspace(out: Path) -> Iterator[str]:
    """Lock a folder for one run; yield the folder for drafts, which is empty at first and removed afterwards.

    Raises:
        UserError: the folder cannot be written to, or another run has locked it.
    """
    state = out / STATE_FOLDER
    drafts = state / "drafts"
    with disk_errors(out):
        make_folder(drafts.parent, inside=out)
        check_inside(drafts, out)
        busy = f"another run is writing to {out}; wait until it has finished"
        with locked(state / "lock", busy, _LOCK_PATIENCE_S):
            shutil.rmtree(drafts, ignore_errors=True)
            drafts.mkdir()
            try:
                yield str(drafts)
            finally:
                shutil.rmtree(drafts, ignore_errors=True)


@contextlib.contextmanager
def disk_errors(out: Path) -> Iterator[None]:
    """Turn errors of the file system into a message that names the folder.

    Raises:
        UserError: an OSError happened.
    """
    try:
        yield
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        raise UserError(
            f"cannot write to {out}: {error.strerror or error}{place}. Finished work is kept; "
            "solve this and run the command again, and it continues from there"
        ) from error


def place_bytes(content: bytes, target: str, drafts: str) -> None:
    """Write a complete file; an existing one is replaced."""
    with draft_of(target, drafts) as file:
        file.write(content)


def place_yaml(content: Mapping[str, Any], heading: str, file: Path, drafts: str) -> Path:
    """Write a data YAML that begins with a comment, see `place_bytes`; return its path."""
    text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=10_000, allow_unicode=True)
    place_bytes((heading + text).encode(), str(file), drafts)
    return file


def place_link(source: str, target: str, drafts: str, copy: bool = False) -> None:
    """Make a file a hard link to ``source``, else a symbolic link, else (or with ``copy``) a copy.

    Raises:
        OSError: the source is missing, or the file system refuses all three.
    """
    source = os.path.realpath(source) if os.path.islink(source) else source
    for make in () if copy else (os.link, os.symlink):
        try:
            make(source, target)
            return
        except FileExistsError:
            with contextlib.suppress(OSError):
                with moved_when_whole(target, drafts) as draft:
                    make(source, draft)
                return
        except FileNotFoundError:
            raise
        except OSError:
            continue
    with draft_of(target, drafts) as file, open_regular(source) as content:
        shutil.copyfileobj(content, file)


@contextlib.contextmanager
def draft_of(target: str | Path, drafts: str) -> Iterator[BinaryIO]:
    """A file to write to, which is moved to its final name when the block ends without an error."""
    with moved_when_whole(target, drafts) as draft, os.fdopen(exclusive(draft), "wb") as file:
        yield file


class Record(NamedTuple):
    """A journal's record of an image.

    Attributes:
        signature: identifies the content of its sources; it changes when they change.
        width, height: in pixels; 0 if the image could not be used.
    """

    signature: str
    width: int
    height: int


class Journal:
    """A file that records the finished work of one split, so that a later run can continue.

    Attributes:
        records: the record of each image.
        finished: the summary given to `finish`, if nothing was added since.
        made_before: images for which any earlier run wrote files, whatever its header.
    """

    def __init__(self, file: Path, header: dict[str, Any]) -> None:
        """Read the journal; entries of a different header and incomplete entries are ignored.

        Args:
            file: the path of the journal.
            header: everything that affects the results: the options and the path of the sources.
        """
        self.file, self.header = file, header
        self.records: dict[str, Record] = {}
        self.finished: dict[str, Any] | None = None
        self.made_before: set[str] = set()
        self._stream: BinaryIO | None = None
        if file.exists():
            self._read()

    def _read(self) -> None:
        valid = False
        for number, line in enumerate(read_bytes(self.file, MOST_JOURNAL).split(b"\n")):
            entry = journal_entry(line)
            if number == 0:
                valid = entry == self.header
                continue
            if not entry:  # the last line, cut off
                continue
            done = _records_in(entry.get("done"))
            made = [name for name in _list(entry.get("made")) if isinstance(name, str)]
            self._refuse_outside((*done, *made), number + 1)
            self.made_before.update(done, made)
            if valid:
                self.records.update(done)
                finished = entry.get("finished")
                self.finished = finished if isinstance(finished, dict) else None

    def _refuse_outside(self, names: Iterable[str], line: int) -> None:
        """Check the names in the journal like those in an archive, because these files may be removed."""
        for name in filter(leads_outside, names):
            raise UserError(
                f"{self.file}, line {line}: it names {name!r:.200}, which is outside the folder. No run of this "
                "command wrote that. The folder cannot be trusted and was not changed: give another -o"
            )

    def begin(self, records: dict[str, Record], drafts: str) -> None:
        """Start a new journal with these records, and keep it open for more."""
        self.records, self.finished = records, None
        rows = [[name, *record] for name, record in records.items()]
        earlier = sorted(self.made_before - set(records))
        with draft_of(self.file, drafts) as file:
            file.write(_line(self.header) + _line({"done": rows, "made": earlier}))
        self._stream = append_to(self.file)

    def add(self, names: Sequence[str], records: Sequence[Record]) -> None:
        """Record images whose files are complete."""
        assert self._stream is not None, "begin() comes first"
        self.records.update(zip(names, records))
        self._stream.write(_line({"done": [[name, *record] for name, record in zip(names, records)]}))
        self._stream.flush()

    def finish(self, summary: dict[str, Any]) -> None:
        """Record that the split is complete."""
        assert self._stream is not None, "begin() comes first"
        self.finished = summary
        self._stream.write(_line({"finished": summary}))
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def journal_entry(line: bytes) -> dict[str, Any]:
    """The entry in one line of a journal; empty if the line was cut off or is not an entry."""
    try:
        entry = parse_json(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


def _records_in(rows: Any) -> dict[str, Record]:
    found = {}
    for row in _list(rows):
        kinds = [type(value) for value in row] if isinstance(row, list) else []
        if kinds == [str, str, int, int] and min(row[2:]) >= 0 and max(row[2:]) < _MOST_PIXELS:
            found[row[0]] = Record(*row[1:])
    return found


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, separators=(",", ":")).encode() + b"\n"
