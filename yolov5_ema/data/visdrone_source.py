"""Find the splits of VisDrone2019-DET in archives and folders."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from yolov5_ema.data.archives import Place, check_archive, folders_of
from yolov5_ema.data.visdrone_format import SPLIT_FOLDERS
from yolov5_ema.errors import UserError

CHALLENGE = "VisDrone2019-DET-test-challenge"
_DEPTH = 4
_SPLIT = re.compile(r"(?:^|[-_ .])(train|val|test)(?:[-_ ]?(dev|challenge))?(?:set)?(?=$|[-_ .(])", re.IGNORECASE)


@dataclass(frozen=True)
class SplitSource:
    """One downloaded split.

    Attributes:
        split: train, val or test.
        folder: the benchmark's name for the split.
        place: the folder or archive with ``images/`` and ``annotations/``.
    """

    split: str
    folder: str
    place: Place


def find_splits(places: Sequence[Path]) -> tuple[list[SplitSource], list[str]]:
    """Find splits in archives and folders; return them in the order train, val, test.

    Args:
        places: zip files, unpacked splits, or folders with any of these.

    Returns:
        The splits, at most one of each, and notes about what was found but not used.

    Raises:
        UserError: nothing was found, a split was found twice, or an archive cannot be used.
    """
    found: dict[str, list[SplitSource]] = {}
    nameless = None
    for place in places:
        for where, names in _candidates(Path(os.path.abspath(os.path.expanduser(place)))):
            source = _named(where, names)
            if source is None:
                nameless = where
            elif source not in found.setdefault(source.folder, []):
                found[source.folder].append(source)
    if not found and nameless is not None:
        raise UserError(
            f"{nameless} has images/, but its name does not say which split it is; "
            f"rename it to the benchmark's name: {', '.join(SPLIT_FOLDERS.values())}"
        )
    if not found:
        raise UserError(
            f"no split of VisDrone2019-DET in {', '.join(map(str, places))}: looked for "
            f"{', '.join(f'{folder}.zip' for folder in SPLIT_FOLDERS.values())} and for unpacked folders of "
            "these names that have a folder images/"
        )
    notes: list[str] = []
    chosen = [_one_of(folder, sources, notes) for folder, sources in found.items()]
    if {CHALLENGE, SPLIT_FOLDERS["test"]} <= set(found):
        chosen = [source for source in chosen if source.folder != CHALLENGE]
        notes.append(f"{CHALLENGE} is not used: test is {SPLIT_FOLDERS['test']}, which has annotations")
    return sorted(chosen, key=lambda source: list(SPLIT_FOLDERS).index(source.split)), notes


def _one_of(folder: str, sources: list[SplitSource], notes: list[str]) -> SplitSource:
    """Choose a folder rather than the archive it was unpacked from; two of a kind raise a UserError."""
    unpacked = [source for source in sources if source.place.inside is None]
    best = unpacked or sources
    if len(best) > 1:
        raise UserError(f"{folder} was found twice: {best[0].place} and {best[1].place}; give the one to use")
    if len(sources) > len(best):
        notes.append(f"{folder} is taken from the folder {best[0].place}; its archive is not read")
    return best[0]


def _candidates(place: Path) -> Iterator[tuple[Place, list[str]]]:
    """The places that contain a folder ``images``, each with the names that may give its split, innermost first."""
    if place.is_file():
        yield from _in_archive(place, asked_for=True)
        return
    if not place.is_dir():
        raise UserError(f"{place}: there is no such file or folder")
    if not os.access(place, os.R_OK | os.X_OK):
        raise UserError(f"{place} cannot be read: permission denied")
    for folder, names, files in os.walk(place):
        here = Path(folder)
        depth = len(here.relative_to(place).parts)
        if "images" in names:
            yield Place(folder), [here.name, *(parent.name for parent in here.parents)][: depth + 1]
        if "images" in names or depth >= _DEPTH:
            names.clear()
        names.sort()
        for name in sorted(files):
            if name.lower().endswith(".zip") and _SPLIT.search(Path(name).stem):
                yield from _in_archive(here / name)


def _in_archive(file: Path, asked_for: bool = False) -> Iterator[tuple[Place, list[str]]]:
    check_archive(str(file))
    places = folders_of(file, "images")
    if asked_for and not places:
        raise UserError(f"{file} has no folder images/; it is not an archive of VisDrone2019-DET")
    for place in places:
        yield place, [*filter(None, reversed((place.inside or "").split("/"))), file.stem]


def _named(place: Place, names: Sequence[str]) -> SplitSource | None:
    match = next(filter(None, map(_SPLIT.search, names)), None)
    if match is None:
        return None
    split = match[1].lower()
    challenge = split == "test" and (match[2] or "").lower() == "challenge"
    return SplitSource(split, CHALLENGE if challenge else SPLIT_FOLDERS[split], place)
