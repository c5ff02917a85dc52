"""Opening, locking and writing files: the one door, so that what holds for one file holds for all.

Opened: regular files only (`reading` bounds what is read of them). Written: whole or not at all, through a draft with a
name that nobody can foresee. Links: a link to a folder above a file is followed; a link in the place of the file itself
is never written through, but replaced by the file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from yolov5_ema.errors import UserError
from yolov5_ema.texts import first_line

DISK_ERRORS = frozenset(
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EROFS", "EFBIG", "EIO", "EACCES", "EPERM")
    if hasattr(errno, name)
)
"""What a file system answers when it is full, may not be written to, or fails."""

_WINDOWS = os.name == "nt"
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)  # Windows lacks it
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)
_PLAIN = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_MARK = ".yolov5-ema-"
_DRAFT = re.compile(rf"\..*{re.escape(_MARK)}[0-9a-f]{{16}}\.tmp", re.DOTALL)
_STALE_WITHOUT_LOCKS_S = 24 * 3600.0
_tidied: set[str] = set()


def open_regular(file: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading, if it is one: a named pipe or a device would be waited for, or never end.

    Raises:
        OSError: as ``open`` does.
        UserError: it is a folder, a pipe, a socket or a device.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | _NO_WAIT | _PLAIN)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise _no_file(file) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _no_file(file)
    return os.fdopen(descriptor, "rb")


def sha256_of(file: str | os.PathLike[str]) -> str:
    """Of the content of a regular file of any size, read by pieces.

    Returns:
        64 hexadecimal digits.

    Raises:
        OSError: as ``open`` does.
        UserError: it is no regular file.
    """
    digest = hashlib.sha256()
    with open_regular(file) as stream:
        for piece in iter(lambda: stream.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


def free_names(stem: str, suffix: str = "", joint: str = "-") -> Iterator[str]:
    """A name, and then the same with numbers, to take the first that is free.

    Example:
        >>> names = free_names("a", ".png")
        >>> next(names), next(names), next(names)
        ('a.png', 'a-2.png', 'a-3.png')
    """
    yield stem + suffix
    for number in itertools.count(2):
        yield f"{stem}{joint}{number}{suffix}"


def _no_file(file: str | os.PathLike[str]) -> UserError:
    return UserError(
        f"{os.fspath(file)} is no file that can be read, but a folder, a pipe, a socket or a device"
    )


# --- folders and locks ----------------------------------------------------------------------


def make_folder(folder: Path, inside: Path) -> None:
    """Make a folder within an output folder; what is there already must lie there in truth.

    Raises:
        OSError: it cannot be made.
        UserError: a link in the output folder leads out of it.
    """
    check_inside(folder, inside)
    folder.mkdir(parents=True, exist_ok=True)


def check_inside(place: str | os.PathLike[str], folder: str | os.PathLike[str]) -> None:
    """Refuse a place in an output folder that a link takes somewhere else.

    Raises:
        UserError: it does.
    """
    real, top = os.path.realpath(place), os.path.realpath(folder)
    if real != top and not real.startswith(os.path.join(top, "")):
        raise UserError(
            f"{os.fspath(place)} leads out of {os.fspath(folder)} through a link, to {real}; nothing is written or "
            "removed there. Remove the link, or name another folder"
        )


def remove_inside(file: Path, folder: Path) -> None:
    """Remove a file of an output folder, if it is there.

    Raises:
        OSError: it cannot be removed.
        UserError: a link in the output folder leads out of it.
    """
    check_inside(file.parent, folder)
    file.unlink(missing_ok=True)


@contextmanager
def locked(place: Path, busy: str, patience_s: float = 0.0) -> Iterator[int | None]:
    """Hold a lock for the length of a ``with`` block; it ends with the process, however that ends.

    Args:
        place: a file, made if need be and never emptied; or a folder that is there. Where the system locks no folders
            (Windows, network drives), a hidden file beside it is locked, which is gone afterwards.
        busy: the message if another process holds it.
        patience_s: how long to wait for that one.

    Yields:
        The descriptor, for child processes to inherit: the lock is held as long as one of them lives. None on Windows,
        where they inherit none, and on a drive without locks.

    Raises:
        OSError: the file cannot be made.
        UserError: another process holds it, or it is no file.
    """
    until_s = time.monotonic() + patience_s
    is_folder, beside = place.is_dir(), None
    descriptor = None if is_folder and _WINDOWS else _held(place, busy, until_s)
    if is_folder and descriptor is None:
        real = place.resolve()
        beside = real.with_name(f".{real.name}.lock")
        descriptor = _held(beside, busy, until_s)
    try:
        yield None if _WINDOWS else descriptor
    finally:
        if descriptor is not None:
            _let_go(descriptor, beside)


def _held(place: Path, busy: str, until_s: float) -> int | None:
    """A descriptor that holds the lock as long as it is open; None where there are no locks."""
    while True:
        descriptor = _opened_to_lock(place)
        taken = _try_to_lock(descriptor)
        if taken and _is_at(descriptor, place):
            return descriptor
        os.close(descriptor)
        if taken is None:
            return None
        if not taken and time.monotonic() >= until_s:
            raise UserError(busy)
        time.sleep(0.1)


def _let_go(descriptor: int, made: Path | None) -> None:
    """End a lock, and remove the file that was made for it: while it is held, or others could have locked it."""
    with contextlib.suppress(OSError):
        if made is not None and not _WINDOWS:
            made.unlink()
    os.close(descriptor)
    with contextlib.suppress(OSError):
        if made is not None and _WINDOWS:  # which removes no file that anybody has opened
            made.unlink()


def _opened_to_lock(place: Path) -> int:
    if place.is_dir():
        return os.open(place, os.O_RDONLY | _PLAIN)
    flags = os.O_RDWR | os.O_CREAT | _NO_FOLLOW | _NO_WAIT | _PLAIN
    if _WINDOWS and place.is_symlink():  # nothing there keeps `open` from following it
        raise UserError(f"{place} is a link, not the file that a lock is held on; remove it")
    try:
        descriptor = os.open(place, flags, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO) or place.is_symlink():
            raise UserError(f"{place} is a link, not the file that a lock is held on; remove it") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{place} is not the file that a lock is held on, but a pipe or a device; remove it")
    return descriptor


def _try_to_lock(descriptor: int) -> bool | None:
    """True: it is held now; False: by another process; None: there are no locks here."""
    import filelock  # here, for a block is imported without it

    try:
        return bool(filelock.lock_descriptor(descriptor, blocking=False))
    except OSError:
        return None


def _is_at(descriptor: int, place: Path) -> bool:
    """Whether a file that was opened is still the one of that name: its last holder may have removed it."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(descriptor), os.stat(place))
    return False


