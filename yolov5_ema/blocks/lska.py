"""LSKA: large separable kernel attention.

Paper: "Large Separable Kernel Attention: Rethinking the Large Kernel Attention Design in CNN", Lau et al., Expert
Systems with Applications 236, 2024, arXiv 2309.01439.
Reference implementation: https://github.com/StevenLauHKHK/Large-Separable-Kernel-Attention (class ``LSKA``)

Deviations:
- a kernel size without a published decomposition is an error (the reference builds a block without convolutions, which
  fails in forward);
- float16 overflow saturates.

Only the attention itself is built, not the two projections and the shortcut of the VAN block around it. There is no
sigmoid, neither in the paper nor in the reference.
"""

from __future__ import annotations

import torch
from torch import nn

from yolov5_ema.blocks.common import AttentionBlock, check_choice, check_positive_int, saturate, zero_
from yolov5_ema.blocks.positions import named_numbers
from yolov5_ema.blocks.registry import register_block

# for each kernel size: length of the first pair of strips, length and dilation of the second
_DECOMPOSED = {7: (3, 3, 2), 11: (3, 5, 2), 23: (5, 7, 3), 35: (5, 11, 3), 41: (5, 13, 3), 53: (5, 17, 3)}


@register_block(paper="Lau et al., ESWA 2024, arXiv 2309.01439")
class LSKA(AttentionBlock):
    """Large separable kernel attention (arXiv 2309.01439, section 3.2, equations 5 to 9).

    A depthwise convolution with a large kernel, as four strips (1 x k, k x 1, and two dilated ones), then a 1x1
    convolution: ``out = X * conv1x1(strips(X))``. The factor is not squashed, so it can be negative or above 1.

    Parameters: C^2 + C + 2 * C * (a + b + 2), with strips of lengths a and b; 270,848 at 512 channels and a kernel of
    7. The layers' names are those of the reference: ``conv0h``, ``conv0v``, ``conv_spatial_h``, ``conv_spatial_v``,
    ``conv1``.

    Args:
        channels: channels C of the feature map.
        kernel_size: 7, 11, 23, 35, 41 or 53; the largest kernel that the strips make up together.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        (N, C, H, W) -> (N, C, H, W), any N, H, W >= 1, in the input's dtype.

    Raises:
        ValueError: channels that are not an integer or below 1, or another kernel size.

    >>> import torch
    >>> LSKA(64, kernel_size=23)(torch.rand(2, 64, 20, 12)).shape
    torch.Size([2, 64, 20, 12])
    """

    shown_options = ("kernel_size",)

    @named_numbers
    def __init__(
        self,
        channels: int,
        kernel_size: int = 7,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        c = self.channels = check_positive_int("LSKA", "channels", channels)
        self.kernel_size = check_choice(
            "LSKA", "kernel_size", check_positive_int("LSKA", "kernel_size", kernel_size), tuple(_DECOMPOSED)
        )
        first, second, dilation = _DECOMPOSED[self.kernel_size]
        near, far = first // 2, second // 2 * dilation
        self.conv0h = nn.Conv2d(c, c, (1, first), padding=(0, near), groups=c, device=device, dtype=dtype)
        self.conv0v = nn.Conv2d(c, c, (first, 1), padding=(near, 0), groups=c, device=device, dtype=dtype)
        self.conv_spatial_h = nn.Conv2d(
            c, c, (1, second), padding=(0, far), dilation=dilation, groups=c, device=device, dtype=dtype
        )
        self.conv_spatial_v = nn.Conv2d(
            c, c, (second, 1), padding=(far, 0), dilation=dilation, groups=c, device=device, dtype=dtype
        )
        self.conv1 = nn.Conv2d(c, c, 1, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = saturate(self.conv0v(saturate(self.conv0h(x))))  # (N, C, H, W)
        y = saturate(self.conv_spatial_v(saturate(self.conv_spatial_h(y))))  # (N, C, H, W)
        return saturate(x * saturate(self.conv1(y)).to(x.dtype))  # (N, C, H, W)

    def zero_gate_(self) -> None:
        """Make the last convolution the constant 1, so that training starts with an unchanged map.

        A factor of 0 would let nothing through.
        """
        zero_(self.conv1)
        nn.init.ones_(self.conv1.bias)  # type: ignore[arg-type]
