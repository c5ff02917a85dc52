"""GAM: global attention mechanism.

Paper: "Global Attention Mechanism: Retain Information to Enhance Channel-Spatial Interactions", Liu et al., 2021,
arXiv 2112.05561.
Reference implementation: the class ``GAM_Attention``, found in many repositories; the authors' own was not found. One
copy: https://github.com/z1069614715/objectdetection_script (cv-attention/GAM.py)

Deviations:
- the channel gate has the paper's sigmoid (figure 2), which several public copies leave out;
- the parameters have other names (those of ``GAM_Attention`` are mapped when a state dict is loaded);
- a batch of one pixel in training mode works, see GAM;
- float16 overflow saturates.

The group convolution and channel shuffle, by which the paper shrinks the module for ResNet50, are not included.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from yolov5_ema.blocks.common import (
    AttentionBlock,
    BatchNorm,
    check_odd_kernel,
    check_positive_int,
    check_reduction,
    saturate,
    zero_,
)
from yolov5_ema.blocks.positions import named_numbers
from yolov5_ema.blocks.registry import register_block


@register_block(paper="Liu et al., 2021, arXiv 2112.05561")
class GAM(AttentionBlock):
    """Global attention (arXiv 2112.05561, section 3, equations 1 and 2): channel gate, then spatial gate.

    ``Y = X * sigmoid(MLP(X)); out = Y * sigmoid(BN(conv(relu(BN(conv(Y))))))``. There is no pooling: the MLP runs on
    the channels of each pixel, and both gates have one value for each channel and pixel. The two 7x7 convolutions make
    it by far the largest block here.

    In training mode a batch of one image with one pixel has no batch statistics (``nn.BatchNorm2d`` raises). The norms
    then use their running statistics and leave them unchanged.

    Parameters: 2 * C * h + h + C for the MLP and 2 * k^2 * C * h + 3 * h + 3 * C for the spatial gate, with
    h = C / reduction and k = kernel_size; 6,556,160 at 512 channels. Loads ``channel_attention`` and
    ``spatial_attention`` of ``GAM_Attention``.

    Args:
        channels: channels C of the feature map.
        reduction: the hidden channels are ``channels // reduction`` (``rate`` in public code).
        kernel_size: side of both convolutions, odd.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        (N, C, H, W) -> (N, C, H, W), any N, H, W >= 1, in the input's dtype.

    Raises:
        ValueError: an option that is not an integer or below 1, a reduction larger than the number of channels, or an
            even kernel size.

    >>> import torch
    >>> GAM(64)(torch.rand(2, 64, 20, 12)).shape
    torch.Size([2, 64, 20, 12])
    """

    reference_names: ClassVar[dict[str, str]] = {
        "channel_attention.0": "fc1",
        "channel_attention.2": "fc2",
        "spatial_attention.0": "conv1",
        "spatial_attention.1": "norm1.bn",
        "spatial_attention.3": "conv2",
        "spatial_attention.4": "norm2.bn",
    }

    shown_options = ("reduction", "kernel_size")

    @named_numbers
    def __init__(
        self,
        channels: int,
        reduction: int = 4,
        kernel_size: int = 7,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        c = self.channels = check_positive_int("GAM", "channels", channels)
        self.reduction = check_reduction("GAM", c, reduction)
        k = self.kernel_size = check_odd_kernel("GAM", kernel_size)
        hidden = c // self.reduction
        self.fc1 = nn.Linear(c, hidden, device=device, dtype=dtype)
        self.fc2 = nn.Linear(hidden, c, device=device, dtype=dtype)
        self.conv1 = nn.Conv2d(c, hidden, k, padding=k // 2, device=device, dtype=dtype)
        self.norm1 = BatchNorm(hidden, device=device, dtype=dtype)
        self.conv2 = nn.Conv2d(hidden, c, k, padding=k // 2, device=device, dtype=dtype)
        self.norm2 = BatchNorm(c, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = saturate(self.fc1(x.permute(0, 2, 3, 1))).relu()  # (N, H, W, hidden)
        x = x * self.fc2(hidden).permute(0, 3, 1, 2).sigmoid().to(x.dtype)  # (N, C, H, W)
        y = self.norm1(saturate(self.conv1(x))).relu()  # (N, hidden, H, W)
        return x * self.norm2(saturate(self.conv2(y))).sigmoid().to(x.dtype)  # (N, C, H, W)

    def zero_gate_(self) -> None:
        """Set the last parameters to zero, so that training starts with a gate of 1/2 * 1/2 everywhere."""
        zero_(self.fc2, self.norm2)
