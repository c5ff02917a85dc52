"""Paint over the regions of an image that a benchmark does not evaluate."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from yolov5_ema.data.image_size import BROKEN
from yolov5_ema.data.writing import draft_of
from yolov5_ema.errors import UserError

GREY = 114
"""The grey that YOLOv5 pads images with, which a network learns to ignore."""

JPEG_QUALITY = 97
HIDDEN_SHARE = 0.5
"""A box is dropped if this fraction of it is covered, as in VisDrone's own toolkit."""


class BrokenImageError(UserError):
    """An image has a valid header but cannot be decoded; ``image`` is its file name."""

    def __init__(self, image: str, reason: object) -> None:
        super().__init__(f"it cannot be decoded: {reason}")
        self.image = image


def hidden_boxes(boxes: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Find the boxes that are covered by the regions at least by half.

    Args:
        boxes: left, top, right, bottom, of shape (N, 4).
        regions: the same, of shape (M, 4).

    Returns:
        bool of shape (N,); False for boxes without area.
    """
    return np.array([_covered(box, regions) >= HIDDEN_SHARE for box in boxes], dtype=bool)


def _covered(box: np.ndarray, regions: np.ndarray) -> float:
    """The fraction of a box that the union of the regions covers, exactly: summed over the cells between all edges."""
    area = (box[2] - box[0]) * (box[3] - box[1])
    low = np.clip(regions[:, :2], box[:2], box[2:])
    high = np.clip(regions[:, 2:], box[:2], box[2:])
    inside = ((high - low) > 0).all(axis=1)
    if area <= 0 or not inside.any():
        return 0.0
    low, high = low[inside], high[inside]
    xs, ys = (np.unique([low[:, axis], high[:, axis]]) for axis in (0, 1))
    across = (low[:, :1] <= xs[:-1]) & (xs[1:] <= high[:, :1])
    down = (low[:, 1:] <= ys[:-1]) & (ys[1:] <= high[:, 1:])
    cells = (down[:, :, None] & across[:, None, :]).any(axis=0)
    return float((cells * np.diff(ys)[:, None] * np.diff(xs)[None]).sum() / area)


def place_masked(content: bytes, name: str, regions: np.ndarray, target: str, drafts: str) -> None:
    """Write an image with grey regions, in its original format.

    Args:
        content: the content of the image file.
        name: the name of the image file.
        regions: left, top, right, bottom in pixels, of shape (M, 4), within the image.
        target: the file to write.
        drafts: the folder for the unfinished file.

    Raises:
        BrokenImageError: the image cannot be decoded.
        OSError: the target cannot be written.
    """
    with _decoded(content, name) as image:
        kind = image.format or "PNG"
        if image.mode not in ("L", "RGB"):
            image = image.convert("RGB")
        for left, top, right, bottom in regions.tolist():
            area = (int(left), int(top), -int(-right // 1), -int(-bottom // 1))
            image.paste(GREY if image.mode == "L" else (GREY, GREY, GREY), area)
        options = {"quality": JPEG_QUALITY, "subsampling": 0} if kind in ("JPEG", "MPO") else {}
        with draft_of(target, drafts) as file:
            image.save(file, format="JPEG" if kind == "MPO" else kind, **options)


def _decoded(content: bytes, name: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    except BROKEN as error:
        raise BrokenImageError(name, error) from error
    return image
