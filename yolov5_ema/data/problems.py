"""The problems that a conversion found: counted by kind, and described."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from yolov5_ema.data.text_rows import BadLine
from yolov5_ema.data.writing import draft_of
from yolov5_ema.errors import UserError
from yolov5_ema.texts import counted

SHOWN = 10
REPORT = "conversion_report.json"
KINDS = {
    "line": ("malformed line", ""),
    "odd": ("odd label row", ""),
    "annotation": ("annotation", " that cannot be used"),
    "image": ("image", " that cannot be used"),
    "size": ("image", " of another size than the annotations say"),
    "no annotation": ("image", " without an annotation file"),
    "no image": ("annotation file", " without an image"),
}
"""What each kind of problem is called: a noun that has a plural, and the words after it."""


class Problem(NamedTuple):
    """One thing that was left out.

    Attributes:
        kind: a key of `KINDS`.
        where: the file, or the file and the line.
        reason: what is wrong with it.
    """

    kind: str
    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


def of_line(bad: BadLine, kind: str = "line") -> Problem:
    """A malformed or odd line as a problem."""
    return Problem(kind, f"{bad.file}, line {bad.line}", bad.reason)


def describe(problems: Sequence[Problem]) -> list[str]:
    """The first `SHOWN` problems, and how many there are of each kind."""
    if not problems:
        return []
    counts = Counter(problem.kind for problem in problems)
    lines = [f"  {problem}" for problem in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"  … and {len(problems) - SHOWN:,} more")
    totals = ", ".join(f"{counted(counts[kind], noun)}{rest}" for kind, (noun, rest) in KINDS.items() if counts[kind])
    return [f"left out: {totals}", *lines]


def raise_if_any(problems: Sequence[Problem], then: str) -> None:
    """Refuse problems, for ``--strict``.

    Raises:
        UserError: there are problems; ``then`` says what happened to the output.
    """
    if problems:
        raise UserError("\n".join([f"--strict: {then}", *describe(problems)]))


def of_error(kind: str, where: str, error: Exception) -> Problem:
    """An error as a problem with the file that its message begins with."""
    return Problem(kind, where, str(error).removeprefix(where).lstrip(": "))


def write_report(out: Path, problems: Mapping[str, Sequence[Problem]], drafts: str) -> Path | None:
    """Write the problems of each split to ``conversion_report.json``; return its path.

    Without problems, the report of an earlier run is removed, and the result is None.
    """
    file = out / REPORT
    if not any(problems.values()):
        file.unlink(missing_ok=True)
        return None
    splits = {}
    for split, found in filter(lambda entry: entry[1], problems.items()):
        rows = [problem._asdict() for problem in found]
        counts = Counter(row["kind"] for row in rows)
        splits[split] = {"counts": dict(sorted(counts.items())), "problems": rows}
    with draft_of(file, drafts) as stream:
        stream.write(json.dumps(splits, indent=1).encode() + b"\n")
    return file
