"""A synthetic data set that needs no download: shapes with fillings in random colours on a cluttered background.

Image ``index`` of a split depends only on the seed, the split and the index. The colours of shape and background come
from the same distribution for every class, so that colour says nothing about the class.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np

Shape = Callable[[np.ndarray, np.ndarray], np.ndarray]

_COLOURS_APART = 110.0  # minimum distance of two colours in one image; the largest possible one is 255 * sqrt(3)

# Each function takes coordinates (H, W) in units of the shape's radius and returns where the shape is. No shape becomes
# another one when left and right are swapped, as augmentation does.
_SHAPES: dict[str, Shape] = {
    "disc": lambda x, y: x**2 + y**2 < 0.72,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) < 0.75,
    "triangle": lambda x, y: (y < 0.7) & (abs(x) < (y + 0.95) * 0.6),
    "plus": lambda x, y: (np.minimum(abs(x), abs(y)) < 0.3) & (np.maximum(abs(x), abs(y)) < 1.0),
    "cross": lambda x, y: (np.minimum(abs(x + y), abs(x - y)) < 0.42) & (np.maximum(abs(x), abs(y)) < 0.8),
    "ring": lambda x, y: (x**2 + y**2 < 1.0) & (x**2 + y**2 > 0.3),
    "diamond": lambda x, y: abs(x) + abs(y) < 1.05,
    "bars": lambda x, y: (abs(abs(y) - 0.6) < 0.27) & (abs(x) < 1.0),
    "tee": lambda x, y: ((abs(y + 0.6) < 0.3) & (abs(x) < 0.95)) | ((abs(x) < 0.3) & (y > -0.6) & (y < 0.95)),
    "arch": lambda x, y: (np.maximum(abs(x), abs(y)) < 0.85) & ~((abs(x) < 0.35) & (y > -0.3)),
}

# Each function returns where the second colour is.
_FILLINGS: dict[str, Shape] = {
    "plain": lambda x, y: np.zeros(x.shape, bool),
    "lines": lambda x, y: np.floor(y * 3.2) % 2 == 0,
    "posts": lambda x, y: np.floor(x * 3.2) % 2 == 0,
    "slanted": lambda x, y: np.floor((x + y) * 2.3) % 2 == 0,
    "checked": lambda x, y: (np.floor(x * 2.6) + np.floor(y * 2.6)) % 2 == 0,
    "level": lambda x, y: y < 0,
    "upright": lambda x, y: x < 0,
    "cored": lambda x, y: x**2 + y**2 < 0.5,
    "quartered": lambda x, y: x * y < 0,
    "banded": lambda x, y: abs(y) < 0.5,
}

MOST_CLASSES = len(_SHAPES) * len(_FILLINGS)


def class_names(classes: int) -> list[str]:
    """The names of the first ``classes`` classes: the first ten are shapes in one colour, others also have fillings."""
    shapes = list(_SHAPES)
    if classes <= len(shapes):
        return shapes[:classes]
    fillings = list(_FILLINGS)
    return [f"{fillings[index // len(shapes)]} {shapes[index % len(shapes)]}" for index in range(classes)]


def draw(seed: int, split: str, index: int, classes: int, imgsz: int) -> tuple[np.ndarray, int]:
    """Draw one image of the data set.

    Args:
        seed: seed of the data set.
        split: ``train`` or ``val``; no image is in both.
        index: index of the image.
        classes: number of classes.
        imgsz: side in pixels.

    Returns:
        uint8 of shape (imgsz, imgsz, 3) in RGB, and the class, which is ``index % classes``.
    """
    label = index % classes
    rng = np.random.default_rng([seed, zlib.crc32(split.encode()), index])
    ground, first, second = _colours(rng)
    canvas = ground + _clutter(rng, imgsz)  # (H, W, 3)
    x, y = _coordinates(rng, imgsz)
    shape = list(_SHAPES.values())[label % len(_SHAPES)](x, y)  # (H, W)
    filling = list(_FILLINGS.values())[label // len(_SHAPES)](x, y)  # (H, W)
    canvas = np.where(shape[..., None], np.where(filling[..., None], second, first), canvas)
    canvas = canvas + rng.normal(0, 6, canvas.shape)
    return canvas.clip(0, 255).astype(np.uint8), label


def _colours(rng: np.random.Generator) -> np.ndarray:
    """Three colours (3, 3) that can be distinguished."""
    while True:
        colours = rng.uniform(20, 235, (3, 3))
        apart = [np.linalg.norm(colours[a] - colours[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
        if min(apart) > _COLOURS_APART:
            return colours


def _coordinates(rng: np.random.Generator, imgsz: int) -> tuple[np.ndarray, np.ndarray]:
    """The pixels' coordinates, (H, W) each, relative to a shape of random place and size and with a slight tilt."""
    radius = rng.uniform(0.3, 0.45) * imgsz
    middle = imgsz / 2 + rng.uniform(-1, 1, 2) * (imgsz / 2 - radius)
    angle = rng.uniform(-0.15, 0.15)
    row, column = np.mgrid[:imgsz, :imgsz] + 0.5
    right, down = (column - middle[0]) / radius, (row - middle[1]) / radius
    return right * np.cos(angle) + down * np.sin(angle), down * np.cos(angle) - right * np.sin(angle)


def _clutter(rng: np.random.Generator, imgsz: int) -> np.ndarray:
    """Coarse patches and some lines, (H, W, 3), with values around 0."""
    cells = 4
    patches = rng.normal(0, 10, (cells, cells, 3)).repeat(-(-imgsz // cells), 0).repeat(-(-imgsz // cells), 1)
    canvas = patches[:imgsz, :imgsz].copy()
    row, column = np.mgrid[:imgsz, :imgsz] / imgsz
    for _ in range(2):
        normal, offset = rng.uniform(-1, 1, 2), rng.uniform(-0.5, 0.5)
        line = abs((column - 0.5) * normal[0] + (row - 0.5) * normal[1] - offset * 0.5) < 0.02
        canvas[line] += rng.normal(0, 30, 3)
    return canvas
