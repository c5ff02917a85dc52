"""CBAM: convolutional block attention module.

Paper: "CBAM: Convolutional Block Attention Module", Woo et al., ECCV 2018, arXiv 1807.06521.
Reference implementation: https://github.com/Jongchan/attention-module

`yolov5_ema.kernels.cbam` computes its passes over the feature map.

Deviations:
- the parameters have other names (the reference's are mapped when a state dict is loaded);
- means are summed in float32 for half-precision inputs, and float16 overflow saturates;
- a single pixel in training mode works, see CBAM;
- if several values are equal to a maximum, they share its gradient evenly (the reference gives it to one of them).
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from yolov5_ema.blocks.common import (
    AttentionBlock,
    check_odd_kernel,
    check_positive_int,
    check_reduction,
    is_single_value,
    saturate,
    zero_,
)
from yolov5_ema.blocks.positions import named_numbers
from yolov5_ema.blocks.registry import register_block
from yolov5_ema.kernels.cbam import cbam, maps, pool, scale
from yolov5_ema.kernels.dispatch import check_implementation


class _ChannelGate(nn.Module):
    """One gate for each channel, from its mean and its maximum through one shared MLP (equation 2)."""

    def __init__(
        self, channels: int, hidden: int, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden, device=device, dtype=dtype)
        self.fc2 = nn.Linear(hidden, channels, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, peak = pool(x)  # (N, C) each
        return scale(x, self.gate(mean, peak).to(x.dtype))  # (N, C, H, W)

    def gate(self, mean: torch.Tensor, peak: torch.Tensor) -> torch.Tensor:
        """The gate (N, C) from the means and maxima of the channels, (N, C) each."""
        score = self._mlp(mean) + self._mlp(peak)  # (N, C)
        return score.sigmoid()

    def gate_of_both(self, pooled: torch.Tensor) -> torch.Tensor:
        """The gate (N, C) from means and maxima stacked in one tensor (2, N, C), in half as many steps."""
        return self._mlp(pooled).sum(0).sigmoid()  # (N, C)

    def _mlp(self, v: torch.Tensor) -> torch.Tensor:
        hidden = saturate(self.fc1(v)).relu()  # (N, hidden)
        return saturate(self.fc2(hidden))  # (N, C)


class _SpatialGate(nn.Module):
    """One gate for each pixel, from the maximum and the mean over its channels (equation 3)."""

    def __init__(self, kernel_size: int, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=padding, bias=False, device=device, dtype=dtype)
        self.bn = nn.BatchNorm2d(1, eps=1e-5, momentum=0.01, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.squash(self.conv(maps(x))).to(x.dtype)  # (N, C, H, W)

    def squash(self, score: torch.Tensor) -> torch.Tensor:
        """The gate (N, 1, H, W) from the convolved maps."""
        score = saturate(score)
        # a single value has no batch statistics: use the running ones
        if self.training and is_single_value(score, 1):
            bn = self.bn
            score = F.batch_norm(score, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)
        else:
            score = self.bn(score)
        return score.sigmoid()


@register_block(paper="Woo et al., ECCV 2018, arXiv 1807.06521")
class CBAM(AttentionBlock):
    """Convolutional block attention (arXiv 1807.06521, equations 1 to 3): channel gate, then spatial gate.

    As in the authors' code, the MLP has biases and a BatchNorm follows the spatial convolution.

    In training mode a batch of one image with one pixel has no batch statistics (``nn.BatchNorm2d`` raises). The
    spatial gate then uses its running statistics and leaves them unchanged.

    Parameters: 33,412 at 512 channels. Loads the reference's ``ChannelGate.mlp.1``, ``ChannelGate.mlp.3``,
    ``SpatialGate.spatial.conv`` and ``SpatialGate.spatial.bn``.

    Args:
        channels: channels C of the feature map.
        reduction: the MLP's hidden channels are ``channels // reduction``.
        kernel_size: side of the spatial gate's convolution, odd.
        implementation: how the block is computed: auto, reference, exact or cpp (`yolov5_ema.kernels.dispatch`). The
            result is the same.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        (N, C, H, W) -> (N, C, H, W), any N, H, W >= 1, in the input's dtype.

    Raises:
        ValueError: an option that is not an integer or below 1, a reduction larger than the number of channels, an
            even kernel size, or an unknown implementation.

    >>> import torch
    >>> CBAM(64, reduction=8)(torch.rand(2, 64, 20, 12)).shape
    torch.Size([2, 64, 20, 12])
    """

    # for blocks in old checkpoints, from before this attribute existed
    implementation = "auto"

    reference_names: ClassVar[dict[str, str]] = {
        "ChannelGate.mlp.1": "channel_gate.fc1",
        "ChannelGate.mlp.3": "channel_gate.fc2",
        "SpatialGate.spatial.conv": "spatial_gate.conv",
        "SpatialGate.spatial.bn": "spatial_gate.bn",
    }

    shown_options = ("reduction", "kernel_size", "implementation")

    @named_numbers
    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        kernel_size: int = 7,
        implementation: str = "auto",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels = check_positive_int("CBAM", "channels", channels)
        self.reduction = check_reduction("CBAM", self.channels, reduction)
        self.kernel_size = check_odd_kernel("CBAM", kernel_size)
        self.implementation = check_implementation("CBAM", implementation)
        self.channel_gate = _ChannelGate(self.channels, self.channels // self.reduction, device, dtype)
        self.spatial_gate = _SpatialGate(self.kernel_size, device, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting():
            return self.spatial_gate(self.channel_gate(x))  # (N, C, H, W)
        if not self._gates_are_its_own():
            return self.spatial_gate(self.channel_gate(x))  # (N, C, H, W)
        return cbam(x, self.channel_gate, self.spatial_gate, self.implementation)  # (N, C, H, W)

    def _gates_are_its_own(self) -> bool:
        """Whether the gates are the ones built here: wrapped or replaced gates may not have the methods used below."""
        return type(self.channel_gate) is _ChannelGate and type(self.spatial_gate) is _SpatialGate

    def zero_gate_(self) -> None:
        """Set the last parameters to zero, so that training starts with a gate of 1/2 * 1/2 everywhere."""
        zero_(self.channel_gate.fc2, self.spatial_gate.bn)
