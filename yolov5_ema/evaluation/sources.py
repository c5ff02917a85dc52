"""Choose the ground truth for each protocol."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from yolov5_ema.data import visdrone_format as visdrone
from yolov5_ema.data.dataset import Dataset
from yolov5_ema.data.image_names import keys_of_images, name_of, named_once
from yolov5_ema.data.listing import IMAGE_SUFFIXES
from yolov5_ema.errors import UserError
from yolov5_ema.evaluation.judged import LabelledImages, labelled_images
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
from yolov5_ema.texts import counted


def dataset_truths(
    dataset: Dataset, split: str, protocols: Sequence[str], judged: LabelledImages | None = None
) -> dict[str, TruthSet]:
    """The ground truth of a split for each protocol, with the same images for all.

    ``yolov5`` and ``ultralytics`` get the labels. The others get the annotations that the data YAML names for the
    split, if any: ``visdrone_annotations`` (folders of text files) before ``coco_annotations`` (instances JSONs).

    Args:
        dataset: the data set.
        split: ``train``, ``val`` or ``test``.
        protocols: the names of the protocols.
        judged: the images to evaluate and their labels; None: those that YOLOv5's ``val`` uses.

    Raises:
        UserError: images, labels or annotations cannot be used, an image of the split has no annotations, or
            annotations use a name that two images have.
    """
    images = judged or labelled_images(dataset, split)
    sizes = image_sizes(images.files)
    labels = label_truth(images, dataset.names, str(dataset.file), sizes)
    if set(protocols) <= {"yolov5", "ultralytics"}:
        return dict.fromkeys(protocols, labels)
    text = dataset.extra_path("visdrone_annotations", split)
    instances = dataset.extra_path("coco_annotations", split)
    if text is not None:
        full = visdrone_truth(text, sizes, dataset.names, only_sized=True)
        _check_all_there(full, set(sizes) - set(full.truths))
    elif instances is not None:
        full = _of_images(coco_truth(instances, dataset.names), sizes, images.left_out_keys)
    else:
        full = labels
    full = replace(full, left_out=images.left_out_keys)
    every = {
        "yolov5": labels,
        "ultralytics": labels,
        "coco": _as_coco(full) if text is not None else full,
        "visdrone": full,
    }
    return {protocol: every[protocol] for protocol in protocols}


def annotation_truths(
    place: Path, sizes_file: Path | None, names: Sequence[str] | None, protocols: Sequence[str]
) -> dict[str, TruthSet]:
    """Ground truth from annotations alone, for each protocol.

    Args:
        place: a folder of VisDrone's text files, or an instances JSON.
        sizes_file: a JSON of image sizes (see `read_image_sizes`); None: the folder's images are in ``../images``.
        names: the names of the classes; None: VisDrone's, or those in the JSON.
        protocols: the names of the protocols.

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
    """A ground truth without objects, for reading the predictions of images.

    Raises:
        UserError: an image cannot be read.
    """
    sizes = image_sizes({key: image for image, key in keys_of_images(images).items()})
    return TruthSet(source, tuple(names), {key: Truth(key, *size) for key, size in sizes.items()})


def single_class(truth: TruthSet) -> TruthSet:
    """Merge all classes into one, as ``--single-cls`` does."""
    truths = {
        image: replace(entry, classes=np.where(entry.classes == NO_CLASS, NO_CLASS, 0))
        for image, entry in truth.truths.items()
    }
    category_ids = dict.fromkeys(truth.category_ids, 0)
    return replace(truth, names=("object",), truths=truths, category_ids=category_ids)


def _as_coco(full: TruthSet) -> TruthSet:
    """The ground truth as ``yolov5-ema data visdrone`` writes it to the instances JSON: clipped, no empty boxes."""
    return replace(full, truths={image: clipped(truth) for image, truth in full.truths.items()})


def _of_images(truth: TruthSet, keys: Collection[str], left_out: Collection[str]) -> TruthSet:
    """The ground truth of a split's images in an instances JSON, by their keys in the split.

    Images are matched by name. If several have the same name, the one with the same end of its path is taken.
    """
    by_name: dict[str, list[str]] = {}
    for image in truth.truths:
        by_name.setdefault(name_of(image), []).append(image)
    meant = {key: _meant(key, by_name.get(name_of(key), [])) for key in (*keys, *left_out)}
    _check_all_there(truth, [key for key in keys if meant[key] is None])
    found = [key for key, image in meant.items() if image is not None]
    key_of = named_once(found, f"{truth.source} has one image of that name", lambda key: meant[key])
    truths = {key_of.get(image, ""): entry for image, entry in truth.truths.items()}
    return replace(
        truth,
        truths={key: replace(entry, image=key) for key, entry in truths.items() if key in keys},
        image_ids={identity: key_of[image] for identity, image in truth.image_ids.items() if image in key_of},
    )


def _meant(key: str, images: Sequence[str]) -> str | None:
    """Which of several images of the same name belongs to an image of a split; None if this is ambiguous."""
    own = _bare(key)
    alike = [image for image in images if own.endswith(_bare(image)) or _bare(image).endswith(own)]
    chosen = alike if len(images) > 1 else images
    return chosen[0] if len(chosen) == 1 else None


def _bare(image: str) -> str:
    return f"/{PurePosixPath(image).with_suffix('')}"


def _check_all_there(truth: TruthSet, missing: Collection[str]) -> None:
    if missing:
        raise UserError(
            f"{truth.source} has no annotations for {counted(len(missing), 'image')}, such as {min(missing)}"
        )


def _sizes_beside(folder: Path) -> Sizes:
    images = folder.parent / "images"
    files = [file for file in images.glob("*") if file.suffix.lower() in IMAGE_SUFFIXES] if images.is_dir() else []
    if not files:
        raise UserError(f"{folder}: the sizes of the images are unknown; pass --image-sizes FILE.json")
    return image_sizes({key: file for file, key in keys_of_images(files).items()})
