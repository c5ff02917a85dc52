"""The stem for images of 32 x 32 pixels: a 3x3 convolution of stride 1, and no max pooling."""

from __future__ import annotations

from torch import nn

from yolov5_ema.errors import ConfigError

STEMS = ("imagenet", "cifar")


def use_cifar_stem(model: nn.Module, name: str) -> tuple[str, ...]:
    """Let a backbone's first stage see images of 32 x 32 pixels at full size; changes it in place.

    ResNets get a fresh 3x3 convolution of stride 1 for their 7x7 one, and lose the max pooling. MobileNets and
    EfficientNets have a 3x3 convolution already, whose stride becomes 1.

    Returns:
        The names of the modules whose weights are new.

    Raises:
        ConfigError: a backbone of another family.
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
        f"{name}: stem 'cifar' is known for ResNets, MobileNets and EfficientNets; use stem 'imagenet' and larger "
        "images"
    )
