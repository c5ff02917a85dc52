"""Which YOLO the name of a model YAML belongs to."""

from __future__ import annotations

from pathlib import Path

from yolov5_ema.data.yaml_files import read_yaml
from yolov5_ema.errors import ConfigError
from yolov5_ema.upstream.data_yaml import engine_at_hand, find_yaml
from yolov5_ema.upstream.ultralytics import NAME as ULTRALYTICS
from yolov5_ema.upstream.ultralytics import at_hand, find_cfg, is_cfg_of_ultralytics, located, sizes_beside


def cfg_of_ultralytics(name: str, said: str | None = None) -> Path | None:
    """The model YAML of ultralytics that a name or path means; None if it means one of YOLOv5, or none at all.

    A name that both have means YOLOv5's, unless ``said`` says otherwise.

    Args:
        name: the name or path.
        said: ``yolov5`` or ``ultralytics``, the user's choice; None: the form of the file decides.

    Raises:
        ConfigError: the file cannot be read, there is no such size, or ultralytics was chosen and has no such file.
    """
    if said not in (None, ULTRALYTICS):
        return None
    engine, of_yolov5 = at_hand(), find_yaml(name, engine_at_hand())
    if said is None and of_yolov5 is not None:
        return of_yolov5 if of_yolov5.is_file() and is_cfg_of_ultralytics(read_yaml(of_yolov5)) else None
    file = find_cfg(name, engine) or (of_yolov5 if said else None)
    letters = "" if file else sizes_beside(name, engine)
    if letters:
        raise ConfigError(f"{name}: there is no such size; the letter of the size is one of {', '.join(letters)}")
    if file is None and said:
        raise ConfigError(f"{name}: no such file here, among the YAMLs of yolov5-ema or of {located()}")
    return file
