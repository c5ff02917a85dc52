"""Blocks inside another module: a row ``C3k2_EMA`` is a C3k2 with EMA behind each of its bottlenecks.

The row's module stays what the engine builds. Only its bottlenecks are replaced by `Attended`, which keeps the names
of their tensors, so pretrained weights of the plain module fit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from yolov5_ema.blocks.registry import PREFIX, block_of

_OWN_PARTS = ("attention", "gain", "kind")


class Attended(nn.Module):
    """A bottleneck and the attention block behind it.

    It has the parts and attributes of the bottleneck, under their names; the block is ``attention``. The output is
    multiplied by ``gain``, which is 1 unless ``--init identity`` compensates the constant gate of a fresh block.

    Args:
        bottleneck: the module that the block follows. Its parts move into this one.
        attention: a block for the channels of its output.

    Shape:
        that of the bottleneck.

    Raises:
        ValueError: the bottleneck has an attribute of one of these names itself.
    """

    gain: torch.Tensor

    def __init__(self, bottleneck: nn.Module, attention: nn.Module) -> None:
        super().__init__()
        taken = [name for name in _OWN_PARTS if hasattr(bottleneck, name)]
        if taken:
            raise ValueError(f"{type(bottleneck).__name__} has an attribute {taken[0]} of its own")
        vars(self).update(vars(bottleneck))
        self.kind = type(bottleneck)
        self.attention = attention
        self.register_buffer("gain", torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.attention(self.kind.forward(self, x)) * self.gain
        return found


def host_and_block(name: object) -> tuple[str, str]:
    """The module and the block that the name of a row's module names together; two empty strings if it does not.

    Example:
        >>> host_and_block("C3k2_EMA"), host_and_block("yolov5_ema.C3_CA"), host_and_block("EMA")
        (('C3k2', 'EMA'), ('C3', 'CA'), ('', ''))
    """
    if not isinstance(name, str) or block_of(name):
        return "", ""
    host, _, block = name.removeprefix(PREFIX).rpartition("_")
    return (host, block) if host and block_of(block) == block else ("", "")


def put_inside(layer: nn.Module, create: Callable[[int], nn.Module]) -> None:
    """Put a block behind each bottleneck of a layer (the parts of its ``m``), in place.

    Args:
        layer: a C3, C2f, C3k2 or similar layer.
        create: makes the block for a number of channels.

    Raises:
        ValueError: the layer has no bottlenecks, or the block cannot have their channels.
    """
    held = getattr(layer, "m", None)
    if not isinstance(held, (nn.Sequential, nn.ModuleList)) or not len(held):
        raise ValueError(f"{type(layer).__name__} has no list of bottlenecks for a block to go behind")
    for index, bottleneck in enumerate(held):
        held[index] = _attended(bottleneck, create)


def attended_in(layer: nn.Module) -> list[Attended]:
    """The bottlenecks of a layer that have a block behind them."""
    return [module for module in layer.modules() if isinstance(module, Attended)]


def _attended(bottleneck: nn.Module, create: Callable[[int], nn.Module]) -> nn.Module:
    if type(bottleneck) is nn.Sequential and len(bottleneck):
        bottleneck[-1] = _attended(bottleneck[-1], create)
        return bottleneck
    # a bottleneck has as many channels at its end as at its beginning
    first = next((module for module in bottleneck.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None:
        raise ValueError(f"{type(bottleneck).__name__} is no bottleneck: it has no convolution")
    return Attended(bottleneck, create(first.in_channels))
