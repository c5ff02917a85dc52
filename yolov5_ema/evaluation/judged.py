"""Which images of a split are evaluated ("judged"), so that all protocols use the same ones as YOLOv5's ``val``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from yolov5_ema.data.dataset import Dataset
from yolov5_ema.data.image_names import keys_of_images
from yolov5_ema.data.image_size import reason_left_out
from yolov5_ema.data.text_rows import refuse
from yolov5_ema.data.yolo_format import Labels
from yolov5_ema.errors import UserError
from yolov5_ema.texts import agreeing, counted

_SHOWN = 20


class LeftOut(NamedTuple):
    """An image that is not evaluated.

    Attributes:
        image: its file.
        reason: why, as the end of a sentence that starts with its name.
    """

    image: Path
    reason: str


@dataclass(frozen=True)
class LabelledImages:
    """The images of a split that are evaluated.

    Attributes:
        files: the image files by key, see `keys_of_images`.
        rows: the labels by key: class, x and y of the center, width, height; float64 of shape (M, 5).
        left_out: the images of the split that are not evaluated.
        kept: the evaluated images that YOLOv5's ``val`` leaves out.
        left_out_keys: the keys of ``left_out``.
    """

    files: Mapping[str, Path]
    rows: Mapping[str, np.ndarray]
    left_out: Sequence[LeftOut] = ()
    kept: Sequence[LeftOut] = ()
    left_out_keys: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Rules:
    """Which images are evaluated.

    Attributes:
        keep_odd: also evaluate images with odd label rows, with the rows that can be used.
        judged: the images that ``val`` evaluated; None: determined from the files.
    """

    keep_odd: bool = False
    judged: Sequence[Path] | None = None


def labelled_images(dataset: Dataset, split: str, rules: Rules = Rules()) -> LabelledImages:
    """The images of a split that are evaluated, with their labels.

    Raises:
        UserError: the labels have a class that the data set does not have, a label file cannot be read, or no image
            can be evaluated.
    """
    images = dataset.images(split)
    if rules.judged is None:
        reasons = {image: _reason(image, dataset, rules) for image in images}
        files = [image for image, reason in reasons.items() if not reason]
    else:
        files = list(dict.fromkeys(rules.judged))
        reasons = {image: _reason(image, dataset, rules) or why for image, why in not_judged(images, files)}
    left_out = [LeftOut(image, reason) for image, reason in reasons.items() if reason]
    if not files:
        raise UserError(f"no image can be evaluated; the first, {left_out[0].image}: {left_out[0].reason}")
    keys = keys_of_images(images, files)
    labels = {file: dataset.labels(file) for file in files}
    rows = {keys[file]: _rows(found) for file, found in labels.items()}
    odd = ((file, found.reason_left_out) for file, found in labels.items())
    kept = [LeftOut(file, reason) for file, reason in odd if reason and rules.keep_odd]
    left_out_keys = frozenset(keys[image] for image, _ in left_out)
    return LabelledImages({keys[file]: file for file in files}, rows, left_out, kept, left_out_keys)


def not_judged(images: Sequence[Path], judged: Sequence[Path]) -> list[LeftOut]:
    """The images of a split that YOLOv5's ``val`` did not evaluate, and what is wrong with their files."""
    places = set(map(_place, judged))
    others = [image for image in images if _place(image) not in places]
    return [LeftOut(image, reason_left_out(image) or "YOLOv5's val left it out") for image in others]


def words_of(left_out: Sequence[LeftOut], total: int) -> str:
    """A message with one line for each image that is not evaluated, and why."""
    return _listed(
        f"{len(left_out)} of {counted(total, 'image')} {agreeing(len(left_out))} not evaluated, because YOLOv5's val "
        f"leaves {agreeing(len(left_out), 'it', 'them')} out:",
        left_out,
    )


def words_of_kept(kept: Sequence[LeftOut], total: int) -> str:
    """A message with one line for each image that is evaluated although YOLOv5's ``val`` leaves it out."""
    verb = agreeing(len(kept))
    return _listed(
        f"{len(kept)} of {counted(total, 'image')} {verb} evaluated with the label rows that can be used:", kept
    )


def _listed(head: str, images: Sequence[LeftOut]) -> str:
    lines = [f"  {image}: {reason}" for image, reason in images[:_SHOWN]]
    more = [f"  … and {len(images) - _SHOWN} more"] if len(images) > _SHOWN else []
    return "\n".join([head, *lines, *more])


def _reason(image: Path, dataset: Dataset, rules: Rules) -> str:
    """Why an image is not evaluated; "" if it is."""
    return reason_left_out(image) or ("" if rules.keep_odd else dataset.labels(image).reason_left_out)


def _rows(labels: Labels) -> np.ndarray:
    """The label rows as YOLOv5 reads them; of a file that it refuses, the rows that can be used."""
    if labels.left_out is not None:
        return labels.values
    refuse(labels.bad)
    return labels.seen


def _place(image: Path) -> str:
    """The real path of an image; a link to a folder is resolved, a link to the image file itself is not."""
    return os.path.join(os.path.realpath(image.parent), image.name)
