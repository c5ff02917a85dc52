"""What converters share: checks of the folders that they write to, and the result that they return."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yolov5_ema.data.problems import Problem
from yolov5_ema.data.writing import MOST_JOURNAL, STATE_FOLDER, journal_entry
from yolov5_ema.errors import UserError
from yolov5_ema.reading import read_bytes


@dataclass
class SplitResult:
    """The result for one split.

    Attributes:
        split: train, val or test.
        folder: the output folder.
        annotated: whether there were annotations, and therefore labels.
        tallies: counts of images, boxes, others and so on.
        done_before: the number of images that an earlier run had converted.
        problems: what was left out.
    """

    split: str
    folder: str
    annotated: bool
    tallies: Counter[str] = field(default_factory=Counter)
    done_before: int = 0
    problems: list[Problem] = field(default_factory=list)


@dataclass
class Conversion:
    """The result of a run.

    Attributes:
        yaml_file: the data YAML; None if there is no split that it could list.
        splits: the result of each split that was found.
        notes: what the user should know.
        report: the file that lists everything that was left out; None if nothing was.
    """

    yaml_file: Path | None
    splits: list[SplitResult]
    notes: list[str]
    report: Path | None


def journal_file(out: Path, name: str) -> Path:
    """The path of the journal of a split."""
    return out / STATE_FOLDER / f"{name}.jsonl"


def last_entry(file: Path) -> dict[str, Any]:
    """The last entry of a journal; empty if there is none, or if it was cut off."""
    try:
        lines = read_bytes(file, MOST_JOURNAL).splitlines()
    except OSError:
        return {}
    return journal_entry(lines[-1]) if lines else {}


def check_folders(sources: Iterable[Path], out: Path) -> None:
    """Refuse to write into a source.

    Raises:
        UserError: ``out`` is a source folder or inside one, or is a file.
    """
    real_out = out.resolve()
    for source in sources:
        real = source.expanduser().resolve()
        if real.is_dir() and (real == real_out or real in real_out.parents):
            relation = "the same as" if real == real_out else "inside"
            raise UserError(f"-o {out} is {relation} the source {source}; give a folder outside of it")
    if out.exists() and not out.is_dir():
        raise UserError(f"-o {out} is a file; give a folder")


def check_target(target: Path, out: Path, name: str) -> None:
    """Refuse to write into a folder with files that no earlier run wrote.

    Raises:
        UserError: the folder has such files.
    """
    if target.is_dir() and any(target.iterdir()) and not journal_file(out, name).is_file():
        raise UserError(f"{target} is not empty and was not made by this command; give another -o")
