"""The shim in a clone of YOLOv5."""

from __future__ import annotations

import sys


def installs_in_a_clone(clone: str, version: str) -> None:
    import yolov5_ema

    engine = yolov5_ema.install(clone)
    assert engine.kind == "clone" and engine.version == version, engine
    from models.yolo import Model

    from yolov5_ema.cfgs.generator import build_cfg

    model = Model(build_cfg(size="n", block="CBAM"))
    assert type(model.model[7]) is yolov5_ema.CBAM
    assert type(model).__module__ == "models.yolo" and "yolov5" not in sys.modules
    import models.yolo
    import numpy
    import torch
    import utils.general

    yolov5_ema.uninstall()
    assert utils.general.np is numpy and utils.general.torch is torch
    assert not hasattr(models.yolo.parse_model, "__wrapped__")
