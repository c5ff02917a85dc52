"""The stem for images of 32 x 32 pixels: a 3x3 convolution of stride 1, and no max pooling."""

from __future__ import annotations

from torch import nn

from yolov5_ema.errors import ConfigError

STEMS = ("imagenet", "cifar")


def use_cifar_stem(model: nn.Module, name: str) -> tuple[str, ...]:
    """Change a backbone in place so that its first stage sees images of 32 x 32 pixels at full size.

    In ResNets, a new 3x3 convolution of stride 1 replaces the 7x7 one, and the max pooling is removed. MobileNets and
    EfficientNets already have a 3x3 convolution; its stride becomes 1.

    Returns:
        The names of the modules with new weights.

    Raises:
        ConfigError: the backbone belongs to another family.
    """
    if hasattr(model, "conv1") and hasattr(model, "maxpool") and hasattr(model, "bn1"):
        width = model.get_submodule("bn1").num_features
        model.conv1 = nn.Conv2d(3, width, kernel_size=3, padding=1, bias=False)  # type: ignore[arg-type]
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")  # as timm's ResNet
        model.maxpool = nn.Identity()
        return ("conv1",)
    stem = getattr(model, "conv_stem", None)
    if isinstance(stem, nn.Conv2d):
        stem.stride = (1, 1)
        return ()
    raise ConfigError(
        f"{name}: stem 'cifar' works only for ResNets, MobileNets and EfficientNets; use stem 'imagenet' and larger "
        "images"
    )
