"""A folder with a small data set and a model YAML, in which commands are given malicious files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from hostile_yaml import SMALL, as_text
from under_watch import command


def lay_out(folder: Path) -> None:
    (folder / "small.yaml").write_bytes(as_text(SMALL))
    for split in ("train", "val"):
        (folder / "images" / split).mkdir(parents=True)
        cv2.imwrite(str(folder / "images" / split / "a.jpg"), np.full((32, 32, 3), 90, np.uint8))
    data = {
        "path": str(folder),
        "train": "images/train",
        "val": "images/val",
        "nc": 3,
        "names": ["a", "b", "c"],
    }
    (folder / "good.yaml").write_bytes(as_text(data))


def is_refused(name: str, arguments: Sequence[object], folder: Path, words: str) -> None:
    """The command refuses it, or `inspect` warns; nothing runs, and nothing is left behind."""
    before = set(folder.rglob("*"))
    code, said = command(name, *arguments, folder=folder)
    assert code == 2 or (name == "inspect" and code == 1 and "warning: " in said), f"{name}: {code}\n{said}"
    assert words in said.replace("\n", " "), f"{name} does not name {words!r}:\n{said}"
    left = {str(path) for path in set(folder.rglob("*")) - before}
    assert not left, f"{name} left behind: {left}"
