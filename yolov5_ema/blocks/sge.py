"""SGE: spatial group-wise enhance.

Paper: "Spatial Group-wise Enhance: Improving Semantic Feature Learning in Convolutional Networks", Li et al., 2019,
arXiv 1905.09646.
Reference implementation: https://github.com/implus/PytorchInsight

Deviations:
- a map of one pixel works (the reference divides by zero degrees of freedom and gives NaN);
- statistics are summed in float32 for half-precision inputs.

The paper divides by the standard deviation of all pixels, the reference by the unbiased one (n - 1). The reference is
followed, and so is its small number 1e-5, which it adds to the deviation and not to the variance. Copies of the
reference that start ``bias`` at 0 exist; here it starts at 1, as the authors' does.
"""

from __future__ import annotations

import torch
from torch import nn

from yolov5_ema.blocks.common import (
    AttentionBlock,
    check_positive_int,
    free_pixels,
    nearest_divisors,
    stable_mean,
    wide_dtype,
    zero_,
)
from yolov5_ema.blocks.positions import named_numbers
from yolov5_ema.blocks.registry import register_block


@register_block(paper="Li et al., 2019, arXiv 1905.09646")
class SGE(AttentionBlock):
    """Spatial group-wise enhance (arXiv 1905.09646, section 3, equations 1 to 5).

    In each group of channels, the product of every pixel's vector with the group's mean vector is normalised over the
    map, scaled and shifted: ``out = X * sigmoid(weight * normalised + bias)``, one gate for each pixel of a group.

    Parameters: 2 * groups; 128 at 512 channels. Their names are those of the reference: ``weight`` and ``bias``.

    Args:
        channels: channels C of the feature map.
        groups: number of groups G that the channels are split into; it must divide ``channels``.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        (N, C, H, W) -> (N, C, H, W), any N, H, W >= 1, in the input's dtype.

    Raises:
        ValueError: an option that is not an integer or below 1, or a number of groups that does not divide the
            channels.

    >>> import torch
    >>> SGE(64, groups=8)(torch.rand(2, 64, 20, 12)).shape
    torch.Size([2, 64, 20, 12])
    """

    shown_options = ("groups",)

    @named_numbers
    def __init__(
        self,
        channels: int,
        groups: int = 64,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels = check_positive_int("SGE", "channels", channels)
        self.groups = check_positive_int("SGE", "groups", groups)
        if self.channels % self.groups:
            nearest = " or ".join(str(d) for d in nearest_divisors(self.channels, self.groups))
            raise ValueError(
                f"SGE: {self.channels} channels cannot be split into {self.groups} groups; "
                f"nearest groups that divide them: {nearest}"
            )
        self.weight = nn.Parameter(torch.zeros(1, self.groups, 1, 1, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.ones(1, self.groups, 1, 1, device=device, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        groups = x.reshape(n * self.groups, c // self.groups, h, w)  # (NG, C/G, H, W)
        likeness = (groups.to(wide_dtype(x)) * stable_mean(groups, [2, 3])).sum(1, keepdim=True)  # (NG, 1, H, W)
        centred = likeness - likeness.mean([2, 3], keepdim=True)  # (NG, 1, H, W)
        # a norm, not the root of a sum: its gradient is 0, not NaN, if all pixels are equal
        length = torch.linalg.vector_norm(centred, 2.0, [2, 3], True)  # (NG, 1, 1, 1)
        normed = centred / (length / free_pixels(x) ** 0.5 + 1e-5)  # (NG, 1, H, W)
        score = normed.reshape(n, self.groups, h, w) * self.weight + self.bias  # (N, G, H, W)
        gate = score.sigmoid().to(x.dtype).reshape(n * self.groups, 1, h, w)  # (NG, 1, H, W)
        return (groups * gate).reshape(n, c, h, w)  # (N, C, H, W)

    def zero_gate_(self) -> None:
        """Set the parameters to zero, so that training starts with a gate of 1/2 everywhere."""
        zero_(self)
