"""Files that other processes write into folders."""

from __future__ import annotations

from pathlib import Path


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def write(*places: Path) -> None:
    """Write a file, as another process would."""
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("of another process")
