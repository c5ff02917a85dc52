"""Views of one object in an image and in its windows: their coordinates, their ranks, and which show the same object.

See `yolov5_ema.scripts.sliced`; docs/slicing.md has the figures.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from yolov5_ema.data.image_files import read_image
from yolov5_ema.data.slicing import Window
from yolov5_ema.errors import UserError

# share of a window's side, at least 2 pixels: a box that ends this near to the border counts as cut
CUT_MARGIN = 0.01
CUT_MARGIN_PX = 2.0
SAME_IOU = 0.45  # from this IoU on, two views show the same object
SAME_INSIDE = 0.5  # if this share of a worse view lies in a better one, both show the same object
MOST_VIEWS = 5  # of one object: in four windows at their common corner, and in the whole image
BATCH = 8  # windows in one call of the model


@dataclass
class Origin:
    """Where boxes come from.

    Attributes:
        source: 0 for the whole image, then the number of the window; int64 (n,).
        rank: `WHOLE`, `SMALLER` or `CUT`, from best to worst; int64 (n,).
    """

    source: torch.Tensor
    rank: torch.Tensor

    @classmethod
    def of(
        cls, whole: torch.Tensor, in_windows: Sequence[torch.Tensor], cut: Sequence[Window], shape: tuple[int, int]
    ) -> Origin:
        """The origin of the boxes of an image, followed by those of its windows.

        Args:
            whole: boxes of the whole image in native pixels, (n, 4 or more).
            in_windows: boxes of each window, likewise; empty if the image is not cut.
            cut: the windows.
            shape: height and width of the image.
        """
        ranks = [rank_in_image(whole, cut, shape)]
        ranks += [rank_in_window(rows, window, shape) for window, rows in zip(cut, in_windows)]
        counts = torch.tensor([len(part) for part in ranks], device=whole.device)
        return cls(torch.arange(len(ranks), device=whole.device).repeat_interleave(counts), torch.cat(ranks))


WHOLE = 0
"""A box that its window does not cut, or a box of the whole image that no window could show better."""

SMALLER = 1
"""A box of the whole image that lies in a window, which shows it larger, and that is at most half as wide and high."""

CUT = 2
"""A box that ends where its window does, inside the image."""


@dataclass
class Ranked:
    """Boxes of one view of an image.

    Attributes:
        boxes: (n, 6) of x1, y1, x2, y2, confidence, class.
        rank: see `Origin`, (n,).
    """

    boxes: torch.Tensor
    rank: torch.Tensor


def suppressed_by_rank(
    rows: torch.Tensor, rank: torch.Tensor, suppress: Callable[..., Sequence[torch.Tensor]], labels: Sequence = ()
) -> Ranked:
    """Run YOLOv5's suppression on one view of an image, for each rank alone.

    Each rank gets its own call: for a batch, YOLOv5 skips what comes after its time limit.

    Args:
        rows: raw predictions, (m, 5 + classes), with boxes x, y, w, h.
        rank: their ranks, (m,).
        suppress: the suppression; it takes predictions (1, m, 5 + classes) and ``labels``.
        labels: known boxes that are added to those of the best rank.
    """
    found = Ranked(rows.new_zeros((0, 6)), rank[:0])
    for one in (WHOLE, SMALLER, CUT):
        chosen = rank == one
        given = labels if one == WHOLE else ()
        if not len(given) and not chosen.any():
            continue
        boxes = suppress(rows[chosen][None], labels=[given] if len(given) else ())[0]
        ranks = torch.full_like(boxes[:, 0], one, dtype=torch.long)
        found = Ranked(torch.cat([found.boxes, boxes]), torch.cat([found.rank, ranks]))
    return found


def merged(views: Sequence[Ranked], *, agnostic: bool, max_det: int) -> torch.Tensor:
    """The boxes of an image and of its windows, merged: at most ``max_det``, (k, 6), by decreasing confidence.

    Args:
        views: the boxes of the whole image, followed by those of its windows, all in the same coordinates.
        agnostic: see `merge`.
        max_det: the most boxes.
    """
    boxes, rank = torch.cat([view.boxes for view in views]), torch.cat([view.rank for view in views])
    counts = torch.tensor([len(view.rank) for view in views], device=rank.device)
    source = torch.arange(len(views), device=rank.device).repeat_interleave(counts)
    return merge(boxes, Origin(source, rank), agnostic=agnostic, limit=MOST_VIEWS * max_det)[:max_det]


def merge(boxes: torch.Tensor, origin: Origin, *, agnostic: bool = False, limit: int | None = None) -> torch.Tensor:
    """Remove the boxes that show the same object as a better box of another window.

    Lower ranks are better; within a rank, more confident boxes are better. A box is removed if a better box of its
    class has an IoU of `SAME_IOU` with it. A box that is not `WHOLE` is also removed if `SAME_INSIDE` of it lies in a
    better box of its class. Boxes of the same source and rank both stay: YOLOv5's suppression has compared them.

    Args:
        boxes: (n, 6) of x1, y1, x2, y2, confidence, class.
        origin: where the boxes come from.
        agnostic: whether boxes of different classes can show the same object.
        limit: compare only this many of the most confident boxes; None compares all. Memory grows with its square.

    Returns:
        The remaining boxes, (k, 6), by decreasing confidence.
    """
    best = boxes[:, 4].argsort(descending=True, stable=True)[:limit]
    order = best[origin.rank[best].argsort(stable=True)]
    boxes, source, rank = boxes[order], origin.source[order], origin.rank[order]
    is_compared = (source[:, None] == source) & (rank[:, None] == rank)  # by YOLOv5, with IoU
    rival = _same_object(boxes, rank) & ~is_compared
    if not agnostic:
        rival &= boxes[:, None, 5] == boxes[:, 5]
    kept = boxes[torch.from_numpy(_greedy(rival.cpu().numpy())).to(boxes.device)]
    return kept[kept[:, 4].argsort(descending=True, stable=True)]


def merged_views(
    whole: torch.Tensor,
    in_windows: Sequence[torch.Tensor],
    cut: Sequence[Window],
    shape: tuple[int, int],
    *,
    agnostic: bool,
    max_det: int,
) -> torch.Tensor:
    """The detections in an image and in its windows, merged: at most ``max_det``, (k, 6), by decreasing confidence.

    For the arguments see `Origin.of` and `merge`; each row is x1, y1, x2, y2, confidence, class.
    """
    views = [Ranked(whole, rank_in_image(whole, cut, shape))]
    views += [Ranked(rows, rank_in_window(rows, window, shape)) for window, rows in zip(cut, in_windows)]
    return merged(views, agnostic=agnostic, max_det=max_det)


def _greedy(rival: np.ndarray) -> np.ndarray:
    """Go through the items from the best on, each removing its worse rivals; return which remain, (n,)."""
    kept = np.ones(len(rival), dtype=bool)
    for index, rivals in enumerate(rival):
        if kept[index]:
            kept[index + 1 :] &= ~rivals[index + 1 :]
    return kept


def _same_object(boxes: torch.Tensor, rank: torch.Tensor) -> torch.Tensor:
    """Whether a box (first axis) shows the same object as a worse box (second axis): (n, 6) to (n, n)."""
    x1, y1, x2, y2 = boxes[:, :4].T
    width = torch.minimum(x2[:, None], x2) - torch.maximum(x1[:, None], x1)
    height = torch.minimum(y2[:, None], y2) - torch.maximum(y1[:, None], y1)
    shared = width.clamp(min=0) * height.clamp(min=0)
    area = (x2 - x1) * (y2 - y1)
    overlaps = shared >= SAME_IOU * (area[:, None] + area - shared)
    return overlaps | ((shared >= SAME_INSIDE * area) & (rank != WHOLE))


def native_pixels(path: str | os.PathLike[str]) -> np.ndarray:
    """An image as it is, uint8 of shape (H, W, 3) in BGR.

    Raises:
        UserError: it cannot be read.
    """
    pixels, problem = read_image(path)
    if pixels is None:
        raise UserError(f"{os.fspath(path)} {problem}")
    return pixels


def to_native(rows: torch.Tensor, window: Window, ratio: float, pad: tuple[float, float]) -> torch.Tensor:
    """Convert rows from x, y, w, h in a letterboxed window to native x1, y1, x2, y2, clipped to the window."""
    left, top, right, bottom = window
    start = rows.new_tensor([left, top])
    center = (rows[:, :2] - rows.new_tensor(pad)) / ratio + start
    half = rows[:, 2:4] / ratio / 2
    end = rows.new_tensor([right, bottom])
    low = torch.maximum(center - half, start)
    high = torch.minimum(center + half, end)
    return torch.cat([low, high, rows[:, 4:]], dim=1)


def to_letterbox(rows: torch.Tensor, gain_and_pad: tuple[float, float, float]) -> torch.Tensor:
    """Convert rows from native x1, y1, x2, y2 to x, y, w, h in pixels of the letterboxed image."""
    gain, left, top = gain_and_pad
    low, high = rows[:, :2] * gain, rows[:, 2:4] * gain
    center = (low + high) / 2 + rows.new_tensor([left, top])
    return torch.cat([center, high - low, rows[:, 4:]], dim=1)


def from_letterbox(rows: torch.Tensor, gain_and_pad: tuple[float, float, float]) -> torch.Tensor:
    """The inverse of `to_letterbox`, for the boxes only: (n, 4)."""
    gain, left, top = gain_and_pad
    center = (rows[:, :2] - rows.new_tensor([left, top])) / gain
    half = rows[:, 2:4] / gain / 2
    return torch.cat([center - half, center + half], dim=1)


def rank_in_image(boxes: torch.Tensor, cut: Sequence[Window], shape: tuple[int, int]) -> torch.Tensor:
    """The ranks of boxes of the whole image: native boxes, (n, 4 or more), to (n,)."""
    return SMALLER * fits_a_window(boxes[:, :4], cut, shape).long()


def rank_in_window(boxes: torch.Tensor, window: Window, shape: tuple[int, int]) -> torch.Tensor:
    """The ranks of boxes of a window: native boxes, (n, 4 or more), to (n,)."""
    return CUT * (~is_inside(boxes, window, shape)).long()


def is_inside(boxes: torch.Tensor, window: Window, shape: tuple[int, int]) -> torch.Tensor:
    """Whether native boxes, (n, 4 or more), stay away from those borders of a window that cut the image, (n,)."""
    left, top, right, bottom = window
    height, width = shape
    margin = max(CUT_MARGIN_PX, CUT_MARGIN * max(right - left, bottom - top))
    low = [left + margin if left > 0 else -math.inf, top + margin if top > 0 else -math.inf]
    high = [
        right - margin if right < width else math.inf,
        bottom - margin if bottom < height else math.inf,
    ]
    inside = (boxes[:, :2] > boxes.new_tensor(low)) & (boxes[:, 2:4] < boxes.new_tensor(high))
    return inside.all(dim=1)


def fits_a_window(boxes: torch.Tensor, cut: Sequence[Window], shape: tuple[int, int]) -> torch.Tensor:
    """Whether native boxes, (n, 4), lie inside a window that is at least twice as wide and as high, (n,)."""
    fits = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    for window in cut if len(cut) > 1 else ():
        left, top, right, bottom = window
        half = boxes.new_tensor([(right - left) / 2, (bottom - top) / 2])
        is_small = (boxes[:, 2:4] - boxes[:, :2] <= half).all(dim=1)
        fits |= is_small & is_inside(boxes, window, shape)
    return fits
