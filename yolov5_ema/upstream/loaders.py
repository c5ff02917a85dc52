"""What the data loader of a YOLOv5 reads, according to its source code."""

from __future__ import annotations

import ast
import functools
from typing import Any

from yolov5_ema.data.listing import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from yolov5_ema.data.yolo_format import POLYGON_FROM
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.source_code import Code, code_in, value_of
from yolov5_ema.upstream.ultralytics import NAME as ULTRALYTICS

_OF_ROWS = (ast.GeneratorExp, ast.ListComp)


def loader_module(engine: Engine) -> str:
    """The module of a YOLO's data loaders; in YOLOv5, its name changed after v6.1."""
    if engine.kind == ULTRALYTICS:
        return "data.utils"
    return "utils.dataloaders" if engine.has_script("utils.dataloaders") else "utils.datasets"


@functools.lru_cache(maxsize=1)
def loader_code(engine: Engine) -> Code:
    """The code of a YOLOv5's data loaders; empty if there is no such file."""
    file = engine.root / f"{loader_module(engine).replace('.', '/')}.py"
    return code_in(file) if file.is_file() else Code("")


def image_suffixes(engine: Engine) -> frozenset[str]:
    """The suffixes of the images that a YOLOv5 reads, such as ``.jpg``."""
    return _suffixes(loader_code(engine), "IMG_FORMATS") or IMAGE_SUFFIXES


def video_suffixes(engine: Engine) -> frozenset[str]:
    """The suffixes of the videos that a YOLOv5 reads, such as ``.mp4``."""
    return _suffixes(loader_code(engine), "VID_FORMATS") or VIDEO_SUFFIXES


def polygon_from(engine: Engine | None) -> int:
    """The number of columns from which a YOLOv5 reads a label row as a polygon; see `POLYGON_FROM`."""
    if engine is None:
        return POLYGON_FROM
    asked = (_asked_columns(of_rows) for kind in _OF_ROWS for of_rows in loader_code(engine).all(kind))
    return next((columns + 1 for columns in asked if columns is not None), POLYGON_FROM)


def _suffixes(code: Code, name: str) -> frozenset[str]:
    for assignment in code.all(ast.Assign):
        if any(isinstance(target, ast.Name) and target.id.upper() == name for target in assignment.targets):
            words = map(value_of, getattr(assignment.value, "elts", []))
            return frozenset(f".{word.lower()}" for word in words if isinstance(word, str))
    return frozenset()


def _asked_columns(of_rows: Any) -> int | None:
    """The number N in ``len(row) > N for row in rows``."""
    question = of_rows.elt
    is_length = isinstance(question, ast.Compare) and Code(question.left).calls("len")
    is_more = is_length and isinstance(question.ops[0], ast.Gt)
    number = value_of(question.comparators[0]) if is_more else None
    return number if isinstance(number, int) else None
