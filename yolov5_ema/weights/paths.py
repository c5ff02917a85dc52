"""Reads the paths in a pickle as text, whichever operating system and Python wrote them.

Windows writes ``pathlib.WindowsPath``, which no other system can create. Python 3.13 calls the module
``pathlib._local``, which no other Python has. Plain text cannot open a file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath, PureWindowsPath


def posix_text(*parts: str) -> str:
    """The text of a Linux or macOS path."""
    return str(PurePosixPath(*parts))


def windows_text(*parts: str) -> str:
    """The text of a Windows path.

    >>> windows_text("C:\\\\", "sets", "cars.yaml")
    'C:\\\\sets\\\\cars.yaml'
    """
    return str(PureWindowsPath(*parts))


PATHS: dict[str, Callable[..., str]] = {
    f"{module}.{kind}{name}": text
    for module in ("pathlib", "pathlib._local")
    for kind in ("", "Pure")
    for name, text in (("PosixPath", posix_text), ("WindowsPath", windows_text))
}
"""Dotted names of path classes in pickles, and the function that is called instead of each."""
