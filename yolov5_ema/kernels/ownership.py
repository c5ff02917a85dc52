"""Whether a file can have been written by anybody but this user: asked of what is about to be run.

Who may write to a folder may put a file there, and who may write to the folder above may put another folder in its
place, except where the sticky bit, as that of /tmp, keeps them from what others own. A link is as good as where it
stands and where it leads. Root, and whoever owns the root folder, is trusted: nothing helps against them.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

_MOST_LINKS = 40


def is_private_file(file: Path) -> bool:
    """Whether it is a regular file of this user that nobody else may write to; opened without following a link.

    Its folder must be private, or it may be another one by the next time.
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
    """Whether it is this user's, and nobody else may write to it, or put another in its place."""
    try:
        status = folder.stat()
        is_own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
        return is_own and not status.st_mode & 0o022 and _is_beyond_reach(folder)
    except OSError:
        return False


def _is_beyond_reach(path: Path) -> bool:
    """Whether nobody else can make an absolute path lead elsewhere; every step is looked at, also behind links."""
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
    """A user's own group, as many systems make one for each user, is the user."""
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
