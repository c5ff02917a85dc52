"""SE: squeeze and excitation.

Paper: "Squeeze-and-Excitation Networks", Hu et al., CVPR 2018, arXiv 1709.01507.
Reference implementations: https://github.com/hujie-frank/SENet (Caffe),
https://github.com/moskomule/senet.pytorch

Deviations:
- the parameters have other names (``fc.0`` and ``fc.2`` of the PyTorch reference are mapped when a state dict is
  loaded);
- means are summed in float32 for half-precision inputs, and float16 overflow saturates.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from yolov5_ema.blocks.common import (
    AttentionBlock,
    check_bool,
    check_positive_int,
    check_reduction,
    saturate,
    zero_,
)
from yolov5_ema.blocks.positions import named_numbers
from yolov5_ema.blocks.registry import register_block
from yolov5_ema.kernels.means import gated_by_channels, mean_of_channels, scale_channels


@register_block(paper="Hu et al., CVPR 2018, arXiv 1709.01507")
class SE(AttentionBlock):
    """Squeeze and excitation (arXiv 1709.01507, equations 2 to 4).

    ``out = X * sigmoid(W2 relu(W1 mean(X)))``, one gate for each channel.

    There are no biases by default, as in equation 3 and in the PyTorch reference.

    Parameters: 2 * C * hidden with hidden = channels // reduction, and hidden + C more with biases. At 512
    channels and reduction 16 these are 32,768 without biases and 33,312 with them. Loads the reference's ``fc.0``
    and ``fc.2``.

    Args:
        channels: channels C of the feature map.
        reduction: the hidden channels are ``channels // reduction``.
        bias: add a bias to both linear layers.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        (N, C, H, W) -> (N, C, H, W), any N, H, W >= 1, in the input's dtype.

    Raises:
        ValueError: an option of the wrong type or below 1, or a reduction larger than the number of channels.

    >>> import torch
    >>> SE(64, reduction=8)(torch.rand(2, 64, 20, 12)).shape
    torch.Size([2, 64, 20, 12])
    """

    reference_names: ClassVar[dict[str, str]] = {"fc.0": "fc1", "fc.2": "fc2"}

    @named_numbers
    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        bias: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels = check_positive_int("SE", "channels", channels)
        self.reduction = check_reduction("SE", self.channels, reduction)
        with_bias = check_bool("SE", "bias", bias)
        hidden = self.channels // self.reduction
        self.fc1 = nn.Linear(self.channels, hidden, bias=with_bias, device=device, dtype=dtype)
        self.fc2 = nn.Linear(hidden, self.channels, bias=with_bias, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting():
            return scale_channels(x, self.gate(mean_of_channels(x)))  # (N, C, H, W)
        return gated_by_channels("SE", x, self.gate)  # (N, C, H, W)

    def gate(self, mean: torch.Tensor) -> torch.Tensor:
        """The gate of each channel from the means of the channels, (N, C) both."""
        hidden = saturate(self.fc1(mean)).relu()  # (N, hidden)
        return self.fc2(hidden).sigmoid().to(mean.dtype)  # (N, C)

    def zero_gate_(self) -> None:
        """Set the last parameters to zero, so that training starts with a gate of 1/2 everywhere."""
        zero_(self.fc2)

    def extra_repr(self) -> str:
        return f"{self.channels}, reduction={self.reduction}, bias={self.fc1.bias is not None}"
