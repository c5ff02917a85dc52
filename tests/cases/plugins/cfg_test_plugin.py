"""A block that does nothing, with an option."""

from __future__ import annotations

from torch import nn

from yolov5_ema.blocks import register_block


@register_block(name="CfgTestBlock")
class Block(nn.Identity):
    def __init__(self, channels: int, strength: float = 1.0) -> None:
        super().__init__()
