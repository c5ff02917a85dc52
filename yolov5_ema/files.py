"""Open, lock and write files, in one place so that the same rules apply to all files.

Only regular files are opened (`reading` limits how much of them is read). Files are written completely or not at all:
through a temporary file ("draft") with an unpredictable name. Links to parent folders are followed. A link in the place
of the file itself is never written through; the file replaces it.
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
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from yolov5_ema.errors import UserError, causes
from yolov5_ema.texts import first_line

DISK_ERRORS = frozenset(
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EROFS", "EFBIG", "EIO", "EACCES", "EPERM")
    if hasattr(errno, name)
)
"""The errors of a file system that is full, read-only or broken."""

_WINDOWS = os.name == "nt"
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)  # missing on Windows
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)
_PLAIN = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_MARK = ".yolov5-ema-"
_DRAFT = re.compile(rf"\..*{re.escape(_MARK)}[0-9a-f]{{16}}\.tmp", re.DOTALL)
_STALE_WITHOUT_LOCKS_S = 24 * 3600.0
_tidied: set[str] = set()


def open_regular(file: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading; reading a named pipe or a device could block, or never end.

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
    """The SHA-256 of the content of a regular file of any size, read in pieces.

    Returns:
        64 hexadecimal digits.

    Raises:
        OSError: as ``open`` does.
        UserError: it is not a regular file.
    """
    digest = hashlib.sha256()
    with open_regular(file) as stream:
        for piece in iter(lambda: stream.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


def free_names(stem: str, suffix: str = "", joint: str = "-") -> Iterator[str]:
    """A name, then the same name with numbers, for finding the first one that is free.

    Example:
        >>> names = free_names("a", ".png")
        >>> next(names), next(names), next(names)
        ('a.png', 'a-2.png', 'a-3.png')
    """
    yield stem + suffix
    for number in itertools.count(2):
        yield f"{stem}{joint}{number}{suffix}"


def _no_file(file: str | os.PathLike[str]) -> UserError:
    return UserError(f"{os.fspath(file)} is not a file that can be read, but a folder, a pipe, a socket or a device")


# --- folders and locks ----------------------------------------------------------------------


def make_folder(folder: Path, inside: Path) -> None:
    """Make a folder within an output folder; existing parts of its path must not lead out through a link.

    Raises:
        OSError: it cannot be made.
        UserError: a link in the output folder leads out of it.
    """
    check_inside(folder, inside)
    folder.mkdir(parents=True, exist_ok=True)


def check_inside(place: str | os.PathLike[str], folder: str | os.PathLike[str]) -> None:
    """Refuse a path in an output folder that leads out of the folder through a link.

    Raises:
        UserError: the path leads out.
    """
    real, top = os.path.realpath(place), os.path.realpath(folder)
    if real != top and not real.startswith(os.path.join(top, "")):
        raise UserError(
            f"{os.fspath(place)} leads out of {os.fspath(folder)} through a link, to {real}; nothing is written or "
            "removed there. Remove the link, or give another folder"
        )


def remove_inside(file: Path, folder: Path) -> None:
    """Remove a file of an output folder, if it exists.

    Raises:
        OSError: it cannot be removed.
        UserError: a link in the output folder leads out of it.
    """
    check_inside(file.parent, folder)
    file.unlink(missing_ok=True)


@contextmanager
def locked(place: Path, busy: str, patience_s: float = 0.0) -> Iterator[int | None]:
    """Hold a lock during a ``with`` block; it also ends with the process, however that ends.

    Args:
        place: a file, created if missing and never truncated; or an existing folder. If the system cannot lock folders
            (Windows, network drives), a hidden file next to it is locked, and removed afterwards.
        busy: the message if another process holds the lock.
        patience_s: how long to wait for the other process, in seconds.

    Yields:
        The descriptor, for child processes to inherit: the lock is held as long as one of them is alive. None on
        Windows, where they inherit no descriptors, and on a drive without locks.

    Raises:
        OSError: the file cannot be created.
        UserError: another process holds the lock, or ``place`` is not a file or folder.
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
            _release(descriptor, beside)


def _held(place: Path, busy: str, until_s: float) -> int | None:
    """A descriptor that holds the lock as long as it is open; None if there are no locks."""
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


def _release(descriptor: int, made: Path | None) -> None:
    """Release a lock and remove the file made for it. The file is removed first: later, others may have locked it."""
    with contextlib.suppress(OSError):
        if made is not None and not _WINDOWS:
            made.unlink()
    os.close(descriptor)
    with contextlib.suppress(OSError):
        if made is not None and _WINDOWS:  # Windows does not remove a file that is open
            made.unlink()


