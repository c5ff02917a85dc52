"""Which ground truth each protocol gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from yolov5_ema.data import visdrone_format as visdrone
from yolov5_ema.data.dataset import IMAGE_SUFFIXES, Dataset
from yolov5_ema.data.image_names import refuse_shared_stems
from yolov5_ema.errors import UserError
from yolov5_ema.evaluation.judged import LabelledImages, Rules, labelled_images
from yolov5_ema.evaluation.records import NO_CLASS, Truth, clipped
from yolov5_ema.evaluation.truths import (
    Sizes,
    TruthSet,
    coco_truth,
    image_sizes,
    label_truth,
    read_image_sizes,
    visdrone_truth,
)


def dataset_truths(
    dataset: Dataset, split: str, protocols: Sequence[str], judged: LabelledImages | None = None
) -> dict[str, TruthSet]:
    """Ground truth of a split, for each protocol, all of the same images.

    ``yolov5`` gets the labels. The others get the annotations that the data YAML names for the split, if any:
    ``visdrone_annotations`` (folders of text files) before ``coco_annotations`` (instances JSONs).

    Args:
        dataset: the data set.
        split: ``train``, ``val`` or ``test``.
        protocols: to give it to.
        judged: its images and their labels; None: those that YOLOv5's ``val`` takes.

    Raises:
        UserError: images, labels or annotations cannot be used, annotations lack an image of the split, or go by
            names that two images have.
    """
    images = judged or labelled_images(dataset.images(split), len(dataset.names), Rules())
    sizes = image_sizes(images.files)
    left_out = frozenset(image.stem for image, _ in images.left_out)
    labels = replace(label_truth(images, dataset.names, str(dataset.file), sizes), left_out=left_out)
    if set(protocols) <= {"yolov5"}:
        return dict.fromkeys(protocols, labels)
    text = dataset.extra_path("visdrone_annotations", split)
    instances = dataset.extra_path("coco_annotations", split)
    if text is not None or instances is not None:
        refuse_shared_stems(
            images.files.values(), f"{text or instances} tells images apart by that name alone"
        )
    if text is not None:
        full = _of_images(visdrone_truth(text, sizes, dataset.names, only_sized=True), sizes)
    elif instances is not None:
        full = _of_images(coco_truth(instances, dataset.names), sizes)
    else:
        full = labels
    full = replace(full, left_out=left_out)
    every = {"yolov5": labels, "coco": _as_coco(full) if text is not None else full, "visdrone": full}
    return {protocol: every[protocol] for protocol in protocols}


def annotation_truths(
    place: Path, sizes_file: Path | None, names: Sequence[str] | None, protocols: Sequence[str]
) -> dict[str, TruthSet]:
    """Ground truth from annotations alone, for each protocol.

    Args:
        place: a folder of VisDrone's text files, or an instances JSON.
        sizes_file: a JSON of image sizes (see `read_image_sizes`); None: the folder's images lie in ``../images``.
        names: of the classes; None: VisDrone's, or the JSON's own.
        protocols: to give it to.

    Raises:
        UserError: the annotations or the sizes cannot be used.
    """
    if place.is_file():
        full = coco_truth(place, names)
        return dict.fromkeys(protocols, full)
    if not place.is_dir():
        raise UserError(f"--annotations {place}: no such folder or file")
    sizes = read_image_sizes(sizes_file) if sizes_file is not None else _sizes_beside(place)
    full = visdrone_truth(place, sizes, names or visdrone.CLASSES)
    coco = _as_coco(full)
    return {protocol: full if protocol == "visdrone" else coco for protocol in protocols}


def image_set(images: Sequence[Path], names: Sequence[str], source: str) -> TruthSet:
    """Images without any ground truth: what predictions of them need to be read.

    Raises:
        UserError: two images have one name without the suffix, or one cannot be read.
    """
    refuse_shared_stems(images, "Detections go by that name")
    sizes = image_sizes({image.stem: image for image in images})
    return TruthSet(source, tuple(names), {stem: Truth(stem, *sizes[stem]) for stem in sorted(sizes)})


def single_class(truth: TruthSet) -> TruthSet:
    """All classes as one, as ``--single-cls`` takes them."""
    truths = {
        image: replace(entry, classes=np.where(entry.classes == NO_CLASS, NO_CLASS, 0))
        for image, entry in truth.truths.items()
    }
    category_ids = dict.fromkeys(truth.category_ids, 0)
    return replace(truth, names=("object",), truths=truths, category_ids=category_ids)


def _as_coco(full: TruthSet) -> TruthSet:
    """As ``yolov5-ema data visdrone`` writes its instances JSON: clipped, without boxes of no area."""
    return replace(full, truths={image: clipped(truth) for image, truth in full.truths.items()})


def _of_images(truth: TruthSet, sizes: Sizes) -> TruthSet:
    lacking = [stem for stem in sizes if stem not in truth.truths]
    if lacking:
        raise UserError(f"{truth.source} has no annotations for {len(lacking)} images, such as {lacking[0]}")
    chosen: Mapping[str, Truth] = {image: entry for image, entry in truth.truths.items() if image in sizes}
    return replace(truth, truths=chosen)


def _sizes_beside(folder: Path) -> Sizes:
    images = folder.parent / "images"
    files = (
        [file for file in images.glob("*") if file.suffix.lower() in IMAGE_SUFFIXES]
        if images.is_dir()
        else []
    )
    if not files:
        raise UserError(f"{folder}: the sizes of the images are not known; pass --image-sizes FILE.json")
    refuse_shared_stems(files, "Annotations go by that name")
    return image_sizes({file.stem: file for file in files})
