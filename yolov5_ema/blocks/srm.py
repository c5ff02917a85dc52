"""SRM: style-based recalibration module.

Paper: "SRM: A Style-based Recalibration Module for Convolutional Neural Networks", Lee et al., ICCV 2019,
arXiv 1903.10829.
Reference implementation: https://github.com/hyunjaelee410/style-based-recalibration-module

Deviations:
- the raw parameter ``cfc`` is the ``weight`` of a submodule: the optimizer of YOLOv5 v6.0 collects parameters by that
  name and would never train others (the reference's name is mapped when a state dict is loaded);
- one image in training mode works, see SRM, and so does a map of one pixel (NaN in the reference);
- statistics are summed in float32 for half-precision inputs, and float16 overflow saturates.

The paper's equation 2 divides by all pixels, the reference by one less. The reference is followed.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from yolov5_ema.blocks.common import (
    AttentionBlock,
    BatchNorm,
    check_positive_int,
    free_pixels,
    saturate,
    wide_dtype,
    zero_,
)
from yolov5_ema.blocks.positions import named_numbers
from yolov5_ema.blocks.registry import register_block


class _Style(nn.Module):
    """One weight for the mean and one for the deviation of each channel; it starts at 0, as in the reference."""

    def __init__(self, channels: int, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, 2, device=device, dtype=dtype))

    def forward(self, mean: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
        weight = self.weight[:, :, None, None].to(mean.dtype)  # (C, 2, 1, 1)
        return mean * weight[:, 0] + deviation * weight[:, 1]  # (N, C, 1, 1)


@register_block(paper="Lee et al., ICCV 2019, arXiv 1903.10829")
class SRM(AttentionBlock):
    """Style-based recalibration (arXiv 1903.10829, section 3, equations 1 to 6).

    ``out = X * sigmoid(BatchNorm(a * mean + b * deviation))``, one gate for each channel, which depends on no other
    channel.

    In training mode a batch of one image has one value for each channel, so there are no batch statistics
    (``nn.BatchNorm2d`` raises, and so the reference cannot be built in a YOLOv5, which tries one image first). The
    block then uses the running statistics and leaves them unchanged.

    Parameters: 4 * channels; 2,048 at 512 channels. Loads the reference's ``cfc`` and ``bn``.

    Args:
        channels: channels C of the feature map.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        (N, C, H, W) -> (N, C, H, W), any N, H, W >= 1, in the input's dtype.

    Raises:
        ValueError: channels that are not an integer or below 1.

    >>> import torch
    >>> SRM(64)(torch.rand(2, 64, 20, 12)).shape
    torch.Size([2, 64, 20, 12])
    """

    reference_names: ClassVar[dict[str, str]] = {"cfc": "style.weight", "bn": "norm.bn"}

    @named_numbers
    def __init__(
        self,
        channels: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels = check_positive_int("SRM", "channels", channels)
        self.style = _Style(self.channels, device, dtype)
        self.norm = BatchNorm(self.channels, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.to(wide_dtype(x))
        mean = wide.mean([2, 3], keepdim=True)  # (N, C, 1, 1)
        squares = (wide - mean).square()  # (N, C, H, W)
        deviation = (squares.sum([2, 3], keepdim=True) / free_pixels(x) + 1e-5).sqrt()  # (N, C, 1, 1)
        score = self.norm(saturate(self.style(mean, deviation).to(x.dtype)))  # (N, C, 1, 1)
        return x * score.sigmoid().to(x.dtype)  # (N, C, H, W)

    def zero_gate_(self) -> None:
        """Set the style's weights and the norm's shift to zero, so that training starts with a gate of 1/2.

        The norm's scale stays: if it were zero too, nothing but the shift could learn.
        """
        zero_(self.style)
        nn.init.zeros_(self.norm.bn.bias)
        self.norm.bn.reset_running_stats()
