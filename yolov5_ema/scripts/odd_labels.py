"""What a YOLOv5 makes of odd label rows; and letting its ``val`` look at images that it would leave out for one."""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from yolov5_ema.data.dataset import label_path
from yolov5_ema.data.image_size import reason_left_out
from yolov5_ema.data.yolo_format import POLYGON_FROM, read_labels
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.patching import Patches
from yolov5_ema.upstream.source_code import Code, code_in, value_of

_OF_ROWS = (ast.GeneratorExp, ast.ListComp)
_NOTES = ("hash", "version", "msgs", "results")


def polygon_from(engine: Engine | None) -> int:
    """From how many columns on a YOLOv5 takes a label row for a polygon, as its text says; see `POLYGON_FROM`."""
    if engine is None:
        return POLYGON_FROM
    file = engine.root / f"{_module_of(engine).replace('.', '/')}.py"
    code = code_in(file)
    asked = (_asked_columns(of_rows) for kind in _OF_ROWS for of_rows in code.all(kind))
    return next((columns + 1 for columns in asked if columns is not None), POLYGON_FROM)


def _asked_columns(of_rows: Any) -> int | None:
    """The number N in ``len(row) > N for row in rows``."""
    question = of_rows.elt
    is_length = isinstance(question, ast.Compare) and Code(question.left).calls("len")
    is_more = is_length and isinstance(question.ops[0], ast.Gt)
    number = value_of(question.comparators[0]) if is_more else None
    return number if isinstance(number, int) else None


def _module_of(engine: Engine) -> str:
    return "utils.dataloaders" if engine.has_script("utils.dataloaders") else "utils.datasets"


def has_odd_images(images: Iterable[Path], nc: int) -> bool:
    """Whether YOLOv5 may leave out one of these images for its labels."""
    return any(read_labels(label_path(image), nc).named for image in images)


@contextmanager
def odd_images_kept(engine: Engine, nc: int) -> Iterator[None]:
    """Let data sets that are opened within have images with odd label rows, by those of their rows that can be used.

    What YOLOv5 keeps in its label caches stays as it would write it.

    Args:
        engine: the YOLOv5, with the shim installed.
        nc: number of classes.
    """
    module: Any = engine.module(_module_of(engine))
    kind = module.LoadImagesAndLabels
    patches = Patches()
    patches.set(kind, "cache_labels", _with_odd_images(kind.cache_labels, module, nc))
    patches.set(module.np, "load", _without_caches(module.np.load))
    try:
        yield
    finally:
        patches.undo()


def _without_caches(load: Callable[..., Any]) -> Callable[..., Any]:
    """`np.load`, to which there is no label cache: the labels themselves are read."""

    @functools.wraps(load)
    def wrapper(file: Any, *args: Any, **kwargs: Any) -> Any:
        if Path(str(file)).suffix == ".cache":
            raise FileNotFoundError(str(file))
        return load(file, *args, **kwargs)

    return wrapper


def _with_odd_images(
    cache_labels: Callable[..., dict[str, Any]], module: Any, nc: int
) -> Callable[..., dict[str, Any]]:
    @functools.wraps(cache_labels)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        found = cache_labels(self, *args, **kwargs)
        files = getattr(self, "im_files", None) or self.img_files
        entries = {file: found.get(file) or _entry(file, module, nc) for file in files}
        kept = {file: entry for file, entry in entries.items() if entry is not None}
        return {**kept, **{note: found[note] for note in _NOTES if note in found}}

    return wrapper


def _entry(file: str, module: Any, nc: int) -> list[Any] | None:
    """Labels, size and polygons of an image, as YOLOv5 keeps them; None where the image itself is at fault."""
    image = Path(file)
    if reason_left_out(image):
        return None
    with Image.open(image) as opened:
        size = module.exif_size(opened)
    return [read_labels(label_path(image), nc).values.astype(np.float32), size, []]
