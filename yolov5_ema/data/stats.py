"""Statistics of a data set: box sizes at a given image size, classes, and whether a finer head may help."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from yolov5_ema.data.dataset import Dataset
from yolov5_ema.data.image_size import read_image_info, reason_left_out
from yolov5_ema.data.problems import Problem, of_line
from yolov5_ema.errors import ConfigError
from yolov5_ema.texts import aligned

MARKS = (8, 16, 32)
"""Pixels: one, two and four cells of YOLOv5's finest head (stride 8); four are COCO's upper bound of "small"."""

LIKELY, PERHAPS = 0.30, 0.10
"""A stride-4 head is "likely" or "perhaps" worthwhile from this share of boxes below two cells of stride 8."""


@dataclass
class SplitStats:
    """Statistics of one split.

    Attributes:
        split: train, val or test.
        images: the number of images that YOLOv5 uses.
        background: the number of images without a box.
        class_counts: the number of boxes of each class, int64 of shape (nc,).
        sizes: the square root of each box's area in pixels at ``imgsz``, of shape (B,).
        per_image: the number of boxes in each image, of shape (images,).
        problems: images and label lines that were skipped or are unusual.
    """

    split: str
    images: int
    background: int
    class_counts: np.ndarray
    sizes: np.ndarray
    per_image: np.ndarray
    problems: list[Problem] = field(default_factory=list)

    @property
    def boxes(self) -> int:
        """The number of boxes."""
        return len(self.sizes)

    def share_below(self, pixels: float) -> float:
        """The fraction of boxes with a side (square root of the area) below ``pixels``; 0 if there are no boxes."""
        return float((self.sizes < pixels).mean()) if len(self.sizes) else 0.0

    def as_dict(self) -> dict[str, Any]:
        """The statistics as plain numbers, for JSON."""
        return {
            "images": self.images,
            "background_images": self.background,
            "boxes": self.boxes,
            "boxes_per_image": {
                "median": float(np.median(self.per_image)) if self.images else 0.0,
                "max": int(self.per_image.max(initial=0)),
            },
            "share_below": {str(mark): self.share_below(mark) for mark in MARKS},
            "median_size": float(np.median(self.sizes)) if self.boxes else None,
            "class_counts": self.class_counts.tolist(),
            "left_out": dict(Counter(problem.kind for problem in self.problems)),
        }


@dataclass(frozen=True)
class Verdict:
    """Whether a head at stride 4 is likely to help.

    Attributes:
        word: likely, perhaps or unlikely.
        sentence: the verdict with its numbers.
    """

    word: str
    sentence: str


def split_stats(data: Dataset, split: str, imgsz: int) -> SplitStats:
    """The statistics of the images of one split that YOLOv5 trains on.

    Raises:
        ConfigError: the YAML has no such split, its images are missing, or none can be used.
    """
    nc = len(data.names)
    classes, sizes, per_image, problems = [], [], [], []
    for image in data.images(split):
        labels = data.labels(image)
        reason = reason_left_out(image) or labels.reason_left_out
        if reason:
            problems.append(Problem("image", str(image), reason))
            continue
        problems += map(of_line, labels.bad)
        problems += [of_line(row, "odd") for row in labels.odd]
        info, rows = read_image_info(image), labels.seen
        scale = imgsz / max(info.width, info.height)
        sides = rows[:, 3:] * (info.width, info.height) * scale
        sizes.append(np.sqrt(sides.prod(axis=1)).round(3))  # labels are not more precise
        classes.append(rows[:, 0].astype(np.int64))
        per_image.append(len(rows))
    if not per_image:
        raise ConfigError(f"{data.file}: none of the images of {split} can be used; the first: {problems[0]}")
    counts = np.bincount(np.concatenate(classes), minlength=nc)
    boxes = np.array(per_image, np.int64)
    background = int((boxes == 0).sum())
    return SplitStats(split, len(boxes), background, counts, np.concatenate(sizes), boxes, problems)


def verdict(stats: SplitStats, imgsz: int) -> Verdict:
    """Whether a head at stride 4 is likely to help, by the share of boxes below 16 pixels.

    YOLOv5's finest head has cells of 8 pixels. To be separated from its neighbours, an object needs about two cells in
    each direction. Below 8 pixels, a stride-4 head is at the same limit, and a larger ``imgsz`` helps more.
    """
    cell, two_cells, _ = MARKS
    share, tiny = stats.share_below(two_cells), stats.share_below(cell)
    if not stats.boxes:
        return Verdict("unlikely", f"{stats.split} has no boxes, so nothing can be said of a stride-4 head.")
    word = "likely" if share >= LIKELY else "perhaps" if share >= PERHAPS else "unlikely"
    says = {
        "likely": "is likely to pay",
        "perhaps": "may pay, so try both",
        "unlikely": "is unlikely to pay for its time and memory",
    }[word]
    sentence = (
        f"A stride-4 head (P2) {says}: at imgsz {imgsz}, {share:.1%} of the boxes of {stats.split} are below "
        f"{two_cells} pixels, two cells of stride 8, and {tiny:.1%} below {cell} "
        f"(likely from {LIKELY:.0%} below {two_cells}, perhaps from {PERHAPS:.0%})."
    )
    return Verdict(word, sentence)


def table(names: Sequence[str], stats: Sequence[SplitStats]) -> str:
    """The statistics of all splits as a text table."""
    rows: list[tuple[str, list[str]]] = [
        ("images", [f"{split.images:,}" for split in stats]),
        ("without boxes", [f"{split.background:,}" for split in stats]),
        ("boxes", [f"{split.boxes:,}" for split in stats]),
        ("boxes per image, median", [f"{np.median(split.per_image):g}" for split in stats]),
        ("boxes per image, most", [f"{split.per_image.max(initial=0):,}" for split in stats]),
    ]
    rows += [(f"below {mark} pixels", [f"{split.share_below(mark):.1%}" for split in stats]) for mark in MARKS]
    shares = [[_share(count, split.boxes) for count in split.class_counts] for split in stats]
    classes = [(name, [split[index] for split in shares]) for index, name in enumerate(names)]
    table = [("", *(split.split for split in stats)), *((label, *cells) for label, cells in rows + classes)]
    lines = aligned(table).split("\n")
    lines[1 + len(rows) : 1 + len(rows)] = ["", "boxes of each class"]
    return "\n".join(lines)


def _share(count: int, total: int) -> str:
    return f"{count:,} {count / total:6.1%}" if total else f"{count:,}"
