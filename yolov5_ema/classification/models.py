"""Classifiers by name: a timm backbone, a stem, and an attention block at every place that takes one."""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

from torch import nn

from yolov5_ema.classification.extras import require
from yolov5_ema.classification.places import insert_blocks
from yolov5_ema.classification.pretrained import load_file, published
from yolov5_ema.classification.stems import STEMS, use_cifar_stem
from yolov5_ema.errors import ConfigError
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
    """Build a timm classifier with an attention block in it.

    In ResNets, every residual block gets the attention block after its last BatchNorm, before the addition. In
    MobileNetV2 and EfficientNets, every block that expands gets it after the depthwise convolution, its BatchNorm and
    activation (`yolov5_ema.classification.places`). The attention block replaces a backbone's own
    squeeze-and-excitation. Blocks are initialised as published. With the same seed, the backbone has the same initial
    weights for every block.

    Args:
        name: a timm model, such as resnet50 or mobilenetv2_100.
        block: the name of a registered block, also one of the user's own; None or "none" for no block.
        num_classes: number of outputs of the classifier.
        stem: "imagenet" as timm builds it, or "cifar" for images of 32 x 32 pixels (3x3 convolution of stride 1,
            no max pooling).
        block_options: options of the block, checked against the registry. ``groups`` may also be "nearest", the divisor
            of the channels that is nearest to the block's default (the lower of two), or "nearest:N"; the result is
            printed.
        pretrained: True for timm's published weights (from the network or the cache), or a file with a state dict or a
            checkpoint of `yolov5-ema classify`. The inserted blocks, and a classifier or stem of another shape, start
            with new weights.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last residual block; earlier blocks get less.

    Returns:
        The model, in training mode; images (N, 3, H, W) to logits (N, num_classes).

    Raises:
        ConfigError: the model, block, option or stem is unknown, the backbone takes no attention layer, or the block
            does not accept the number of channels.
        CheckpointError: the weights cannot be read, or belong to another model.
        UserError: timm is not installed, or there is no network.
    """
    require("timm")
    import timm

    _check(timm, name, num_classes, stem)
    options = dict(block_options or {})
    settings: dict[str, Any] = {
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
        raise ConfigError(f"block_options {options} without a block; name a block, or remove the options")
    if not isinstance(pretrained, bool):
        load_file(model, name, pretrained, fresh)
    return model


def _drops(name: str, **rates: float) -> dict[str, float]:
    """The rates that are not 0; a rate of 0 is not passed on, because not every timm model accepts the argument."""
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
        raise ConfigError(f"unknown stem {stem!r}; known are {', '.join(STEMS)}")
