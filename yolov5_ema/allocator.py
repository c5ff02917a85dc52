"""How the C library's memory allocator deals with freed memory."""

from __future__ import annotations

import ctypes
import os

# Options of mallopt, by their numbers in malloc.h. Older releases refuse an M_MMAP_THRESHOLD of more than 32 MiB.
_ARENA_MAX, _TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -8, -1, -2, -3
_KEEP = (
    (_ARENA_MAX, 1),
    (_TRIM_THRESHOLD, 2**31 - 1),
    (_MMAP_THRESHOLD, 32 << 20),
    (_MMAP_THRESHOLD, 1 << 30),
    (_TOP_PAD, 64 << 20),  # the only one of these that holds for threads that have memory of their own since before
)


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, for its next image or batch; there is no way back.

    glibc gives large freed blocks back to the system, and takes the same amount anew, page by page, for the next image
    or batch. This costs up to a fifth of a model's time on a CPU. Other C libraries are left alone, and so is glibc if
    the user has set one of the allocator's variables (``MALLOC_TRIM_THRESHOLD_`` …, ``GLIBC_TUNABLES``).
    """
    if "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", ()) or _is_set_by_user():
        return
    libc = ctypes.CDLL(None)
    for option, value in _KEEP:
        libc.mallopt(option, value)


def _is_set_by_user() -> bool:
    is_tuned = "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", "")
    return is_tuned or any(name.startswith("MALLOC_") for name in os.environ)
