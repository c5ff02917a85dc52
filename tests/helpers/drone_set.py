"""Small sets in VisDrone's format, written for the tests."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 96, 64
TRAIN, VAL, TEST = (f"VisDrone2019-DET-{name}" for name in ("train", "val", "test-dev"))


def jpeg(width: int = WIDTH, height: int = HEIGHT, seed: int = 0) -> bytes:
    """A small picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def write_split(split: Path, annotations: Mapping[str, str | bytes | None]) -> Path:
    """Write a split with an image for each stem, and its annotations; None: the image has no annotation file."""
    (split / "images").mkdir(parents=True)
    (split / "annotations").mkdir()
    for index, (stem, text) in enumerate(annotations.items()):
        (split / "images" / f"{stem}.jpg").write_bytes(jpeg(seed=index))
        if text is not None:
            content = text if isinstance(text, bytes) else text.encode()
            (split / "annotations" / f"{stem}.txt").write_bytes(content)
    return split


def random_annotations(count: int, seed: int = 0, objects: int = 12) -> dict[str, str]:
    """Annotations by stem: with all categories, some objects of score 0, some that reach over the border."""
    rng = np.random.default_rng(seed)
    texts = {}
    for index in range(count):
        rows = []
        for _ in range(int(rng.integers(0, objects + 1))):
            left, top = rng.integers(-3, WIDTH - 4), rng.integers(-3, HEIGHT - 4)
            width, height = rng.integers(1, 30, 2)
            category = int(rng.integers(0, 12))
            score = 0 if category == 0 or rng.random() < 0.1 else 1
            rows.append(f"{left},{top},{width},{height},{score},{category},0,{rng.integers(0, 3)}\n")
        texts[f"{index:07d}_d_{index:04d}"] = "".join(rows)
    return texts


def zipped(folder: Path, archive: Path, top: str) -> Path:
    """Write an archive of a folder's files, with ``top`` before each name."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as stream:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                stream.write(file, f"{top}{file.relative_to(folder)}")
    return archive


def label_rows(file: Path) -> np.ndarray:
    """The rows of a label file, shape (N, 5)."""
    return np.array(file.read_text().split(), float).reshape(-1, 5)


def tree(folder: Path) -> dict[str, bytes]:
    """The content of every file below a folder, by relative path, without the files that make a run resumable."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and ".yolov5-ema" not in file.parts
    }
