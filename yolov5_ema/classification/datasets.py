"""Data sets for classifiers: ``synthetic``, ``cifar100``, or a path to CIFAR-100 or to folders of images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from yolov5_ema.classification import cifar, image_folder, synthetic
from yolov5_ema.classification.images import UnreadableImage, read_image
from yolov5_ema.classification.transforms import Transform
from yolov5_ema.errors import UserError

LEFT_OUT = -1
"""The label of samples that do not count: unreadable images, and padding that gives all processes equal shares."""

CIFAR_PLACES = ("datasets", "../datasets", ".")
_SYNTHETIC_SIZES = {"classes": 10, "train": 4000, "val": 1000}


class Pictures(ABC):
    """The images of a split with their classes.

    Attributes:
        labels: the class of each image.
    """

    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.labels)

    def label(self, index: int) -> int:
        """The class of an image."""
        return int(self.labels[index])

    @abstractmethod
    def load(self, index: int) -> Image.Image:
        """Read an image in RGB; raises `UnreadableImage`."""

    @abstractmethod
    def name(self, index: int) -> str:
        """The image's name in messages."""


class DrawnPictures(Pictures):
    """A split of the synthetic data set."""

    def __init__(self, split: str, count: int, classes: int, imgsz: int, seed: int = 0) -> None:
        self.split, self.classes, self.imgsz, self.seed = split, classes, imgsz, seed
        self.labels = [index % classes for index in range(count)]

    def load(self, index: int) -> Image.Image:
        return Image.fromarray(synthetic.draw(self.seed, self.split, index, self.classes, self.imgsz)[0])

    def name(self, index: int) -> str:
        return f"synthetic {self.split} {index}"


class CifarPictures(Pictures):
    """A split of CIFAR-100."""

    def __init__(self, split: str, content: cifar.CifarSplit) -> None:
        self.split, self.images, self.labels = split, content.images, content.labels.tolist()

    def load(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index])

    def name(self, index: int) -> str:
        return f"CIFAR-100 {self.split} {index}"


class FilePictures(Pictures):
    """A split in folders, one folder for each class."""

    def __init__(self, listing: image_folder.Listing) -> None:
        self.files, self.labels = listing.files, listing.labels

    def load(self, index: int) -> Image.Image:
        return read_image(self.files[index])

    def name(self, index: int) -> str:
        return self.files[index]


@dataclass
class DataSet:
    """The requested splits of a data set, and the names of its classes."""

    names: list[str]
    splits: dict[str, Pictures]


def open_data(spec: str, imgsz: int, splits: Sequence[str] = ("train", "val"), *, download: bool = False) -> DataSet:
    """Open a data set.

    Args:
        spec: ``synthetic``, also with sizes as in ``synthetic:classes=100,train=10000,val=2000``; ``cifar100``, looked
            for in `CIFAR_PLACES`; or a path: the archive or folder of CIFAR-100's binary form, or a folder with
            ``train/CLASS/IMAGE`` and ``val/CLASS/IMAGE``.
        imgsz: side in pixels at which the synthetic images are drawn.
        splits: ``train``, ``val`` or both; for CIFAR-100, val is the published test split.
        download: download CIFAR-100 if ``spec`` is ``cifar100`` and it was not found.

    Raises:
        UserError: the data set does not exist or is damaged, or its splits do not have the same classes.
    """
    if spec.split(":")[0] == "synthetic":
        return _open_synthetic(spec, imgsz, splits)
    place = find_cifar(download) if spec == "cifar100" else Path(spec).expanduser()
    if cifar.is_cifar(place):
        content: dict[str, Pictures] = {s: CifarPictures(s, cifar.read_cifar(place, s)) for s in splits}
        return DataSet(cifar.read_names(place), content)
    if place.exists() and not place.is_dir():
        raise UserError(f"--data {spec}: unknown kind of file; use {cifar.ARCHIVE} or a folder with train and val")
    return _open_folders(place, splits)


def default_recipe(spec: str) -> str:
    """The name of the default recipe for a data set."""
    if spec.split(":")[0] == "synthetic":
        return "synthetic"
    return "cifar100" if spec == "cifar100" or cifar.is_cifar(Path(spec).expanduser()) else "imagenet"


def find_cifar(download: bool = False) -> Path:
    """Find CIFAR-100; download it if ``download`` is True.

    Raises:
        UserError: CIFAR-100 was not found, and it was not or could not be downloaded.
    """
    for folder in CIFAR_PLACES:
        for name in (cifar.FOLDER, cifar.ARCHIVE):
            place = Path(folder) / name
            if place.exists() and cifar.is_cifar(place):
                return place
    if download:
        return cifar.download(Path(CIFAR_PLACES[1]))
    raise UserError(
        f"CIFAR-100 was not found in {', '.join(CIFAR_PLACES)}, as {cifar.FOLDER} or {cifar.ARCHIVE}. Download it "
        f"from {cifar.URL} or with --download, or give its path with --data"
    )


