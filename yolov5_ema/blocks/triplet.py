"""Triplet: triplet attention.

Paper: "Rotate to Attend: Convolutional Triplet Attention Module", Misra et al., WACV 2021, arXiv 2010.03045.
Reference implementation: https://github.com/landskape-ai/triplet-attention

Deviations:
- only the pooled maps are turned, not the feature map itself (the result is the same);
- means are summed in float32 for half-precision inputs, and float16 overflow saturates;
- a single pixel in training mode works, see Triplet;
- if several values are equal to a maximum, they share its gradient evenly (the reference gives it to one of them).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from yolov5_ema.blocks.common import (
    AttentionBlock,
    BatchNorm,
    check_bool,
    check_odd_kernel,
    check_positive_int,
    saturate,
    stable_mean,
    zero_,
)
from yolov5_ema.blocks.positions import named_numbers
from yolov5_ema.blocks.registry import register_block


class _Gate(nn.Module):
    """One gate for each pair of positions in two dimensions, from the maximum and the mean over the third."""

    def __init__(
        self, turned: list[int], kernel_size: int, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        self.turned = turned
        padding = kernel_size // 2
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=padding, bias=False, device=device, dtype=dtype)
        self.norm = BatchNorm(1, momentum=0.01, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        turned = x.permute(self.turned)  # (N, pooled, rows, columns)
        maps = [turned.amax(1, keepdim=True), stable_mean(turned, [1]).to(x.dtype)]  # (N, 1, rows, columns) each
        score = self.norm(saturate(self.conv(torch.cat(maps, dim=1))))  # (N, 1, rows, columns)
        # each permutation here exchanges two dimensions at most, so it is its own inverse
        return score.sigmoid().to(x.dtype).permute(self.turned)


@register_block(paper="Misra et al., WACV 2021, arXiv 2010.03045")
class Triplet(AttentionBlock):
    """Triplet attention (arXiv 2010.03045, section 3, equations 1 to 5).

    Three gates are averaged: ``out = X * (gate(C, W) + gate(H, C) + gate(H, W)) / 3``. Each comes from the maximum and
    the mean over the dimension that it leaves out, by a convolution and BatchNorm. The gates do not depend on the
    number of channels, and there is no reduction.

    In training mode a batch of one image with one pixel has no batch statistics for the gate of H and W
    (``nn.BatchNorm2d`` raises). It then uses its running statistics and leaves them unchanged.

    Parameters: 3 * (2 * kernel_size^2 + 2), so 300 at 512 channels, and 200 without the spatial gate. Loads the
    reference's ``cw``, ``hc`` and ``hw``, each with ``conv.conv`` and ``conv.bn``.

    Args:
        channels: channels C of the feature map; any number gives the same parameters.
        kernel_size: side of the convolutions, odd.
        spatial: False leaves out the gate of H and W (the reference's ``no_spatial``).
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        (N, C, H, W) -> (N, C, H, W), any N, H, W >= 1, in the input's dtype.

    Raises:
        ValueError: an option of the wrong type or below 1, or an even kernel size.

    >>> import torch
    >>> Triplet(64)(torch.rand(2, 64, 20, 12)).shape
    torch.Size([2, 64, 20, 12])
    """

    reference_names: ClassVar[dict[str, str]] = {
        f"{gate}.conv.{theirs}": f"{gate}.{ours}"
        for gate in ("cw", "hc", "hw")
        for theirs, ours in (("conv", "conv"), ("bn", "norm.bn"))
    }

    shown_options = ("kernel_size", "spatial")

    @named_numbers
    def __init__(
        self,
        channels: int,
        kernel_size: int = 7,
        spatial: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels = check_positive_int("Triplet", "channels", channels)
        self.kernel_size = check_odd_kernel("Triplet", kernel_size)
        self.spatial = check_bool("Triplet", "spatial", spatial)
        self.cw = _Gate([0, 2, 1, 3], self.kernel_size, device, dtype)
        self.hc = _Gate([0, 3, 2, 1], self.kernel_size, device, dtype)
        self.hw = _Gate([0, 1, 2, 3], self.kernel_size, device, dtype) if self.spatial else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gates = self.cw(x) + self.hc(x)  # (N, C, 1, W) + (N, C, H, 1)
        if self.hw is None:
            return x * (gates / 2)  # (N, C, H, W)
        return x * ((gates + self.hw(x)) / 3)  # (N, C, H, W)

    def zero_gate_(self) -> None:
        """Set the last parameters to zero, so that training starts with a gate of 1/2 everywhere."""
        for gate in (self.cw, self.hc, self.hw):
            if gate is not None:
                zero_(gate.norm)