# --- writing --------------------------------------------------------------------------------


def write_whole(file: Path, content: str | bytes, *, parents: bool = False) -> None:
    """Write a file beside its place and move it there; one that was there is replaced.

    Args:
        file: the place.
        content: its content; text is written as UTF-8.
        parents: make the folders above it that are missing.

    Raises:
        UserError: it cannot be written; what was there still is.
    """
    raw = content.encode("utf-8") if isinstance(content, str) else content
    with replacement(file, parents=parents, sync=False) as draft:
        draft.write_bytes(raw)


@contextmanager
def replacement(file: str | os.PathLike[str], *, parents: bool = False, sync: bool = True) -> Iterator[Path]:
    """A draft beside the place of a file, moved there in the end: whoever reads sees the old one or the new one, whole.

    A link in that place is replaced by the file; what it leads to is left alone.

    Args:
        file: the place.
        parents: make the folders above it that are missing.
        sync: see to it that the content is on the disk before the name is.

    Raises:
        UserError: it cannot be written; what was there still is.
    """
    with whole_files([Path(file)], parents=parents, sync=sync) as (draft,):
        yield draft


@contextmanager
def whole_files(files: Sequence[Path], *, parents: bool = False, sync: bool = False) -> Iterator[list[Path]]:
    """Drafts beside the places of files; all are moved there in the end, or none is left.

    Raises:
        UserError: they cannot be written.
    """
    with _said_plainly(files), ExitStack() as stack:
        drafts = []
        for file in files:
            if parents:
                file.parent.mkdir(parents=True, exist_ok=True)
            _refuse_special(file)
            drafts.append(stack.enter_context(_draft_of(file)))
        yield drafts
        for draft in drafts if sync else ():
            _sync(draft)
        for draft, file in zip(drafts, files):
            os.replace(draft, file)


@contextmanager
def moved_when_whole(file: str | os.PathLike[str], drafts: str) -> Iterator[str]:
    """A new name in a folder for drafts; what is there when the block succeeds is moved to the place of a file.

    For writers of very many files, who hold the folder, empty it before and afterwards, and say themselves what is
    wrong.

    Raises:
        OSError: the file system refuses.
    """
    draft = os.path.join(drafts, secrets.token_hex(8))
    try:
        yield draft
        os.replace(draft, file)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)  # is still there after a move, too, if both are names of one file


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder beside the place of one that is missing or empty, moved there in the end; or nothing is left of it.

    Args:
        folder: the place; folders above it that are missing are made.

    Raises:
        UserError: it cannot be written.
    """
    with _said_plainly([folder]):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
            draft = Path(scratch) / "draft"
            draft.mkdir()
            yield draft
            if folder.exists():
                folder.rmdir()
            os.replace(draft, folder)


def refuse_link(place: Path, what: str) -> None:
    """Refuse a link in the place of a folder that is this program's own.

    Raises:
        UserError: it is one.
    """
    if place.is_symlink():
        raise UserError(f"{place} is a link, where {what} belongs; remove it, or name another place")


@contextmanager
def writing_in(place: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what the file system refuses into a message that names the place.

    Raises:
        UserError: an OSError happened.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{os.fspath(place)} cannot be written: {error.strerror or error}") from error


@contextmanager
def _said_plainly(files: Sequence[Path]) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (OSError, RuntimeError) as error:  # torch has an error of its own for what the disk refuses
        reason = _reason(error)
        if reason is None:
            raise
        there = "; the one that was there is whole" if files[0].is_file() else ""
        raise UserError(f"{files[0]} cannot be written: {reason}{there}") from error


def _reason(error: BaseException) -> str | None:
    """Why the disk refused; None if something else is behind the error."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError):
            return seen.strerror or str(seen)
        seen = seen.__cause__ or seen.__context__
    said = str(error)
    return first_line(error) if "inline_container" in said or "PytorchStreamWriter" in said else None