def _open_synthetic(spec: str, imgsz: int, splits: Sequence[str]) -> DataSet:
    sizes = dict(_SYNTHETIC_SIZES)
    for part in filter(None, spec.partition(":")[2].split(",")):
        key, _, value = part.partition("=")
        if key not in sizes or not value.isdecimal() or int(value) < 1:
            raise UserError(
                f"--data {spec}: {part!r} is not a size; an example is synthetic:classes=10,train=4000,val=1000"
            )
        sizes[key] = int(value)
    classes = sizes["classes"]
    if not 2 <= classes <= synthetic.MOST_CLASSES:
        raise UserError(f"--data {spec}: classes must be 2 to {synthetic.MOST_CLASSES}")
    if imgsz < 16:
        raise UserError(f"--data {spec}: shapes cannot be distinguished below 16 pixels; --img is {imgsz}")
    content: dict[str, Pictures] = {s: DrawnPictures(s, sizes[s], classes, imgsz) for s in splits}
    return DataSet(synthetic.class_names(classes), content)


def _open_folders(root: Path, splits: Sequence[str]) -> DataSet:
    listings = {split: image_folder.list_images(image_folder.split_folder(root, split)) for split in splits}
    if len(listings) == 2:
        image_folder.check_same_classes(listings["train"], listings["val"], root)
    names = next(iter(listings.values())).names
    if len(names) < 2:
        raise UserError(f"{root} has one class, {names[0]!r}; a classifier needs at least two")
    return DataSet(names, {split: FilePictures(listing) for split, listing in listings.items()})


# --- what the loaders read -----------------------------------------------------------------------


class Samples(Dataset):
    """Transformed images; the random choices of the transform depend only on the seed, the epoch and the index.

    Keys are (epoch, index), so that worker processes learn the epoch from the key. Items are the tensor
    (3, imgsz, imgsz) float32, the label and the index. For unreadable images, and for index -1, the tensor is zero and
    the label is `LEFT_OUT`.
    """

    def __init__(self, pictures: Pictures, transform: Transform, imgsz: int, seed: int) -> None:
        self.pictures = pictures
        self.transform = transform
        self.imgsz = imgsz
        self.seed = seed

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, int, int]:
        epoch, index = key
        nothing = torch.zeros(3, self.imgsz, self.imgsz)
        if index < 0:
            return nothing, LEFT_OUT, index
        try:
            picture = self.pictures.load(index)
        except UnreadableImage:
            return nothing, LEFT_OUT, index
        state = torch.get_rng_state()
        torch.default_generator.manual_seed(mixed_seed(self.seed, epoch, index))
        try:
            return self.transform(picture), self.pictures.label(index), index
        finally:
            torch.set_rng_state(state)


class Shares(Sampler[tuple[int, int]]):
    """The (epoch, index) keys of one of several processes; Lightning calls `set_epoch`.

    In training, the seed and the epoch decide the order of the images. The images are divided into batches for all
    processes together, without the incomplete last batch, and each process takes its part of each batch. So the batches
    do not depend on the number of processes. In evaluation, every image comes once, and -1 fills up unequal shares.
    """

    def __init__(self, count: int, batch: int, seed: int, *, train: bool, rank: int = 0, world: int = 1) -> None:
        self.count, self.batch, self.seed, self.train = count, batch, seed, train
        self.rank, self.world = rank, world
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the next epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.train:
            return self.count // self.batch * (self.batch // self.world)
        return -(-self.count // self.world)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter([(self.epoch, index) for index in self._indices()])

    def _indices(self) -> list[int]:
        if self.train:
            generator = np.random.default_rng([self.seed, self.epoch])
            whole = self.count // self.batch * self.batch
            order = generator.permutation(self.count)[:whole]
            shares = order.reshape(-1, self.world, self.batch // self.world)  # (batches, processes, part)
            return [int(index) for index in shares[:, self.rank].ravel()]
        own = list(range(self.rank, self.count, self.world))
        return own + [-1] * (len(self) - len(own))


def make_loader(samples: Samples, shares: Shares, batch: int, workers: int, pin: bool) -> DataLoader[Any]:
    """Make a loader with batches of ``batch`` samples for this process."""
    return DataLoader(
        samples,
        batch_size=batch,
        sampler=shares,
        num_workers=workers,
        pin_memory=pin,
        persistent_workers=workers > 0,
    )


def mixed_seed(*numbers: int) -> int:
    """Combine several numbers, such as seed, epoch and index, into one seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
