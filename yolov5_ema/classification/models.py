"""Classifiers by name: a backbone of timm's, a stem, and an attention block in every place that takes one."""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

from torch import nn

from yolov5_ema.classification.places import insert_blocks
from yolov5_ema.classification.pretrained import load_file, published
from yolov5_ema.classification.stems import STEMS, use_cifar_stem
from yolov5_ema.errors import ConfigError, UserError
from yolov5_ema.texts import did_you_mean, nearest


def create_classifier(
    name: str,
    block: str | None = None,
    *,
    num_classes: int = 1000,
    stem: str = "imagenet",
    block_options: dict[str, Any] | None = None,
    pretrained: bool | str | os.PathLike[str] = False,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> nn.Module:
    """A classifier of timm's with an attention block in it.

    In ResNets the block is in every residual block, on the channels behind its last BatchNorm, before the
    addition; in MobileNetV2 and EfficientNets in every block that expands, behind the depthwise convolution, its
    BatchNorm and activation (`yolov5_ema.classification.places`). A backbone's own squeeze-and-excitation gives
    way to the block. Blocks start as they are published; with one seed the backbone starts the same whatever
    the block.

    Args:
        name: one of timm's models, such as resnet50 or mobilenetv2_100.
        block: a name of the registry, users' own blocks too; None or "none" for none.
        num_classes: outputs of the classifier.
        stem: "imagenet" as timm builds it, or "cifar" for images of 32 x 32 pixels (3x3 convolution of stride 1,
            no max pooling).
        block_options: of the block, checked against the registry. ``groups`` may also be "nearest", the divisor of
            the channels that is nearest to the block's default (the lower of two), or "nearest:N"; what that gives
            is printed.
        pretrained: True for timm's published weights (needs the network, or that they were downloaded before), or a
            file with a state dict or a checkpoint of `yolov5-ema classify`. The inserted blocks, and a
            classifier or stem of another shape, start fresh.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth, of the last residual block; those before it get less.

    Returns:
        The model, in training mode; images (N, 3, H, W) to logits (N, num_classes).

    Raises:
        ConfigError: an unknown model, block, option or stem, a backbone that takes no attention layer, or channels
            that the block cannot take.
        CheckpointError: the weights cannot be read, or are of another model.
        UserError: timm is not installed, or there is no network.
    """
    timm = _timm()
    _check(timm, name, num_classes, stem)
    options = dict(block_options or {})
    settings = {
        "num_classes": num_classes,
        **_drops(name, drop_rate=drop_rate, drop_path_rate=drop_path_rate),
    }
    try:
        model = (published if pretrained is True else timm.create_model)(name, **settings)
    except TypeError as error:
        raise ConfigError(f"{name}: timm cannot build it with {settings}: {error}") from error
    fresh = use_cifar_stem(model, name) if stem == "cifar" else ()
    if block is not None and str(block).lower() != "none":
        insert_blocks(model, name, block, options)
    elif options:
        raise ConfigError(f"block_options {options} without a block; name one, or leave them out")
    if not isinstance(pretrained, bool):
        load_file(model, name, pretrained, fresh)
    return model


def _timm() -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise UserError(f"classifiers need timm ({error}): pip install 'yolov5-ema[classify]'") from error
    return timm


def _drops(name: str, **rates: float) -> dict[str, float]:
    """The rates that are not 0: not every model of timm's takes them."""
    for option, rate in rates.items():
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < 1:
            raise ConfigError(f"{name}: {option} must be from 0 to below 1, got {rate!r}")
    return {option: rate for option, rate in rates.items() if rate}


def _check(timm: ModuleType, name: str, num_classes: int, stem: str) -> None:
    if not timm.is_model(name):
        hint = did_you_mean(nearest(name, timm.list_models(), most=3), otherwise="")
        raise ConfigError(f"timm {timm.__version__} has no model {name!r}{hint}")
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise ConfigError(f"num_classes must be 1 or more, got {num_classes!r}")
    if stem not in STEMS:
        raise ConfigError(f"no stem {stem!r}; there are: {', '.join(STEMS)}")
