"""CA: coordinate attention.

Paper: "Coordinate Attention for Efficient Mobile Network Design", Hou et al., CVPR 2021, arXiv 2103.02907.
Reference implementation: https://github.com/houqb/CoordAttention

Deviations:
- input and output have the same number of channels (in the reference the final product fails if they differ);
- means are summed in float32 for half-precision inputs, and float16 overflow saturates.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from yolov5_ema.blocks.common import AttentionBlock, check_positive_int, saturate, zero_
from yolov5_ema.blocks.positions import named_numbers
from yolov5_ema.blocks.registry import register_block
from yolov5_ema.kernels.means import gated_by_sides, means_of_sides, scale_sides

_LEAST_HIDDEN = 8


@register_block(paper="Hou et al., CVPR 2021, arXiv 2103.02907")
class CA(AttentionBlock):
    """Coordinate attention (arXiv 2103.02907, section 3.2, equations 4 to 9).

    The means over W and over H go through one shared 1x1 convolution, BatchNorm and hard-swish, then each through a
    1x1 convolution of its own: ``out = X * sigmoid(g_h) * sigmoid(g_w)``.

    Parameters: 25,648 at 512 channels, with hidden = max(8, channels // reduction) channels. The layers' names are
    those of the reference: ``conv1``, ``bn1``, ``conv_h``, ``conv_w``.

    Args:
        channels: channels C of the feature map.
        reduction: the hidden channels are ``channels // reduction``, but at least 8; any value of at least 1
            works.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        (N, C, H, W) -> (N, C, H, W), any N, H, W >= 1, in the input's dtype.

    Raises:
        ValueError: an option that is not an integer or below 1.

    >>> import torch
    >>> CA(64)(torch.rand(2, 64, 20, 12)).shape
    torch.Size([2, 64, 20, 12])
    """

    shown_options = ("reduction",)

    @named_numbers
    def __init__(
        self,
        channels: int,
        reduction: int = 32,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels = check_positive_int("CA", "channels", channels)
        self.reduction = check_positive_int("CA", "reduction", reduction)
        hidden = max(_LEAST_HIDDEN, self.channels // self.reduction)
        self.conv1 = nn.Conv2d(self.channels, hidden, kernel_size=1, device=device, dtype=dtype)
        self.bn1 = nn.BatchNorm2d(hidden, device=device, dtype=dtype)
        self.conv_h = nn.Conv2d(hidden, self.channels, kernel_size=1, device=device, dtype=dtype)
        self.conv_w = nn.Conv2d(hidden, self.channels, kernel_size=1, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting():
            gate_h, gate_w = self.gates(means_of_sides(x), x.shape[2])
            return scale_sides(x, gate_h, gate_w)  # (N, C, H, W)
        return gated_by_sides("CA", x, self.gates)  # (N, C, H, W)

    def gates(self, means: torch.Tensor, h: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The gates of rows (N, C, H) and of columns (N, C, W) from the means of both, (N, C, H+W)."""
        y = saturate(self.conv1(means.unsqueeze(3)))  # (N, hidden, H+W, 1)
        y = F.hardswish(saturate(self.bn1(y)))  # (N, hidden, H+W, 1)
        gate_h = self.conv_h(y[:, :, :h]).sigmoid().to(means.dtype)  # (N, C, H, 1)
        gate_w = self.conv_w(y[:, :, h:].transpose(2, 3)).sigmoid().to(means.dtype)  # (N, C, 1, W)
        return gate_h.squeeze(3), gate_w.squeeze(2)

    def zero_gate_(self) -> None:
        """Set the last parameters to zero, so that training starts with a gate of 1/2 * 1/2 everywhere."""
        zero_(self.conv_h, self.conv_w)
