"""CPCA: channel prior convolutional attention.

Paper: "Channel prior convolutional attention for medical image segmentation", Huang et al., Computers in Biology and
Medicine 178, 2024, arXiv 2306.05196.
Reference implementation: https://github.com/Cuthbert-Huang/CPCANet (class ``RepBlock``)

Deviations:
- means are summed in float32 for half-precision inputs, and float16 overflow saturates;
- if several values are equal to a maximum, they share its gradient evenly (the reference gives it to one of them).

The paper and the authors' code differ. The code is followed, since the published results come from it:
- paper: the channel gate is the sigmoid of the sum of both pooled branches. Code: the sum of two sigmoids, up to 2;
- paper: one 1x1 convolution mixes the channels after the strips. Code: the same convolution, with the same weights, is
  used three times: with a GELU before everything, after the strips, and at the end.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from yolov5_ema.blocks.common import (
    AttentionBlock,
    check_positive_int,
    check_reduction,
    saturate,
    stable_mean,
    wide_dtype,
)
from yolov5_ema.blocks.positions import named_numbers
from yolov5_ema.blocks.registry import register_block


class _Channel(nn.Module):
    """One gate for each channel, from its mean and its maximum through one shared MLP, in float32 or wider."""

    def __init__(
        self, channels: int, hidden: int, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1, device=device, dtype=dtype)
        self.fc2 = nn.Conv2d(hidden, channels, 1, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = self._of(stable_mean(x, [2, 3]).to(x.dtype))  # (N, C, 1, 1)
        return mean + self._of(x.amax([2, 3], keepdim=True))  # (N, C, 1, 1)

    def _of(self, pooled: torch.Tensor) -> torch.Tensor:
        return saturate(self.fc2(saturate(self.fc1(pooled)).relu())).to(wide_dtype(pooled)).sigmoid()  # (N, C, 1, 1)


def _strips(
    channels: int, length: int, device: torch.device | str | None, dtype: torch.dtype | None
) -> tuple[nn.Conv2d, nn.Conv2d]:
    """Depthwise convolutions with kernels (1, length) and (length, 1)."""
    along = nn.Conv2d(
        channels, channels, (1, length), padding=(0, length // 2), groups=channels, device=device, dtype=dtype
    )
    down = nn.Conv2d(
        channels, channels, (length, 1), padding=(length // 2, 0), groups=channels, device=device, dtype=dtype
    )
    return along, down


@register_block(paper="Huang et al., CBM 2024, arXiv 2306.05196")
class CPCA(AttentionBlock):
    """Channel prior convolutional attention (arXiv 2306.05196, section 3.3), as in the authors' code.

    ``Y = gelu(conv(X)); Y = Y * channel(Y); S = depthwise5x5(Y)``, then
    ``out = conv(Y * conv(S + strips7(S) + strips11(S) + strips21(S)))``, where ``conv`` is one 1x1 convolution.

    It is no gate: the output is not the input times a factor, and ``--init identity`` cannot be used.

    Parameters: C^2 + C + 2 * C * h + h + C + 110 * C with h = C / reduction; 450,688 at 512 channels. The layers' names
    are those of the reference: ``ca.fc1``, ``ca.fc2``, ``dconv5_5``, ``dconv1_7`` and so on, ``conv``.

    Args:
        channels: channels C of the feature map.
        reduction: the hidden channels of the channel gate are ``channels // reduction``.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        (N, C, H, W) -> (N, C, H, W), any N, H, W >= 1, in the input's dtype.

    Raises:
        ValueError: an option that is not an integer or below 1, or a reduction larger than the number of channels.

    >>> import torch
    >>> CPCA(64)(torch.rand(2, 64, 20, 12)).shape
    torch.Size([2, 64, 20, 12])
    """

    shown_options = ("reduction",)

    @named_numbers
    def __init__(
        self,
        channels: int,
        reduction: int = 4,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        c = self.channels = check_positive_int("CPCA", "channels", channels)
        self.reduction = check_reduction("CPCA", c, reduction)
        self.ca = _Channel(c, c // self.reduction, device, dtype)
        self.dconv5_5 = nn.Conv2d(c, c, 5, padding=2, groups=c, device=device, dtype=dtype)
        self.dconv1_7, self.dconv7_1 = _strips(c, 7, device, dtype)
        self.dconv1_11, self.dconv11_1 = _strips(c, 11, device, dtype)
        self.dconv1_21, self.dconv21_1 = _strips(c, 21, device, dtype)
        self.conv = nn.Conv2d(c, c, 1, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.gelu(saturate(self.conv(x)))  # (N, C, H, W)
        # a wide product, so that its gradient cannot overflow and meet a slope of 0
        y = saturate((y.to(wide_dtype(y)) * self.ca(y)).to(y.dtype))  # (N, C, H, W)
        near = saturate(self.dconv5_5(y))  # (N, C, H, W)
        strips7 = saturate(self.dconv7_1(saturate(self.dconv1_7(near))))  # (N, C, H, W)
        strips11 = saturate(self.dconv11_1(saturate(self.dconv1_11(near))))  # (N, C, H, W)
        strips21 = saturate(self.dconv21_1(saturate(self.dconv1_21(near))))  # (N, C, H, W)
        score = saturate(self.conv(saturate(strips7 + strips11 + strips21 + near)))  # (N, C, H, W)
        return saturate(self.conv(saturate(score * y))).to(x.dtype)  # (N, C, H, W)
