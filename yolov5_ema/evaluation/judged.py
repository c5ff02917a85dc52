"""Which images of a split are judged, so that all protocols judge the same ones as YOLOv5's ``val``."""

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
from yolov5_ema.data.yolo_format import Labels
from yolov5_ema.errors import UserError

_SHOWN = 20


class LeftOut(NamedTuple):
    """An image that is not judged.

    Attributes:
        image: its file.
        reason: why, to be read behind its name.
    """

    image: Path
    reason: str


@dataclass(frozen=True)
class LabelledImages:
    """The images of a split that are judged.

    Attributes:
        files: by key, see `keys_of_images`.
        rows: labels by key: class, x and y of the center, width, height; float64 of shape (M, 5).
        left_out: images of the split that are not among them.
        kept: images among them that YOLOv5's ``val`` by itself leaves out.
        left_out_keys: of those of ``left_out``.
    """

    files: Mapping[str, Path]
    rows: Mapping[str, np.ndarray]
    left_out: Sequence[LeftOut] = ()
    kept: Sequence[LeftOut] = ()
    left_out_keys: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Rules:
    """Which images are judged.

    Attributes:
        keep_odd: judge images with odd label rows as well, by those of their rows that can be used.
        judged: what that ``val`` did judge; None: found out from the files.
    """

    keep_odd: bool = False
    judged: Sequence[Path] | None = None


def labelled_images(dataset: Dataset, split: str, rules: Rules = Rules()) -> LabelledImages:
    """The images of a split that are judged, with their labels.

    Raises:
        UserError: a class in the labels is none of the data set, a file of labels cannot be read, or no image
            can be judged.
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
        raise UserError(f"no image can be judged; the first, {left_out[0].image}: {left_out[0].reason}")
    keys = keys_of_images([*images, *files])
    labels = {file: dataset.labels(file) for file in files}
    rows = {keys[file]: _rows(found) for file, found in labels.items()}
    odd = ((file, found.reason_left_out) for file, found in labels.items())
    kept = [LeftOut(file, reason) for file, reason in odd if reason and rules.keep_odd]
    left_out_keys = frozenset(keys[image] for image, _ in left_out)
    return LabelledImages({keys[file]: file for file in files}, rows, left_out, kept, left_out_keys)


def not_judged(images: Sequence[Path], judged: Sequence[Path]) -> list[LeftOut]:
    """Images of a split that YOLOv5's ``val`` did not judge, and what is wrong with their files."""
    places = set(map(_place, judged))
    others = [image for image in images if _place(image) not in places]
    return [LeftOut(image, reason_left_out(image) or "YOLOv5's val left it out") for image in others]


def words_of(left_out: Sequence[LeftOut], total: int) -> str:
    """Which images are not judged and why, a line each."""
    return _listed(
        f"{len(left_out)} of {total} images are not judged, as YOLOv5's val leaves them out:", left_out
    )


def words_of_kept(kept: Sequence[LeftOut], total: int) -> str:
    """Which images are judged although YOLOv5's ``val`` leaves them out, a line each."""
    return _listed(
        f"{len(kept)} of {total} images are judged by those of their label rows that can be used:", kept
    )


def _listed(head: str, images: Sequence[LeftOut]) -> str:
    lines = [f"  {image}: {reason}" for image, reason in images[:_SHOWN]]
    more = [f"  … and {len(images) - _SHOWN} more"] if len(images) > _SHOWN else []
    return "\n".join([head, *lines, *more])


def _reason(image: Path, dataset: Dataset, rules: Rules) -> str:
    """Why an image is not judged; "" if it is."""
    return reason_left_out(image) or ("" if rules.keep_odd else dataset.labels(image).reason_left_out)


def _rows(labels: Labels) -> np.ndarray:
    """What is judged by: rows as YOLOv5 reads them; of a file that it does not take, those that can be used."""
    if labels.left_out is not None:
        return labels.values
    if labels.bad:
        more = f" (and {len(labels.bad) - 1} more lines)" if len(labels.bad) > 1 else ""
        raise UserError(f"{labels.bad[0]}{more}")
    return labels.seen


def _place(image: Path) -> str:
    """An image's place on disk, but for a link that it may be itself."""
    return os.path.join(os.path.realpath(image.parent), image.name)
