"""ELA: efficient local attention.

Paper: "ELA: Efficient Local Attention for Deep Convolutional Neural Networks", Xu and Wan, 2024, arXiv 2403.01123.
Reference implementation: the paper's listing, as in https://github.com/AIFengheshu/Plug-play-modules; the authors
published no repository

Deviations:
- channels that the groups do not divide are an error that names the groups which do;
- statistics are summed in float32 for half-precision inputs, and float16 overflow saturates.

As in the listing, the strips along H and along W share one convolution and one GroupNorm. timm's layer of this name has
two of each and a SiLU before the sigmoid. Another public copy lays the strip along W on H, and so works for square maps
only.
"""

from __future__ import annotations

import torch
from torch import nn

from yolov5_ema.blocks.common import (
    AttentionBlock,
    check_odd_kernel,
    check_positive_int,
    nearest_divisors,
    saturate,
    stable_mean,
    wide_dtype,
    zero_,
)
from yolov5_ema.blocks.positions import named_numbers
from yolov5_ema.blocks.registry import register_block


@register_block(paper="Xu and Wan, 2024, arXiv 2403.01123")
class ELA(AttentionBlock):
    """Efficient local attention (arXiv 2403.01123, section 3.3, equations 7 to 9).

    The means over W and over H each go through a 1-D convolution, GroupNorm and sigmoid:
    ``out = X * gate(H) * gate(W)``. The channels are not reduced.

    The paper's variants: ELA-B is the default; ELA-T ``kernel_size=5, norm_groups=32``; ELA-S ``kernel_size=5,
    width=8``; ELA-L ``width=8``.

    Parameters: C * width * kernel_size + 2 * C; 4,608 at 512 channels. The layers' names are those of the listing:
    ``conv`` and ``gn``.

    Args:
        channels: channels C of the feature map.
        kernel_size: length of the convolution along H and along W, odd.
        norm_groups: groups of the GroupNorm; they must divide ``channels``.
        width: channels in each group of the convolution; 1 is a depthwise one. It must divide ``channels``.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        (N, C, H, W) -> (N, C, H, W), any N, H, W >= 1, in the input's dtype.

    Raises:
        ValueError: an option that is not an integer or below 1, an even kernel size, or groups that do not divide the
            channels.

    >>> import torch
    >>> ELA(64)(torch.rand(2, 64, 20, 12)).shape
    torch.Size([2, 64, 20, 12])
    """

    shown_options = ("kernel_size", "norm_groups", "width")

    @named_numbers
    def __init__(
        self,
        channels: int,
        kernel_size: int = 7,
        norm_groups: int = 16,
        width: int = 1,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        c = self.channels = check_positive_int("ELA", "channels", channels)
        k = self.kernel_size = check_odd_kernel("ELA", kernel_size)
        self.norm_groups = check_positive_int("ELA", "norm_groups", norm_groups)
        self.width = check_positive_int("ELA", "width", width)
        for option, value in (("norm_groups", self.norm_groups), ("width", self.width)):
            if c % value:
                nearest = " or ".join(str(d) for d in nearest_divisors(c, value))
                raise ValueError(f"ELA: {option} {value} does not divide {c} channels; nearest that does: {nearest}")
        self.conv = nn.Conv1d(c, c, k, padding=k // 2, groups=c // self.width, bias=False, device=device, dtype=dtype)
        self.gn = nn.GroupNorm(self.norm_groups, c, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate_h = self._gate(stable_mean(x, [3]).squeeze(3).to(x.dtype)).unsqueeze(3)  # (N, C, H, 1)
        gate_w = self._gate(stable_mean(x, [2]).squeeze(2).to(x.dtype)).unsqueeze(2)  # (N, C, 1, W)
        return x * gate_h * gate_w  # (N, C, H, W)

    def _gate(self, strip: torch.Tensor) -> torch.Tensor:
        wide = wide_dtype(strip)
        y = saturate(self.conv(strip)).to(wide)  # (N, C, length)
        gn = self.gn
        y = torch.group_norm(y, self.norm_groups, gn.weight.to(wide), gn.bias.to(wide), gn.eps)  # (N, C, length)
        return y.sigmoid().to(strip.dtype)  # (N, C, length)

    def zero_gate_(self) -> None:
        """Set the last parameters to zero, so that training starts with a gate of 1/2 * 1/2 everywhere."""
        zero_(self.gn)
