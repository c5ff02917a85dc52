"""Detections of a split, for the commands that run YOLOv5's ``val`` to get them."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from yolov5_ema.resources import find_data_yaml

if TYPE_CHECKING:
    from yolov5_ema.data.dataset import Dataset
    from yolov5_ema.engine.locate import Engine
    from yolov5_ema.evaluation.records import Predictions


def detect_split(
    args: argparse.Namespace, rest: Sequence[str], folder: Path
) -> tuple[Engine, Dataset, dict[str, Predictions]]:
    """Run YOLOv5's ``val`` on a split and keep what it detects.

    Args:
        args: with ``data``, ``task``, ``weights`` and ``max_det``.
        rest: flags of ``val``, and ``--slice`` and ``--overlap``.
        folder: ``val`` writes into its subfolder ``val``.

    Returns:
        The YOLOv5, the data set, and for each image by its name the detections in descending order of score.

    Raises:
        UserError: as ``yolov5-ema val``.
    """
    from yolov5_ema.cli._slicing import take_flags
    from yolov5_ema.cli._yolov5 import load_plugins
    from yolov5_ema.data.dataset import load_dataset
    from yolov5_ema.engine import scripts, shim
    from yolov5_ema.engine.collecting import collected_detections
    from yolov5_ema.engine.data_yaml import relative_bases
    from yolov5_ema.engine.sliced import sliced_inference

    windows, flags = take_flags(rest)
    data = find_data_yaml(args.data)
    load_plugins()
    engine = shim.install()
    dataset = load_dataset(data, relative_bases(engine))
    images = dataset.images(args.task)
    line = ["--data", str(data), "--weights", *args.weights, "--task", args.task]
    place = ["--project", str(folder), "--name", "val"]
    with contextlib.ExitStack() as stack:
        found = stack.enter_context(collected_detections(engine, args.max_det))
        if windows is not None:
            stack.enter_context(sliced_inference(engine, "val", *windows))
        scripts.run_script(engine, "val", [*line, *place, *flags])
    by_name = {path.stem: _as_predictions(rows) for path, rows in found.detections.items()}
    return engine, dataset, {image.stem: by_name.get(image.stem, _as_predictions(None)) for image in images}


def _as_predictions(rows: object) -> Predictions:
    import numpy as np

    from yolov5_ema.evaluation.records import Predictions

    if rows is None:
        return Predictions()
    values = np.asarray(rows, dtype=np.float64)
    boxes = np.concatenate([values[:, :2], values[:, 2:4] - values[:, :2]], axis=1)
    return Predictions(boxes, values[:, 4], values[:, 5].astype(np.int64))