def _opened_to_lock(place: Path) -> int:
    if place.is_dir():
        return os.open(place, os.O_RDONLY | _PLAIN)
    flags = os.O_RDWR | os.O_CREAT | _NO_FOLLOW | _NO_WAIT | _PLAIN
    if _WINDOWS and place.is_symlink():  # Windows has no way to keep `open` from following it
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
    """True: this process now holds the lock; False: another process does; None: the file system has no locks."""
    import filelock  # here, because importing a block must not need it

    try:
        return bool(filelock.lock_descriptor(descriptor, blocking=False))
    except OSError:
        return None


def _is_at(descriptor: int, place: Path) -> bool:
    """Whether an opened file still has its name: the last holder of the lock may have removed it."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(descriptor), os.stat(place))
    return False


# --- writing --------------------------------------------------------------------------------


def write_whole(file: Path, content: str | bytes, *, parents: bool = False) -> None:
    """Write a file through a draft; an existing file is replaced.

    Args:
        file: the file to write.
        content: its content; text is written as UTF-8.
        parents: make missing parent folders.

    Raises:
        UserError: it cannot be written; an existing file is unchanged.
    """
    raw = content.encode("utf-8") if isinstance(content, str) else content
    with replacement(file, parents=parents, sync=False) as draft:
        draft.write_bytes(raw)


@contextmanager
def replacement(file: str | os.PathLike[str], *, parents: bool = False, sync: bool = True) -> Iterator[Path]:
    """A draft next to a file, moved to the file's name at the end, so that readers see a complete file, old or new.

    If the file is a link, the link is replaced; its target is not changed.

    Args:
        file: the file to write.
        parents: make missing parent folders.
        sync: make sure that the content is on the disk before the file gets its name.

    Raises:
        UserError: it cannot be written; an existing file is unchanged.
    """
    with whole_files([Path(file)], parents=parents, sync=sync) as (draft,):
        yield draft


@contextmanager
def whole_files(files: Sequence[Path], *, parents: bool = False, sync: bool = False) -> Iterator[list[Path]]:
    """Drafts next to several files; at the end all are moved to their names, or all are removed.

    Raises:
        UserError: they cannot be written.
    """
    with _errors_as_user_errors(files), ExitStack() as stack:
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
    """A new path in a folder for drafts; the file written there is moved to its final name if the block succeeds.

    This is for writers of very many files, who lock the folder, empty it before and afterwards, and report errors
    themselves.

    Raises:
        OSError: the file cannot be moved.
    """
    draft = os.path.join(drafts, secrets.token_hex(8))
    try:
        yield draft
        os.replace(draft, file)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)  # still exists even after a move, if both are names of one file


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A draft of a missing or empty folder, moved to the folder's name at the end, or removed if the block fails.

    Args:
        folder: the folder to write; missing parents are made.

    Raises:
        UserError: it cannot be written.
    """
    with _errors_as_user_errors([folder]):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
            draft = Path(scratch) / "draft"
            draft.mkdir()
            yield draft
            if folder.exists():
                folder.rmdir()
            os.replace(draft, folder)


def refuse_link(place: Path, what: str) -> None:
    """Refuse a link in the place of a folder that belongs to this program.

    Raises:
        UserError: the path is a link.
    """
    if place.is_symlink():
        raise UserError(f"{place} is a link, where {what} belongs; remove it, or name another place")


@contextmanager
def writing_in(place: str | os.PathLike[str], verb: str = "written") -> Iterator[None]:
    """Turn errors of the file system into a message that names the path.

    Raises:
        UserError: an OSError happened.
    """
    try:
        yield
    except OSError as error:
        said = why_not_written(place, error) if verb == "written" else error.strerror or error
        raise UserError(f"{os.fspath(place)} cannot be {verb}: {said}") from error


def reading_from(place: str | os.PathLike[str]) -> AbstractContextManager[None]:
    """`writing_in` for files that are read."""
    return writing_in(place, "read")


@contextmanager
def _errors_as_user_errors(files: Sequence[Path]) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (OSError, RuntimeError) as error:  # torch has its own error for failed writes
        reason = _reason(error, files[0])
        if reason is None:
            raise
        there = "; the one that was there is whole" if files[0].is_file() else ""
        raise UserError(f"{files[0]} cannot be written: {reason}{there}") from error


def why_not_written(place: str | os.PathLike[str], error: OSError) -> str:
    """Why a new file or folder cannot be made, in words for a message.

    That is what the system says; but of a folder that is there and takes no files (/proc), "No such file" would
    mislead.
    """
    folder = os.path.dirname(os.path.abspath(place))
    is_new = isinstance(error.filename, str) and os.path.dirname(os.path.abspath(error.filename)) == folder
    if error.errno == errno.ENOENT and is_new and os.path.isdir(folder):
        return f"the folder {folder} takes no files"
    return error.strerror or str(error)


