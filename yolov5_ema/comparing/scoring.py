"""Evaluating a checkpoint with YOLOv5's own ``val``; the unrounded results are written to a JSON file.

This is a script for ``yolov5-ema run``. It runs in a separate process, so that no evaluation affects the next one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yolov5_ema.engine import shim
from yolov5_ema.files import write_whole
from yolov5_ema.scripts import leash
from yolov5_ema.scripts.mistakes import errors_as_user_errors

CONFIDENCE_THRESHOLD = 0.001
IOU_THRESHOLD = 0.6
FIGURES = ("precision", "recall", "map50", "map50_95")


def score(
    weights: Path, data: Path, *, task: str, imgsz: int, batch_size: int, device: str, single_cls: bool
) -> dict[str, float]:
    """Evaluate a checkpoint with the default settings of YOLOv5's `val`.

    Returns:
        ``precision`` and ``recall`` at the confidence of best F1, ``map50`` and ``map50_95``; each from 0 to 1.

    Raises:
        UserError: the data or the weights cannot be used.
    """
    engine = shim.install()
    val: Any = engine.module("val")
    with errors_as_user_errors(engine):
        found, *_ = val.run(
            data=str(data),
            weights=str(weights),
            batch_size=batch_size,
            imgsz=imgsz,
            conf_thres=CONFIDENCE_THRESHOLD,
            iou_thres=IOU_THRESHOLD,
            task=task,
            device=device,
            single_cls=single_cls,
            project=str(weights.parent.parent),
            name="val",
            exist_ok=True,
            half=False,
            plots=False,
        )
    return dict(zip(FIGURES, map(float, found[:4])))


def main(argv: Sequence[str] | None = None) -> None:
    """Score one checkpoint."""
    leash.end_with_parent()
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--imgsz", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--device", default="")
    parser.add_argument("--single-cls", action="store_true")
    parser.add_argument("--output", type=Path, required=True)
    args = vars(parser.parse_args(argv))
    output = args.pop("output")
    write_whole(output, json.dumps(score(**args)))


if __name__ == "__main__":
    main()
