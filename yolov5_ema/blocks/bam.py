"""BAM: bottleneck attention module.

Paper: "BAM: Bottleneck Attention Module", Park et al., BMVC 2018, arXiv 1807.06514.
Reference implementation: https://github.com/Jongchan/attention-module (MODELS/bam.py)

Deviations:
- the two branches are added, as in the paper's equation 2 and because its ablation finds the sum best; the authors'
  code multiplies them (``combine="product"``);
- maps that are not square work (the reference pools with a square window, and fails);
- one image in training mode works, see BAM;
- the reference cannot be built as it is: its constructor reads a name that is not defined. Another public version
  shrinks the map by its dilated convolutions and fails in forward at most sizes;
- the parameters have other names (the reference's are mapped when a state dict is loaded);
- means are summed in float32 for half-precision inputs, and float16 overflow saturates.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from yolov5_ema.blocks.common import (
    AttentionBlock,
    BatchNorm,
    check_choice,
    check_positive_int,
    check_reduction,
    saturate,
    stable_mean,
    zero_,
)
from yolov5_ema.blocks.positions import named_numbers
from yolov5_ema.blocks.registry import register_block


class _Channel(nn.Module):
    """One score for each channel, from its mean through an MLP with BatchNorm (equation 3)."""

    def __init__(
        self, channels: int, hidden: int, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden, device=device, dtype=dtype)
        self.norm = BatchNorm(hidden, device=device, dtype=dtype)
        self.fc2 = nn.Linear(hidden, channels, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = stable_mean(x, [2, 3]).flatten(1).to(x.dtype)  # (N, C)
        hidden = self.norm(saturate(self.fc1(mean))[:, :, None, None]).relu()  # (N, hidden, 1, 1)
        return saturate(self.fc2(hidden.flatten(1)))[:, :, None, None]  # (N, C, 1, 1)


class _Spatial(nn.Module):
    """One score for each pixel, through dilated convolutions of fewer channels (equation 4)."""

    def __init__(
        self, channels: int, hidden: int, dilation: int, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, hidden, 1, device=device, dtype=dtype)
        self.norm = BatchNorm(hidden, device=device, dtype=dtype)
        spread = {"padding": dilation, "dilation": dilation}
        self.dilated1 = nn.Conv2d(hidden, hidden, 3, **spread, device=device, dtype=dtype)  # type: ignore[arg-type]
        self.norm1 = BatchNorm(hidden, device=device, dtype=dtype)
        self.dilated2 = nn.Conv2d(hidden, hidden, 3, **spread, device=device, dtype=dtype)  # type: ignore[arg-type]
        self.norm2 = BatchNorm(hidden, device=device, dtype=dtype)
        self.last = nn.Conv2d(hidden, 1, 1, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(saturate(self.reduce(x))).relu()  # (N, hidden, H, W)
        y = self.norm1(saturate(self.dilated1(y))).relu()  # (N, hidden, H, W)
        y = self.norm2(saturate(self.dilated2(y))).relu()  # (N, hidden, H, W)
        return saturate(self.last(y))  # (N, 1, H, W)


@register_block(paper="Park et al., BMVC 2018, arXiv 1807.06514")
class BAM(AttentionBlock):
    """Bottleneck attention (arXiv 1807.06514, section 3, equations 1 to 4).

    ``out = X * (1 + sigmoid(channel(X) + spatial(X)))``: the gate is between 1 and 2. With ``combine="product"``, as in
    the authors' code, the two branches are multiplied.

    In training mode a batch of one image has one value for each channel of the channel branch, so it has no batch
    statistics (``nn.BatchNorm1d`` raises). The branch then uses its running statistics and leaves them unchanged; so
    does the spatial branch for a single pixel.

    Parameters: 3 * C * h + C + 18 * h^2 + 13 * h + 1 with h = C / reduction; 68,513 at 512 channels. Loads the
    reference's ``channel_att.gate_c`` and ``spatial_att.gate_s``.

    Args:
        channels: channels C of the feature map.
        reduction: the hidden channels of both branches are ``channels // reduction``.
        dilation: of the two 3x3 convolutions of the spatial branch.
        combine: ``sum`` or ``product`` of the two branches.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        (N, C, H, W) -> (N, C, H, W), any N, H, W >= 1, in the input's dtype.

    Raises:
        ValueError: an option of the wrong type or below 1, a reduction larger than the number of channels, or an
            unknown way to combine.

    >>> import torch
    >>> BAM(64)(torch.rand(2, 64, 20, 12)).shape
    torch.Size([2, 64, 20, 12])
    """

    reference_names: ClassVar[dict[str, str]] = {
        "channel_att.gate_c.gate_c_fc_0": "channel.fc1",
        "channel_att.gate_c.gate_c_bn_1": "channel.norm.bn",
        "channel_att.gate_c.gate_c_fc_final": "channel.fc2",
        "spatial_att.gate_s.gate_s_conv_reduce0": "spatial.reduce",
        "spatial_att.gate_s.gate_s_bn_reduce0": "spatial.norm.bn",
        "spatial_att.gate_s.gate_s_conv_di_0": "spatial.dilated1",
        "spatial_att.gate_s.gate_s_bn_di_0": "spatial.norm1.bn",
        "spatial_att.gate_s.gate_s_conv_di_1": "spatial.dilated2",
        "spatial_att.gate_s.gate_s_bn_di_1": "spatial.norm2.bn",
        "spatial_att.gate_s.gate_s_conv_final": "spatial.last",
    }

    shown_options = ("reduction", "dilation", "combine")

    @named_numbers
    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        dilation: int = 4,
        combine: str = "sum",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels = check_positive_int("BAM", "channels", channels)
        self.reduction = check_reduction("BAM", self.channels, reduction)
        self.dilation = check_positive_int("BAM", "dilation", dilation)
        self.combine = check_choice("BAM", "combine", combine, ("sum", "product"))
        hidden = self.channels // self.reduction
        self.channel = _Channel(self.channels, hidden, device, dtype)
        self.spatial = _Spatial(self.channels, hidden, self.dilation, device, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # without the axes of the map, because OpenCV 5 cannot add another shape to what a convolution gives
        channel, spatial = self.channel(x).flatten(2), self.spatial(x).flatten(2)  # (N, C, 1), (N, 1, HW)
        score = channel + spatial if self.combine == "sum" else channel * spatial  # (N, C, HW)
        return saturate(x * (1 + score.sigmoid()).to(x.dtype).reshape(x.shape))  # (N, C, H, W)

    def zero_gate_(self) -> None:
        """Set the last parameters to zero, so that training starts with a gate of 3/2 everywhere.

        For a product only those of the channel branch, since with both at zero neither would get a gradient.
        """
        zero_(self.channel.fc2)
        if self.combine == "sum":
            zero_(self.spatial.last)
