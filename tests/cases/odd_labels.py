"""What YOLOv5 reads of labels and which images it leaves out, compared with this package."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import yolov5_ema
from yolov5_ema.data.image_size import reason_left_out
from yolov5_ema.data.yolo_format import read_labels
from yolov5_ema.upstream.loaders import polygon_from


def _rows(table: object) -> np.ndarray:
    return np.unique(np.asarray(table, np.float32).round(6), axis=0)


def leaves_out_the_same(folder: Path) -> None:
    """Compare for all files in ``labels`` and ``images``; write the stems of those left out to ``left_out``."""
    engine = yolov5_ema.install()
    name = "utils.dataloaders" if engine.has_script("utils.dataloaders") else "utils.datasets"
    verify = engine.module(name).verify_image_label
    left_out = set()
    for label in sorted((folder / "labels").iterdir()):
        theirs = verify((str(folder / "whole.jpg"), str(label), ""))
        ours = read_labels(label, 2, polygon_from(engine))
        assert (theirs[0] is None) == (ours.left_out is not None), (label, theirs[-1], ours)
        assert bool(ours.reason_left_out) == (theirs[0] is None)
        if theirs[0] is None:
            left_out.add(label.stem)
        else:
            np.testing.assert_allclose(_rows(ours.seen), _rows(theirs[1]), atol=1e-6, err_msg=str(label))
    for image in sorted((folder / "images").iterdir()):
        reason = reason_left_out(image)
        theirs = verify((str(image), "nowhere.txt", ""))
        assert (theirs[0] is None) == bool(reason), (image, theirs[-1], reason)
        left_out |= {image.stem} if reason else set()
    (folder / "left_out").write_text("\n".join(sorted(left_out)))
