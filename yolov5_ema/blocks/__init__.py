"""Attention blocks that keep the shape of a feature map, and the registry that finds them by name.

To add a block, write one file here with a class decorated by ``@register_block``, and add one import below.
"""

from yolov5_ema.blocks.ca import CA
from yolov5_ema.blocks.cbam import CBAM
from yolov5_ema.blocks.eca import ECA
from yolov5_ema.blocks.ema import EMA
from yolov5_ema.blocks.nam import NAM
from yolov5_ema.blocks.registry import (
    BlockInfo,
    block_info,
    create_block,
    get_block,
    list_blocks,
    register_block,
    unregister_block,
)
from yolov5_ema.blocks.sa import SA
from yolov5_ema.blocks.se import SE
from yolov5_ema.blocks.sge import SGE
from yolov5_ema.blocks.simam import SimAM
from yolov5_ema.blocks.srm import SRM
from yolov5_ema.blocks.triplet import Triplet

__all__ = [
    "CA",
    "CBAM",
    "ECA",
    "EMA",
    "NAM",
    "SA",
    "SE",
    "SGE",
    "SRM",
    "BlockInfo",
    "SimAM",
    "Triplet",
    "block_info",
    "create_block",
    "get_block",
    "list_blocks",
    "register_block",
    "unregister_block",
]
