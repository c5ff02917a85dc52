"""Attention blocks that keep the shape of a feature map, and the registry that finds them by name.

To add a block, write one file here with a class decorated by ``@register_block``, and add one import below.
"""

from yolov5_ema.blocks import by_timm as by_timm
from yolov5_ema.blocks.bam import BAM
from yolov5_ema.blocks.ca import CA
from yolov5_ema.blocks.cbam import CBAM
from yolov5_ema.blocks.cpca import CPCA
from yolov5_ema.blocks.double_attention import A2
from yolov5_ema.blocks.eca import ECA
from yolov5_ema.blocks.ela import ELA
from yolov5_ema.blocks.ema import EMA
from yolov5_ema.blocks.gam import GAM
from yolov5_ema.blocks.global_context import GC
from yolov5_ema.blocks.lska import LSKA
from yolov5_ema.blocks.mlca import MLCA
from yolov5_ema.blocks.nam import NAM
from yolov5_ema.blocks.non_local import NonLocal
from yolov5_ema.blocks.parnet import ParNet
from yolov5_ema.blocks.polarized import PolarizedSA
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
    "A2",
    "BAM",
    "CA",
    "CBAM",
    "CPCA",
    "ECA",
    "ELA",
    "EMA",
    "GAM",
    "GC",
    "LSKA",
    "MLCA",
    "NAM",
    "SA",
    "SE",
    "SGE",
    "SRM",
    "BlockInfo",
    "NonLocal",
    "ParNet",
    "PolarizedSA",
    "SimAM",
    "Triplet",
    "block_info",
    "create_block",
    "get_block",
    "list_blocks",
    "register_block",
    "unregister_block",
]
