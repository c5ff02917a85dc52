"""ECA: efficient channel attention.

Paper: "ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks", Wang et al., CVPR 2020,
arXiv 1910.03151.
Reference implementation: https://github.com/BangguWu/ECANet

Deviations:
- by default the kernel size follows from the channels by the paper's rule (the reference's default is 3);
- means are summed in float32 for half-precision inputs.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from yolov5_ema.blocks.common import AttentionBlock, check_odd_kernel, check_positive_int, zero_
from yolov5_ema.blocks.positions import named_numbers
from yolov5_ema.blocks.registry import register_block
from yolov5_ema.kernels.means import gated_by_channels, mean_of_channels, scale_channels


def eca_kernel_size(channels: int) -> int:
    """The paper's kernel size for a number of channels: (log2(channels) + 1) / 2, cut to an integer, then made odd.

    An even integer becomes the next odd one.

    >>> [eca_kernel_size(channels) for channels in (1, 64, 256, 512)]
    [1, 3, 5, 5]
    """
    t = int(abs((math.log2(channels) + 1) / 2))
    return t if t % 2 else t + 1


@register_block(paper="Wang et al., CVPR 2020, arXiv 1910.03151")
class ECA(AttentionBlock):
    """Efficient channel attention (arXiv 1910.03151, section 3.2).

    A one-dimensional convolution runs along the means of the channels: ``out = X * sigmoid(conv(mean(X)))``.

    Parameters: ``kernel_size``, so 5 at 512 channels. The layer's name is that of the reference: ``conv``.

    Args:
        channels: channels C of the feature map.
        kernel_size: odd number of neighbouring channels; None for the paper's rule (gamma 2, b 1).
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        (N, C, H, W) -> (N, C, H, W), any N, H, W >= 1, in the input's dtype.

    Raises:
        ValueError: an option that is not an integer or below 1, or an even kernel size.

    >>> import torch
    >>> block = ECA(64)
    >>> block.kernel_size, block(torch.rand(2, 64, 20, 12)).shape
    (3, torch.Size([2, 64, 20, 12]))
    """

    shown_options = ("kernel_size",)

    @named_numbers
    def __init__(
        self,
        channels: int,
        kernel_size: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels = check_positive_int("ECA", "channels", channels)
        size = eca_kernel_size(self.channels) if kernel_size is None else kernel_size
        self.kernel_size = check_odd_kernel("ECA", size)
        padding = self.kernel_size // 2
        self.conv = nn.Conv1d(1, 1, self.kernel_size, padding=padding, bias=False, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting():
            return scale_channels(x, self.gate(mean_of_channels(x)))  # (N, C, H, W)
        return gated_by_channels("ECA", x, self.gate)  # (N, C, H, W)

    def gate(self, mean: torch.Tensor) -> torch.Tensor:
        """The gate of each channel from the means of the channels, (N, C) both."""
        return self.conv(mean.unsqueeze(1)).sigmoid().squeeze(1).to(mean.dtype)  # (N, C)

    def zero_gate_(self) -> None:
        """Set the last parameters to zero, so that training starts with a gate of 1/2 everywhere."""
        zero_(self.conv)
