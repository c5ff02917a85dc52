"""Paths in pickles, which become text: whichever system and Python wrote one, and nothing that opens a file.

Windows writes ``pathlib.WindowsPath``, which no other system can make; Python 3.13 calls the module
``pathlib._local``, which no other Python has.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath, PureWindowsPath


def posix_text(*parts: str) -> str:
    """What a path of Linux or macOS says."""
    return str(PurePosixPath(*parts))


def windows_text(*parts: str) -> str:
    """What a path of Windows says.

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
"""Dotted names of the classes of paths in pickles, and what is called instead of each."""