def _reason(error: BaseException, place: Path) -> str | None:
    """Why the write failed; None if the error has another cause."""
    for seen in causes(error):
        if isinstance(seen, OSError):
            return why_not_written(place, seen)
    said = str(error)
    return first_line(error) if "inline_container" in said or "PytorchStreamWriter" in said else None


def link_or_copy(source: Path, file: Path) -> None:
    """Make a file a hard link to a source, or a copy if the file system has no hard links."""
    with replacement(file, sync=False) as draft:
        draft.unlink()
        try:
            os.link(source.resolve(), draft)
        except OSError:
            copy_new(source, draft)


def copy_new(source: str | os.PathLike[str], file: str | os.PathLike[str]) -> None:
    """Copy the content of a regular file to a new file.

    Raises:
        OSError: the source cannot be read, or the new file already exists.
    """
    with open_regular(source) as content, os.fdopen(exclusive(file), "wb") as stream:
        shutil.copyfileobj(content, stream)


def append_to(file: Path) -> BinaryIO:
    """Open a file of this program for appending; a link in its place is not followed.

    Raises:
        OSError: it cannot be opened, or is a link.
    """
    return os.fdopen(
        os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _NO_FOLLOW | _NO_WAIT | _PLAIN, 0o666), "ab"
    )


def check_outputs(files: Sequence[Path], *, force: bool, parents: bool = False) -> None:
    """Refuse files that must not or cannot be written; to be called before the work whose results they are to hold.

    Args:
        files: the files to write.
        force: replace existing files.
        parents: whether missing parent folders will be made.

    Raises:
        UserError: one of the files exists and ``force`` is not set, is a folder, or cannot be written.
    """
    for file in files:
        with writing_in(file):
            if file.is_dir():
                raise UserError(f"{file} is a folder; name a file")
            _refuse_unwritable(file, parents)
            _refuse_special(file)
        if file.exists() and not force:
            raise UserError(f"{file} is there already; --force replaces it, -o names another")


def check_new_folder(folder: Path) -> None:
    """Refuse a folder that `whole_folder` could not write; to be called before the work whose results it is to hold.

    Raises:
        UserError: it holds something, is no folder, or cannot be made.
    """
    with writing_in(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} exists and is left as it is; name another folder")
    _refuse_unwritable(folder, parents=True)


def _refuse_unwritable(place: Path, parents: bool) -> None:
    if not parents and not place.parent.exists():
        raise UserError(f"{place} cannot be written: there is no folder {place.parent}")
    reason = why_unwritable(place)
    if reason is not None:
        raise UserError(f"{place} cannot be written: {reason}")


def why_unwritable(place: Path) -> str | None:
    """Why a file or folder and its missing parents cannot be made, as found by making an empty file; None if they can.

    The file is made in the nearest existing folder above the place, and removed.
    """
    above = place.parent
    while not os.path.lexists(above) and above != above.parent:
        above = above.parent
    probe = above / place.name
    try:
        if not above.is_dir():
            return f"{above} is not a folder"
        with _draft_of(probe):
            return None
    except OSError as error:
        return why_not_written(probe, error)


def _refuse_special(file: Path) -> None:
    """Refuse a pipe, a socket or a device: root could replace /dev/null by a file."""
    with contextlib.suppress(FileNotFoundError):
        mode = os.stat(file).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
        if not stat.S_ISREG(mode):
            raise UserError(f"{file} cannot be written: it is not a file, but a pipe, a socket or a device")


def exclusive(file: str | os.PathLike[str]) -> int:
    """A descriptor for writing a new file; an existing file or link is not touched.

    Raises:
        OSError: the file already exists.
    """
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_FOLLOW | _PLAIN, 0o666)


@contextmanager
def _draft_of(place: Path) -> Iterator[Path]:
    """An empty file next to ``place``, removed at the end unless it was moved.

    It is locked meanwhile, so that other processes do not treat it as a draft of a killed process.
    """
    _remove_stale(place.parent)
    draft, descriptor = _made_draft(place)
    try:
        if _WINDOWS:  # Windows does not move a file that is open
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
            os.close(descriptor)  # another process removed it as stale before it was locked


def _sync(draft: Path) -> None:
    """Write the content to the disk, so that after a crash the name does not exist without the content."""
    with open(draft, "rb+") as stream:
        os.fsync(stream.fileno())


def _remove_stale(folder: Path) -> None:
    """Remove drafts that killed processes left in a folder; each process checks a folder once."""
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
