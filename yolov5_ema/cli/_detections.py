"""Detections of a split, for the commands that run YOLOv5's ``val`` to get them."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from yolov5_ema.errors import UserError

if TYPE_CHECKING:
    from yolov5_ema.data.dataset import Dataset
    from yolov5_ema.scripts.collecting import Collected
    from yolov5_ema.upstream.flags import Given
    from yolov5_ema.upstream.locate import Engine


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
) -> Collected:
    """Run YOLOv5's ``val`` on a split and keep what it detects.

    Not `Detector.detect`: the figures of the protocol ``yolov5`` are those of what ``val`` detects, which differs by
    its batches, by its borders around images, and by boxes that it gives several classes. Whether the files can be used
    is asked at the one door to detectors before.

    Args:
        request: what is asked for.
        engine: the YOLOv5, and the data set: see `Request.opened`.
        dataset: the data set.
        folder: ``val`` writes into its subfolder ``val``.
        keep_odd: detect in images with odd label rows as well, which ``val`` by itself leaves out.

    Raises:
        UserError: as ``yolov5-ema val``; as `load_detector`; a detector knows classes that the data set lacks.
    """
    from yolov5_ema.cli._slicing import take_flags
    from yolov5_ema.scripts import running as scripts
    from yolov5_ema.scripts.collecting import collected_detections
    from yolov5_ema.scripts.odd_labels import odd_images_kept
    from yolov5_ema.scripts.sliced import sliced_inference
    from yolov5_ema.upstream.data_yaml import opening_once

    _check_weights(request, engine, dataset)
    windows, flags = take_flags(request.flags)
    line = ["--data", str(dataset.file), "--weights", *request.weights, "--task", request.task]
    place = ["--project", str(folder), "--name", "val"]
    with contextlib.ExitStack() as stack:
        stack.enter_context(opening_once(dataset))
        found = stack.enter_context(collected_detections(engine, request.max_det))
        if windows is not None:
            stack.enter_context(sliced_inference(engine, "val", *windows))
        if keep_odd:
            stack.enter_context(odd_images_kept(engine, dataset))
        scripts.run_script(engine, "val", [*line, *place, *flags])
    if not found.images:
        raise UserError(f"val of {engine} has looked at no image")
    return found


def _check_weights(request: Request, engine: Engine, dataset: Dataset) -> None:
    """Refuse weights that ``val`` would stumble over; those that it fetches, or that only it runs, it checks itself."""
    from yolov5_ema.detecting.loading import is_read, load_detector

    for file in filter(is_read, request.weights):
        if not Path(file).is_file():
            continue
        known = len(load_detector(file, engine=engine).names)
        if known > len(dataset.names) and "single_cls" not in request.given(engine):
            raise UserError(
                f"{file} knows {known} classes, and {dataset.file} has {len(dataset.names)}: "
                "they do not belong together"
            )
