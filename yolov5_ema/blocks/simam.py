"""SimAM: a simple, parameter-free attention module.

Paper: "SimAM: A Simple, Parameter-Free Attention Module for Convolutional Neural Networks", Yang et al., ICML 2021,
PMLR 139 (no arXiv version).
Reference implementation: https://github.com/ZjjConan/SimAM

Deviations:
- a map of one pixel works (the reference divides 0 by 0 and gives NaN);
- everything before the gate is computed in float32 for half-precision inputs.

The paper's equation 5 averages over all M pixels of a channel, its listing and the reference divide by M - 1. The
reference is followed.
"""

from __future__ import annotations

import torch

from yolov5_ema.blocks.common import AttentionBlock, check_number, check_positive_int, free_pixels, wide_dtype
from yolov5_ema.blocks.positions import named_numbers
from yolov5_ema.blocks.registry import register_block


@register_block(paper="Yang et al., ICML 2021, PMLR 139")
class SimAM(AttentionBlock):
    """Parameter-free attention (SimAM, ICML 2021, section 3.2; no arXiv version).

    A neuron matters the more, the further it is from the mean of its channel:
    ``out = X * sigmoid((X - mean)^2 / (4 * (variance + e_lambda)) + 1/2)``, one gate for each value. No gate is below
    sigmoid(1/2) = 0.62.

    Parameters: none, at any number of channels. There is nothing to train and nothing in its state dict, and
    ``--init identity`` cannot be used.

    Args:
        channels: channels C of the feature map; any number gives the same block.
        e_lambda: the paper's lambda, which is added to the variance.
        device: not used, as there are no parameters.
        dtype: not used, as there are no parameters.

    Shape:
        (N, C, H, W) -> (N, C, H, W), any N, H, W >= 1, in the input's dtype.

    Raises:
        ValueError: channels that are not an integer or below 1, or a lambda that is not a number from 1e-12 to 1e6.

    >>> import torch
    >>> SimAM(64)(torch.rand(2, 64, 20, 12)).shape
    torch.Size([2, 64, 20, 12])
    """

    shown_options = ("e_lambda",)

    @named_numbers
    def __init__(
        self,
        channels: int,
        e_lambda: float = 1e-4,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels = check_positive_int("SimAM", "channels", channels)
        self.e_lambda = check_number("SimAM", "e_lambda", e_lambda, 1e-12, 1e6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.to(wide_dtype(x))
        squares = (wide - wide.mean([2, 3], keepdim=True)).square()  # (N, C, H, W)
        variance = squares.sum([2, 3], keepdim=True) / free_pixels(x)  # (N, C, 1, 1)
        score = squares / (4 * (variance + self.e_lambda)) + 0.5  # (N, C, H, W)
        return x * score.sigmoid().to(x.dtype)  # (N, C, H, W)