def link_or_copy(source: Path, file: Path) -> None:
    """Make a file another name of a source, or a copy of it where the file system has no hard links."""
    with replacement(file, sync=False) as draft:
        draft.unlink()
        try:
            os.link(source.resolve(), draft)
        except OSError:
            copy_new(source, draft)


def copy_new(source: str | os.PathLike[str], file: str | os.PathLike[str]) -> None:
    """Copy the content of a regular file to a file that is new.

    Raises:
        OSError: one cannot be read, or there is something in the place of the other.
    """
    with open_regular(source) as content, os.fdopen(exclusive(file), "wb") as stream:
        shutil.copyfileobj(content, stream)


def append_to(file: Path) -> BinaryIO:
    """Open a file of this program's own to write behind what it holds; a link in its place is not followed.

    Raises:
        OSError: it cannot be opened, or is a link.
    """
    return os.fdopen(
        os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _NO_FOLLOW | _NO_WAIT | _PLAIN, 0o666), "ab"
    )


def refuse_present(files: Sequence[Path], force: bool) -> None:
    """Refuse to write over what is there.

    Raises:
        UserError: one of the files exists and ``force`` was not said, or is a folder.
    """
    for file in files:
        if file.is_dir():
            raise UserError(f"{file} is a folder; name a file with -o")
        if file.exists() and not force:
            raise UserError(f"{file} is there already; --force replaces it, -o names another")


def _refuse_special(file: Path) -> None:
    """Root could put a file in the place of /dev/null."""
    with contextlib.suppress(FileNotFoundError):
        mode = os.stat(file).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
        if not stat.S_ISREG(mode):
            raise UserError(f"{file} cannot be written: it is no file, but a pipe, a socket or a device")


def exclusive(file: str | os.PathLike[str]) -> int:
    """A descriptor to write a file that is new; nothing that is there, a link neither, is touched.

    Raises:
        OSError: there is something.
    """
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_FOLLOW | _PLAIN, 0o666)


@contextmanager
def _draft_of(place: Path) -> Iterator[Path]:
    """An empty file beside a place, gone in the end unless it was moved.

    It is locked meanwhile, so that nobody takes it for one that a killed process left.
    """
    _remove_stale(place.parent)
    draft, descriptor = _made_draft(place)
    try:
        if _WINDOWS:  # it moves no file that is open
            os.close(descriptor)
        yield draft
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()
        if not _WINDOWS:
            os.close(descriptor)


def _made_draft(place: Path) -> tuple[Path, int]:
    short = os.fsencode(place.name)[:100].decode("utf-8", "ignore")
    while True:
        draft = place.parent / f".{short}{_MARK}{secrets.token_hex(8)}.tmp"
        with contextlib.suppress(FileExistsError):
            descriptor = exclusive(draft)
            if _WINDOWS or (_try_to_lock(descriptor) is not False and os.fstat(descriptor).st_nlink):
                return draft, descriptor
            os.close(descriptor)  # somebody took it for stale before it was locked


def _sync(draft: Path) -> None:
    """A computer that goes down must not find the name before the content."""
    with open(draft, "rb+") as stream:
        os.fsync(stream.fileno())


def _remove_stale(folder: Path) -> None:
    """Remove drafts that killed processes left in a folder; looked for once a process."""
    key = os.path.abspath(folder)
    if key in _tidied:
        return
    _tidied.add(key)
    drafts: list[str] = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        drafts += [entry.path for entry in entries if _DRAFT.fullmatch(entry.name)]
    for draft in drafts:
        with contextlib.suppress(OSError):
            _remove_if_stale(draft)


def _remove_if_stale(draft: str) -> None:
    descriptor = os.open(draft, os.O_RDWR | _NO_FOLLOW | _NO_WAIT | _PLAIN)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or (hasattr(os, "geteuid") and status.st_uid != os.geteuid()):
            return
        is_unused = None if _WINDOWS else _try_to_lock(descriptor)
        is_old = time.time() - status.st_mtime > _STALE_WITHOUT_LOCKS_S
        if is_unused or (is_unused is None and is_old):
            os.unlink(draft)
    finally:
        os.close(descriptor)
