"""Transforms from images to model inputs: augmentation for training, resizing and cropping for everything else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torchvision import transforms

Transform = Callable[[Any], torch.Tensor]

AUGMENTATIONS = ("crop", "resized-crop", "none")


def training_transform(
    augment: str,
    imgsz: int,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    padding: int = 4,
    scale: Sequence[float] = (0.08, 1.0),
    flip: float = 0.5,
    color_jitter: float = 0.0,
) -> Transform:
    """From a PIL image in RGB to a normalised (3, imgsz, imgsz) float32 tensor; random choices use torch's generator.

    Args:
        augment: ``crop``, a crop of the image after padding it with ``padding`` black pixels (CIFAR);
            ``resized-crop``, a part of the image of any shape, resized (ImageNet); or ``none``.
        imgsz: side of the result in pixels.
        mean: values for the channels, 0 to 1, that are subtracted.
        std: values for the channels by which the result is divided.
        padding: pixels on each side; only for ``crop``.
        scale: smallest and largest share of the area that is kept; only for ``resized-crop``.
        flip: probability that left and right are swapped.
        color_jitter: how far brightness, contrast and saturation may change; 0 for no change.
    """
    steps: list[Any] = []
    if augment == "resized-crop":
        steps.append(transforms.RandomResizedCrop(imgsz, scale=(scale[0], scale[1])))
    else:
        steps += [transforms.Resize(imgsz), transforms.CenterCrop(imgsz)]
    if augment == "crop":
        steps.append(transforms.RandomCrop(imgsz, padding=padding))
    if augment != "none":
        steps.append(transforms.RandomHorizontalFlip(flip))
        if color_jitter:
            steps.append(transforms.ColorJitter(color_jitter, color_jitter, color_jitter))
    return transforms.Compose([*steps, *_as_tensor(mean, std)])


def evaluation_transform(imgsz: int, crop: float, mean: Sequence[float], std: Sequence[float]) -> Transform:
    """From a PIL image in RGB to a normalised (3, imgsz, imgsz) float32 tensor, without random choices.

    Args:
        imgsz: side of the result in pixels.
        crop: share of the shorter side that the central crop keeps: with 0.875, it is resized to 256 for a crop of 224.
        mean: values for the channels, 0 to 1, that are subtracted.
        std: values for the channels by which the result is divided.
    """
    resize = transforms.Resize(max(imgsz, round(imgsz / crop)))
    return transforms.Compose([resize, transforms.CenterCrop(imgsz), *_as_tensor(mean, std)])


def _as_tensor(mean: Sequence[float], std: Sequence[float]) -> list[Any]:
    return [transforms.ToTensor(), transforms.Normalize(list(mean), list(std))]
