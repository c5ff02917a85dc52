"""PolarizedSA: polarized self-attention, sequential or parallel.

Paper: "Polarized Self-Attention: Towards High-quality Pixel-wise Regression", Liu et al., 2021, arXiv 2107.00782.
Reference implementation: https://github.com/DeLightCMU/PSA (classes ``PSA_s`` and ``PSA_p``)

It is not called PSA because three papers use that name, and ultralytics' YOLOv10 has rows of another block so called.

Deviations:
- float16 overflow saturates, and softmaxes are computed in float32 for half-precision inputs.

The paper and the authors' code differ. The code is followed, since its state dicts and the published results come from
it:
- spatial gate, paper: softmax over the channels of the pooled query, times the values. ``PSA_s``: softmax of the values
  over the pixels, times the pooled query without a softmax. ``PSA_p``: softmax over the pixels after the product. That
  gate is sigmoid(p) with the p of all pixels adding up to 1, so it is close to 1/2 everywhere on a large map (between
  0.5 and 0.5002 for p = 1 / 1600);
- the last step of the channel gate, paper: a convolution and LayerNorm. ``PSA_s``: two convolutions with LayerNorm and
  ReLU between them. ``PSA_p``: one convolution.
"""

from __future__ import annotations

import torch
from torch import nn

from yolov5_ema.blocks.common import (
    AttentionBlock,
    Bottleneck,
    check_choice,
    check_positive_int,
    saturate,
    stable_mean,
    wide_dtype,
    zero_,
)
from yolov5_ema.blocks.positions import named_numbers
from yolov5_ema.blocks.registry import register_block

# the smallest number that leaves two values for the LayerNorm; of one value it gives the same whatever the image
_LEAST_CHANNELS = 16


@register_block(paper="Liu et al., 2021, arXiv 2107.00782")
class PolarizedSA(AttentionBlock):
    """Polarized self-attention (arXiv 2107.00782, section 3), as in the authors' code.

    The channel gate comes from half as many channels, averaged over the pixels with learned weights. The spatial gate
    comes from the product of each pixel's vector with the pooled query. ``sequential``:
    ``Z = X * channel(X); out = Z * spatial(Z)``. ``parallel``: ``out = X * channel(X) + X * spatial(X)``, so the gates
    add up to as much as 2.

    Parameters: in the mode ``sequential`` 3 * C * C / 2 + 2 * C + 3 * C * h / 2 + 3 * h with h = C / 8; 443,584 at 512
    channels. In the mode ``parallel`` 2 * C * C + C; 524,800 at 512 channels. The layers' names are those of the
    reference: ``conv_q_right``, ``conv_v_right``, ``conv_up``, ``conv_q_left``, ``conv_v_left``.

    Args:
        channels: channels C of the feature map; at least 16 for ``sequential``, 2 for ``parallel``.
        mode: ``sequential`` or ``parallel``.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        (N, C, H, W) -> (N, C, H, W), any N, H, W >= 1, in the input's dtype.

    Raises:
        ValueError: channels that are not an integer or too few, or an unknown mode.

    >>> import torch
    >>> PolarizedSA(64, mode="parallel")(torch.rand(2, 64, 20, 12)).shape
    torch.Size([2, 64, 20, 12])
    """

    shown_options = ("mode",)

    @named_numbers
    def __init__(
        self,
        channels: int,
        mode: str = "sequential",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        c = self.channels = check_positive_int("PolarizedSA", "channels", channels)
        self.mode = check_choice("PolarizedSA", "mode", mode, ("sequential", "parallel"))
        least = _LEAST_CHANNELS if mode == "sequential" else 2
        if c < least:
            raise ValueError(f"PolarizedSA: mode {mode} needs at least {least} channels, got {c}")
        half = c // 2
        self.conv_q_right = nn.Conv2d(c, 1, 1, bias=False, device=device, dtype=dtype)
        self.conv_v_right = nn.Conv2d(c, half, 1, bias=False, device=device, dtype=dtype)
        if self.mode == "sequential":
            hidden = half // 4
            self.conv_up: nn.Module = Bottleneck(half, hidden, c, device=device, dtype=dtype)
        else:
            self.conv_up = nn.Conv2d(half, c, 1, bias=False, device=device, dtype=dtype)
        self.conv_q_left = nn.Conv2d(c, half, 1, bias=False, device=device, dtype=dtype)
        self.conv_v_left = nn.Conv2d(c, half, 1, bias=False, device=device, dtype=dtype)
        for conv in (self.conv_q_right, self.conv_v_right, self.conv_q_left, self.conv_v_left):
            nn.init.kaiming_normal_(conv.weight, mode="fan_in", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.mode == "parallel":
            return saturate(x * (self._channel_gate(x) + self._spatial_gate(x)))  # (N, C, H, W)
        x = x * self._channel_gate(x)  # (N, C, H, W)
        return x * self._spatial_gate(x)  # (N, C, H, W)

    def _channel_gate(self, x: torch.Tensor) -> torch.Tensor:
        wide = wide_dtype(x)
        share = saturate(self.conv_q_right(x)).flatten(2).softmax(2, dtype=wide)  # (N, 1, HW)
        values = saturate(self.conv_v_right(x)).flatten(2).to(wide)  # (N, C/2, HW)
        context = (values @ share.transpose(1, 2)).to(x.dtype).unsqueeze(3)  # (N, C/2, 1, 1)
        return self.conv_up(saturate(context)).sigmoid().to(x.dtype)  # (N, C, 1, 1)

    def _spatial_gate(self, x: torch.Tensor) -> torch.Tensor:
        n, _, h, w = x.shape
        wide = wide_dtype(x)
        # the mean of a 1x1 convolution is the convolution of the mean
        query = saturate(self.conv_q_left(stable_mean(x, [2, 3]).to(x.dtype))).flatten(2).transpose(1, 2)  # (N, 1, C/2)
        values = saturate(self.conv_v_left(x)).flatten(2).to(wide)  # (N, C/2, HW)
        if self.mode == "parallel":
            score = (query.to(wide) @ values).softmax(2)  # (N, 1, HW)
        else:
            score = query.to(wide) @ values.softmax(2)  # (N, 1, HW)
        return score.sigmoid().to(x.dtype).reshape(n, 1, h, w)  # (N, 1, H, W)

    def zero_gate_(self) -> None:
        """Set the last parameters to zero, so that training starts with a gate of 1/2 * 1/2 everywhere.

        Raises:
            ValueError: in the mode ``parallel``, where the spatial gate is never the same at all sizes.
        """
        if self.mode == "parallel":
            raise ValueError("PolarizedSA with mode=parallel has no constant gate: its softmax depends on the size")
        zero_(self.conv_up[-1], self.conv_q_left)  # type: ignore[index]
