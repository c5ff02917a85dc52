"""Detections of a split, for the commands that run YOLOv5's ``val`` to get them."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolov5_ema.errors import UserError

if TYPE_CHECKING:
    from yolov5_ema.data.dataset import Dataset
    from yolov5_ema.evaluation.records import Predictions
    from yolov5_ema.upstream.flags import Given
    from yolov5_ema.upstream.locate import Engine


@dataclass(frozen=True)
class Detections:
    """What YOLOv5's ``val`` found in a split.

    Attributes:
        images: those that it judged.
        by_image: of each the detections, in descending order of score.
    """

    images: list[Path]
    by_image: dict[Path, Predictions]


@dataclass(frozen=True)
class Request:
    """A split on which ``val`` is to be run.

    Attributes:
        weights: of the detectors.
        data: as it was typed.
        task: the split.
        max_det: detections of an image.
        flags: of ``val``, and ``--slice`` and ``--overlap``.
        parser: of the command that was typed.
    """

    weights: Sequence[str]
    data: str
    task: str
    max_det: int
    flags: Sequence[str] = ()
    parser: argparse.ArgumentParser = field(default_factory=argparse.ArgumentParser)

    def opened(self) -> tuple[Engine, Dataset]:
        """The YOLOv5 with the shim installed, and the data set.

        Raises:
            UserError: the data YAML cannot be used, or a flag is shortened that the command reads itself.
        """
        from yolov5_ema.cli._yolov5 import load_plugins
        from yolov5_ema.engine import shim
        from yolov5_ema.upstream.data_yaml import open_dataset
        from yolov5_ema.upstream.flags import refuse_shortened

        load_plugins()
        engine = shim.install()
        refuse_shortened(self.given(engine), self.parser)
        return engine, open_dataset(self.data, engine)

    def given(self, engine: Engine) -> dict[str, Given]:
        """The flags of ``val``, see `given_flags`."""
        from yolov5_ema.upstream.flags import given_flags

        return given_flags(engine, "val", self.flags)


def detect_split(
    request: Request, engine: Engine, dataset: Dataset, folder: Path, *, keep_odd: bool = False
) -> Detections:
    """Run YOLOv5's ``val`` on a split and keep what it detects.

    Args:
        request: what is asked for.
        engine: the YOLOv5, and the data set: see `Request.opened`.
        dataset: the data set.
        folder: ``val`` writes into its subfolder ``val``.
        keep_odd: detect in images with odd label rows as well, which ``val`` by itself leaves out.

    Raises:
        UserError: as ``yolov5-ema val``.
    """
    from yolov5_ema.cli._slicing import take_flags
    from yolov5_ema.scripts import running as scripts
    from yolov5_ema.scripts.collecting import collected_detections
    from yolov5_ema.scripts.odd_labels import odd_images_kept
    from yolov5_ema.scripts.sliced import sliced_inference

    windows, flags = take_flags(request.flags)
    line = ["--data", str(dataset.file), "--weights", *request.weights, "--task", request.task]
    place = ["--project", str(folder), "--name", "val"]
    with contextlib.ExitStack() as stack:
        found = stack.enter_context(collected_detections(engine, request.max_det))
        if windows is not None:
            stack.enter_context(sliced_inference(engine, "val", *windows))
        if keep_odd:
            stack.enter_context(odd_images_kept(engine, len(dataset.names)))
        scripts.run_script(engine, "val", [*line, *place, *flags])
    if not found.images:
        raise UserError(f"val of {engine} has looked at no image")
    by_image = {image: _as_predictions(found.detections.get(image)) for image in found.images}
    return Detections(found.images, by_image)


def _as_predictions(rows: Any) -> Predictions:
    import numpy as np

    from yolov5_ema.evaluation.records import Predictions

    if rows is None:
        return Predictions()
    values = np.asarray(rows, dtype=np.float64)
    boxes = np.concatenate([values[:, :2], values[:, 2:4] - values[:, :2]], axis=1)
    return Predictions(boxes, values[:, 4], values[:, 5].astype(np.int64))
