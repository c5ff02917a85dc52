"""The places in timm's backbones that take an attention layer, and putting a block there.

timm's residual blocks have an attribute for an attention layer. It is called ``se`` in ResNets (after the last
BatchNorm, before the addition) and in inverted residuals (after the depthwise convolution, its BatchNorm and
activation), and ``attn`` in others. The block is set there after the backbone is built.

timm's own arguments are not used, for these reasons. ``block_args=dict(attn_layer=...)`` of ResNets gives the same
modules with the same names, but it initialises the block's convolutions like the ResNet's own, and it refuses
pretrained weights, which have no tensors for the block. ``se_layer=...`` reaches only blocks with a
squeeze-and-excitation, which MobileNetV2 does not have.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from yolov5_ema.blocks import block_info, create_block
from yolov5_ema.classification.notices import say
from yolov5_ema.errors import ConfigError

FAMILIES = (
    "resnet*, resnext*, wide_resnet*, seresnet*, res2net*, mobilenetv2*, mobilenetv3*, mobilenetv4_conv*, "
    "efficientnet*, mnasnet*, regnet*, darknet*, cspresnet*, gernet*, ese_vovnet*"
)
_NOTHING = (type(None), nn.Identity)
_NEAREST = "nearest"
_HINT = """block_options={"groups": "nearest"} (--block-options '{groups: nearest}')"""


class Place(NamedTuple):
    """A place for a block: the name of the module there, such as ``layer1.0.se``, and the number of channels."""

    name: str
    channels: int


class _Kind(NamedTuple):
    """A residual block of timm: the attribute of its attention layer, and what gives the channels there."""

    attribute: str
    channels: str
    only_instead: bool = False  # only if timm itself has an attention layer there


def _inside_or_behind(layer: str, attribute: str = "attn", behind: str = "attn_last") -> tuple[_Kind, _Kind]:
    """A block with a place for an attention layer before its last convolution, and one after it."""
    return _Kind(attribute, f"{layer}.in_channels"), _Kind(behind, f"{layer}.out_channels")


# by class; if there are several entries, the one whose attention layer timm has set counts, else the first
_KINDS: dict[str, tuple[_Kind, ...]] = {
    "resnet.BasicBlock": (_Kind("se", "bn2.num_features"),),
    "resnet.Bottleneck": (_Kind("se", "bn3.num_features"),),
    "res2net.Bottle2neck": (_Kind("se", "bn3.num_features"),),
    "_efficientnet_blocks.InvertedResidual": (_Kind("se", "conv_pwl.in_channels"),),
    "_efficientnet_blocks.CondConvResidual": (_Kind("se", "conv_pwl.in_channels"),),
    "_efficientnet_blocks.EdgeResidual": (_Kind("se", "conv_pwl.in_channels"),),
    "_efficientnet_blocks.UniversalInvertedResidual": (_Kind("se", "pw_proj.conv.in_channels"),),
    # this class does not expand, and the paper's MobileNetV2 has no attention block in it
    "_efficientnet_blocks.DepthwiseSeparableConv": (_Kind("se", "conv_pw.in_channels", True),),
    "regnet.Bottleneck": (_Kind("se", "conv3.conv.in_channels"),),
    "regnet.PreBottleneck": (_Kind("se", "conv3.in_channels"),),
    "byobnet.BasicBlock": _inside_or_behind("conv2_kxk.conv"),
    "byobnet.BottleneckBlock": _inside_or_behind("conv3_1x1.conv"),
    "byobnet.DarkBlock": _inside_or_behind("conv2_kxk.conv"),
    "byobnet.EdgeBlock": _inside_or_behind("conv2_1x1.conv"),
    "cspnet.BottleneckBlock": _inside_or_behind("conv3.conv", "attn2", "attn3"),
    "cspnet.DarkBlock": (_Kind("attn", "conv2.conv.in_channels"),),
    "cspnet.EdgeBlock": (_Kind("attn", "conv2.conv.in_channels"),),
    "vovnet.OsaBlock": (_Kind("attn", "conv_concat.conv.out_channels"),),
}


def attention_places(model: nn.Module) -> list[Place]:
    """List the places of a timm backbone that take an attention block, in the order of the forward pass.

    Among inverted residuals, these are the blocks that expand, and those others in which timm itself has an attention
    layer.
    """
    return list(_places(model))


def insert_blocks(model: nn.Module, name: str, block: str, options: dict[str, Any]) -> None:
    """Put a registered block at every place of a backbone, instead of timm's own layer there, if any.

    Args:
        model: the backbone; changed in place.
        name: the backbone's name, for messages.
        block: the block's name in the registry.
        options: options of the block; ``groups`` may also be "nearest" or "nearest:N".

    Raises:
        ConfigError: the backbone has no such place, the block or an option is unknown, or the block does not accept the
            number of channels.
    """
    try:
        block_info(block)
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error
    places = attention_places(model)
    if not places:
        raise ConfigError(
            f"{name}: no block of this backbone takes an attention layer; timm's families that do: {FAMILIES}"
        )
    fitted = {channels: _fit(name, block, channels, options) for channels in dict.fromkeys(p.channels for p in places)}
    if str(options.get("groups", "")).startswith(_NEAREST):
        wanted = _wanted_groups(block, options["groups"])
        chosen = ", ".join(f"{found['groups']} at {channels}" for channels, found in fitted.items())
        say(f"{block}, groups nearest to {wanted}: {chosen} channels")
    for place in places:
        parent, _, attribute = place.name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, _create(name, block, place, fitted[place.channels]))


def _places(model: nn.Module) -> Iterator[Place]:
    for name, module in model.named_modules():
        cls = type(module)
        kinds = _KINDS.get(f"{cls.__module__}.{cls.__qualname__}".removeprefix("timm.models."), ())
        taken = [kind for kind in kinds if not isinstance(getattr(module, kind.attribute, None), _NOTHING)]
        for kind in taken[:1] or [kind for kind in kinds[:1] if not kind.only_instead]:
            yield Place(f"{name}.{kind.attribute}", operator.attrgetter(kind.channels)(module))


def _create(name: str, block: str, place: Place, options: dict[str, Any]) -> nn.Module:
    try:
        return create_block(block, place.channels, **options)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{name}, {place.name}: {error}") from error


def _fit(name: str, block: str, channels: int, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options for this number of channels, with "nearest" resolved, after a trial on the meta device."""
    groups = options.get("groups")
    if not isinstance(groups, str):
        _try(name, block, channels, options)
        return options
    wanted = _wanted_groups(block, groups)
    divisors = [d for d in range(1, channels + 1) if channels % d == 0]
    refusal = None
    for divisor in sorted(divisors, key=lambda d: abs(d - wanted)):
        fitted = {**options, "groups": divisor}
        try:
            _try(name, block, channels, fitted)
        except ConfigError as error:
            refusal = refusal or error
        else:
            return fitted
    assert refusal is not None  # 1 divides every number
    raise refusal


def _try(name: str, block: str, channels: int, options: dict[str, Any]) -> None:
    try:
        with torch.device("meta"):
            create_block(block, channels, **options)
    except (ValueError, TypeError) as error:
        hint = ""
        if "groups" in dict(block_info(block).options) and "groups" in str(error) and "no option" not in str(error):
            hint = f"; {_HINT} takes the number that fits at each place"
        raise ConfigError(f"{name}: {error}{hint}") from error


def _wanted_groups(block: str, text: str) -> int:
    """The number of groups that "nearest" (the block's default) or "nearest:N" asks for."""
    word, _, number = text.partition(":")
    default = dict(block_info(block).options).get("groups")
    if word == _NEAREST and isinstance(default, int) and (number.isdecimal() or text == _NEAREST):
        wanted = int(number) if number else int(default)
        if wanted >= 1:
            return wanted
    if not isinstance(default, int):
        raise ConfigError(
            f"{block} has no option 'groups' with a number as its default, so groups={text!r} has no meaning"
        )
    raise ConfigError(
        f'{block}: groups={text!r} should be a number, "nearest" (to the default {int(default)}) or "nearest:N", '
        'such as "nearest:16"'
    )
