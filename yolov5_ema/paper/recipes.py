"""How the paper's authors train their detectors, for a block and for the same model without it.

The README of the authors' repository gives the commands. It has none for the row without a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from yolov5_ema.cfgs.generator import NO_BLOCK, Recipe

SOURCE = "README of github.com/YOLOonMe/EMA-attention-module, commit afc37ec"
EPOCHS, IMGSZ = 300, 640
BLOCKS, PUBLISHED = "blocks", "published"
WIRINGS = (PUBLISHED, BLOCKS)
"""What Detect and the Concat at stride 8 of the models for VisDrone read: the C3 before the blocks, as in the authors'
file, or the blocks."""


@dataclass(frozen=True)
class PaperRecipe:
    """The authors' recipe for one half of the paper's Table 2.

    Attributes:
        title: name of the data set.
        training: their command, as they write it; both recipes use v6.0's default hyperparameters.
        data: name of the data YAML here.
        size: size of YOLOv5; training starts from the released weights of this size.
        batch_size: images in a batch.
        thresholds: the flags of their ``val``.
        has_stride_4: whether the model has a head at stride 4 and the blocks are in the neck.
    """

    title: str
    training: str
    data: str
    size: str
    batch_size: int
    thresholds: tuple[str, ...] = ()
    has_stride_4: bool = False

    def cfgs(self, blocks: Sequence[str], size: str, wiring: str = PUBLISHED) -> dict[str, Recipe]:
        """The model without a block, which is the first, and with each of the blocks, by the names of their files.

        Args:
            blocks: names of registered blocks.
            size: ``n``, ``s``, ``m``, ``l`` or ``x``.
            wiring: one of `WIRINGS`; without a head at stride 4, it does not matter.
        """
        if not self.has_stride_4:
            with_block = {f"yolov5{size}-{block.lower()}.yaml": Recipe(size, block) for block in blocks}
            return {f"yolov5{size}.yaml": Recipe(size, NO_BLOCK), **with_block}
        is_published = wiring == PUBLISHED
        head, ending = ("p2-tph-published", "-published") if is_published else ("p2", "")
        plain = f"yolov5{size}-tph-published.yaml" if is_published else f"yolov5{size}-p2.yaml"
        return {
            plain: Recipe(size, NO_BLOCK, head=head, nc=10),
            **{
                f"yolov5{size}-{block.lower()}-tph{ending}.yaml": Recipe(size, block, "neck", head, nc=10)
                for block in blocks
            },
        }


RECIPES = {
    "coco": PaperRecipe(
        title="COCO",
        training="python train.py --data coco.yaml --cfg yolov5s_EMA.yaml --weights yolov5s.pt --batch-size 64 "
        "--device 0",
        data="coco.yaml",
        size="s",
        batch_size=64,
        thresholds=("--conf-thres", "0.001", "--iou-thres", "0.65"),
    ),
    "visdrone": PaperRecipe(
        title="VisDrone",
        training="python train.py --data VisDrone.yaml --weights yolov5x.pt --cfg models/accModels/yolov5xP2CBAM.yaml "
        "--epochs 300 --batch-size 6 --img 640 --device 0",
        data="visdrone.yaml",
        size="x",
        batch_size=6,
        has_stride_4=True,
    ),
}
