"""GC: global context block.

Paper: "GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond", Cao et al., ICCV 2019 workshop,
arXiv 1904.11492.
Reference implementation: https://github.com/xvjiarui/GCNet (class ``ContextBlock``)

Deviations:
- too few channels for the LayerNorm are an error (of one value it gives the same whatever the image);
- float16 overflow saturates, and the softmax is computed in float32 for half-precision inputs.

As in the reference, the last convolution starts at zero, so a new block with ``fusion=add`` changes nothing. A public
copy leaves the softmax out, which makes the context grow with the size of the map.
"""

from __future__ import annotations

import torch
from torch import nn

from yolov5_ema.blocks.common import (
    AttentionBlock,
    Bottleneck,
    check_choice,
    check_positive_int,
    check_reduction,
    saturate,
    wide_dtype,
    zero_,
)
from yolov5_ema.blocks.positions import named_numbers
from yolov5_ema.blocks.registry import register_block


@register_block(paper="Cao et al., ICCV 2019 workshop, arXiv 1904.11492")
class GC(AttentionBlock):
    """Global context (arXiv 1904.11492, section 3.4, equation 5).

    The context is the mean of all pixels with weights from a softmax over the map. ``fusion=add``:
    ``out = X + W2 relu(LayerNorm(W1 context))``. ``fusion=mul``: ``out = X * sigmoid(W2 relu(LayerNorm(W1 context)))``.

    Parameters: C + 1 + 2 * C * h + 3 * h + C with h = C / reduction; 33,889 at 512 channels. The layers' names are
    those of the reference: ``conv_mask`` and ``channel_add_conv`` (``channel_mul_conv``).

    Args:
        channels: channels C of the feature map.
        reduction: the hidden channels are ``channels // reduction``, at least 2 (the reference's ``1 / ratio``).
        fusion: ``add`` or ``mul``.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        (N, C, H, W) -> (N, C, H, W), any N, H, W >= 1, in the input's dtype.

    Raises:
        ValueError: an option of the wrong type or below 1, a reduction that leaves fewer than 2 channels, or an unknown
            fusion.

    >>> import torch
    >>> GC(64)(torch.rand(2, 64, 20, 12)).shape
    torch.Size([2, 64, 20, 12])
    """

    shown_options = ("reduction", "fusion")

    @named_numbers
    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        fusion: str = "add",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        c = self.channels = check_positive_int("GC", "channels", channels)
        self.reduction = check_reduction("GC", c, reduction, least=2)
        self.fusion = check_choice("GC", "fusion", fusion, ("add", "mul"))
        hidden = c // self.reduction
        self.conv_mask = nn.Conv2d(c, 1, 1, device=device, dtype=dtype)
        nn.init.kaiming_normal_(self.conv_mask.weight, mode="fan_in", nonlinearity="relu")
        nn.init.zeros_(self.conv_mask.bias)  # type: ignore[arg-type]
        transform = Bottleneck(c, hidden, c, device=device, dtype=dtype)
        zero_(transform[-1])
        self.channel_add_conv = transform if self.fusion == "add" else None
        self.channel_mul_conv = transform if self.fusion == "mul" else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = wide_dtype(x)
        share = saturate(self.conv_mask(x)).flatten(2).softmax(2, dtype=wide)  # (N, 1, HW)
        context = (x.flatten(2).to(wide) @ share.transpose(1, 2)).to(x.dtype).unsqueeze(3)  # (N, C, 1, 1)
        if self.channel_add_conv is not None:
            x = saturate(x + self.channel_add_conv(context).to(x.dtype))  # (N, C, H, W)
        if self.channel_mul_conv is not None:
            x = x * self.channel_mul_conv(context).sigmoid().to(x.dtype)  # (N, C, H, W)
        return x

    def zero_gate_(self) -> None:
        """Set the last parameters to zero: the block changes nothing (``add``) or starts with a gate of 1/2."""
        for transform in (self.channel_add_conv, self.channel_mul_conv):
            if transform is not None:
                zero_(transform[-1])
