"""Checkpoints of another release."""

from __future__ import annotations

from pathlib import Path

import yolov5_ema
from yolov5_ema.cfgs.generator import build_cfg
from yolov5_ema.checkpoints.loading import save_checkpoint


def write_checkpoint_of_v7(clone: Path, head: str, file: Path) -> None:
    """Of yolov5n with EMA, not trained; ``head`` is Detect or Segment."""
    with yolov5_ema.installed(clone) as engine:
        yolo = engine.module("models.yolo")
        cfg = build_cfg(size="n", block="EMA", nc=3)
        if head == "Segment":
            cfg["head"][-1][2:] = ["Segment", ["nc", "anchors", 32, 64]]
        model = (yolo.SegmentationModel if head == "Segment" else yolo.Model)(cfg).half()
        save_checkpoint({"model": model, "ema": None}, file, engine=engine)
