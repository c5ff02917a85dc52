"""The folder of what is kept for later processes, and checks that no other user can have written a file in it.

A user who may write to a folder can put a file there. A user who may write to the parent folder can replace the folder
itself, unless the sticky bit (as on /tmp) protects what others own. For a link, both its own place and its target are
checked. Root and the owner of the root folder are trusted, because nothing protects against them.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from yolov5_ema.settings import read

_MOST_LINKS = 40


def cache_folder() -> Path | None:
    """The cache folder, made if missing.

    Returns:
        An absolute path; None if other users could write to it, this user cannot, or the system (Windows) does not say.
    """
    if not hasattr(os, "getuid"):
        return None
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(read("cache") or Path(base) / "yolov5-ema").absolute()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        # Path.home() raises RuntimeError for a user without a home folder
        return None
    return folder if is_private_folder(folder) and os.access(folder, os.W_OK) else None


def is_private_file(file: Path) -> bool:
    """Whether a path is a regular file of this user that nobody else may write to. Links are not followed.

    Its folder must be private (`is_private_folder`); otherwise the file can be replaced after the check.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid() and not _others_may_write(status)


def is_private_folder(folder: Path) -> bool:
    """Whether a folder belongs to this user, and nobody else may write to it or replace it."""
    try:
        status = folder.stat()
        is_own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
        return is_own and not status.st_mode & 0o022 and _is_protected(folder)
    except OSError:
        return False


def _is_protected(path: Path) -> bool:
    """Whether nobody else can change where an absolute path leads. Every folder in it is checked, also in links."""
    ahead, at, links = list(path.parts[1:]), Path(path.anchor), 0
    while ahead:
        folder, step = at.stat(), at / ahead.pop(0)
        status = step.lstat()
        is_kept = not _others_may_write(folder) or folder.st_mode & stat.S_ISVTX
        if not (is_kept and _is_trusted(folder.st_uid) and _is_trusted(status.st_uid)):
            return False
        if not stat.S_ISLNK(status.st_mode):
            at = step
            continue
        links += 1
        if links > _MOST_LINKS:
            return False
        target = at / os.readlink(step)
        ahead, at = [*target.parts[1:], *ahead], Path(target.anchor)
    return True


def _is_trusted(user: int) -> bool:
    return user in (os.getuid(), 0, os.stat("/").st_uid)


def _others_may_write(status: os.stat_result) -> bool:
    """Whether others may write. A group with this user as its only member, as many systems create, does not count."""
    if status.st_mode & stat.S_IWOTH:
        return True
    return bool(status.st_mode & stat.S_IWGRP) and not _is_own_group(status.st_gid)


def _is_own_group(group: int) -> bool:
    import grp
    import pwd

    try:
        user, entry = pwd.getpwuid(os.getuid()), grp.getgrgid(group)
    except KeyError:
        return False
    return entry.gr_name == user.pw_name and set(entry.gr_mem) <= {user.pw_name}
