"""A2: double attention.

Paper: "A^2-Nets: Double Attention Networks", Chen et al., NeurIPS 2018, arXiv 1810.11579.
Reference implementation: https://github.com/nguyenvo09/Double-Attention-Network (the authors' own, in MXNet, was not
found)

Deviations:
- the input is added to the output, as the paper inserts the block; the reference leaves that to the caller
  (``residual=False``);
- float16 overflow saturates, and softmaxes are computed in float32 for half-precision inputs.

The attention maps are normalised over the pixels and the attention vectors over the maps, as in equations 4 and 5. A
public copy calls softmax without naming a dimension, and torch then takes the first one: the images of the batch.
"""

from __future__ import annotations

import torch
from torch import nn

from yolov5_ema.blocks.common import (
    AttentionBlock,
    check_bool,
    check_positive_int,
    check_reduction,
    saturate,
    wide_dtype,
    zero_,
)
from yolov5_ema.blocks.positions import named_numbers
from yolov5_ema.blocks.registry import register_block


@register_block(paper="Chen et al., NeurIPS 2018, arXiv 1810.11579")
class A2(AttentionBlock):
    """Double attention (arXiv 1810.11579, section 3, equations 4 to 6).

    First the features of all pixels are gathered into n global descriptors, each a mean with weights of its own. Then
    every pixel gets a mixture of them: ``Z = [A softmax(B)^T] softmax(V)``, ``out = X + conv(Z)``.

    Parameters: 4 * C * m + 3 * m + C with m = n = C / reduction; 263,040 at 512 channels. The layers' names are those
    of the reference: ``convA``, ``convB``, ``convV``, ``conv_reconstruct``.

    Args:
        channels: channels C of the feature map.
        reduction: features have ``channels // reduction`` channels, and as many descriptors are gathered.
        residual: False leaves out the input, as the reference does.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        (N, C, H, W) -> (N, C, H, W), any N, H, W >= 1, in the input's dtype.

    Raises:
        ValueError: an option of the wrong type or below 1, or a reduction larger than the number of channels.

    >>> import torch
    >>> A2(64)(torch.rand(2, 64, 20, 12)).shape
    torch.Size([2, 64, 20, 12])
    """

    shown_options = ("reduction", "residual")

    @named_numbers
    def __init__(
        self,
        channels: int,
        reduction: int = 4,
        residual: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        c = self.channels = check_positive_int("A2", "channels", channels)
        self.reduction = check_reduction("A2", c, reduction)
        self.residual = check_bool("A2", "residual", residual)
        m = self.features = c // self.reduction
        self.convA = nn.Conv2d(c, m, 1, device=device, dtype=dtype)
        self.convB = nn.Conv2d(c, m, 1, device=device, dtype=dtype)
        self.convV = nn.Conv2d(c, m, 1, device=device, dtype=dtype)
        self.conv_reconstruct = nn.Conv2d(m, c, 1, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, _, h, w = x.shape
        wide = wide_dtype(x)
        features = saturate(self.convA(x)).flatten(2).to(wide)  # (N, m, HW)
        maps = saturate(self.convB(x)).flatten(2).softmax(2, dtype=wide)  # (N, n, HW)
        vectors = saturate(self.convV(x)).flatten(2).softmax(1, dtype=wide)  # (N, n, HW)
        gathered = features @ maps.transpose(1, 2)  # (N, m, n)
        spread = (gathered.to(wide) @ vectors).to(x.dtype).reshape(n, self.features, h, w)  # (N, m, H, W)
        out = saturate(self.conv_reconstruct(saturate(spread))).to(x.dtype)  # (N, C, H, W)
        return saturate(x + out) if self.residual else out

    def zero_gate_(self) -> None:
        """Set the last parameters to zero, so that training starts with an unchanged map.

        Raises:
            ValueError: without ``residual``, where nothing of the input would be left.
        """
        if not self.residual:
            raise ValueError("A2 with residual=False cannot start as a constant factor of its input")
        zero_(self.conv_reconstruct)
