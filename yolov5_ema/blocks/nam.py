"""NAM: normalization-based attention module.

Paper: "NAM: Normalization-based Attention Module", Liu et al., NeurIPS 2021 workshop, arXiv 2111.12419.
Reference implementation: https://github.com/Christian-lyc/NAM

Deviations:
- if all scales are zero, the shares are equal (the reference gives NaN);
- a single value per channel in training mode works, see NAM;
- float16 overflow saturates.

As in the reference, only the channel attention is built (the published code does not contain the paper's pixel
attention), and the shares are constants in the backward pass.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from yolov5_ema.blocks.common import (
    AttentionBlock,
    as_constant,
    check_positive_int,
    is_single_value,
    saturate,
    wide_dtype,
    zero_,
)
from yolov5_ema.blocks.positions import named_numbers
from yolov5_ema.blocks.registry import register_block
from yolov5_ema.kernels.norms import nam, takes_nam


def _shares(weight: torch.Tensor) -> torch.Tensor:
    """The share of each channel's scale in the sum of all scales, (C, 1, 1), in float32 or wider."""
    scale = weight.detach().abs()
    wide = wide_dtype(scale)
    # too small to change a scale that occurs in practice, but keeps the sum above 0
    scale = scale.to(wide) + 1e-30
    return (scale / scale.sum())[:, None, None]


@register_block(paper="Liu et al., NeurIPS 2021 workshop, arXiv 2111.12419")
class NAM(AttentionBlock):
    """Normalization-based attention (arXiv 2111.12419, section 3, equations 1 and 2), the channel part.

    The scales (gamma) of BatchNorm measure how much a channel matters. With the shares
    ``w = |gamma| / sum(|gamma|)``, ``out = X * sigmoid(w * BatchNorm(X))``. As in the reference, no gradient flows
    through the shares.

    If all gammas are zero, each share is 1 / C, as for any equal gammas, so the block stays finite and can still
    learn. In training mode a batch with one value per channel has no batch statistics (``nn.BatchNorm2d`` raises).
    The block then uses the running statistics and leaves them unchanged.

    Parameters: 2 * channels; 1,024 at 512 channels. Loads the reference's ``Channel_Att.bn2``.

    Args:
        channels: channels C of the feature map.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        (N, C, H, W) -> (N, C, H, W), any N, H, W >= 1, in the input's dtype.

    Raises:
        ValueError: channels that are not an integer or below 1.

    >>> import torch
    >>> NAM(64)(torch.rand(2, 64, 20, 12)).shape
    torch.Size([2, 64, 20, 12])
    """

    reference_names: ClassVar[dict[str, str]] = {"Channel_Att.bn2": "bn"}

    @named_numbers
    def __init__(
        self,
        channels: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels = check_positive_int("NAM", "channels", channels)
        self.bn = nn.BatchNorm2d(self.channels, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bn = self.bn
        if not torch.jit.is_scripting():  # noqa: SIM102 - alone, or TorchScript compiles what follows
            if takes_nam(x, bn):
                return nam(x, bn, _shares(bn.weight))  # (N, C, H, W)
        # a single value per channel has no batch statistics: use the running ones
        if self.training and is_single_value(x, self.channels):
            y = F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)
        else:
            y = bn(x)  # (N, C, H, W)
        share = _shares(bn.weight) if torch.jit.is_scripting() else as_constant(_shares, bn.weight)
        return x * (saturate(y) * share.to(y.dtype)).sigmoid().to(x.dtype)  # (N, C, H, W)

    def zero_gate_(self) -> None:
        """Set the last parameters to zero, so that training starts with a gate of 1/2 everywhere."""
        zero_(self.bn)
