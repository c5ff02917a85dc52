"""SA: shuffle attention.

Paper: "SA-Net: Shuffle Attention for Deep Convolutional Neural Networks", Zhang and Yang, ICASSP 2021,
arXiv 2102.00240.
Reference implementation: https://github.com/wofmanaf/SA-Net

Deviations:
- the four raw parameters are in submodules, as ``weight`` and ``bias``: the optimizer of YOLOv5 v6.0 collects
  parameters by those names and would never train others (the reference's names are mapped when a state dict is
  loaded);
- too few channels for the groups is an error (the reference builds parameters of size zero);
- statistics are summed in float32 for half-precision inputs.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from yolov5_ema.blocks.common import AttentionBlock, check_positive_int, stable_mean, wide_dtype, zero_
from yolov5_ema.blocks.positions import named_numbers
from yolov5_ema.blocks.registry import register_block
from yolov5_ema.kernels.layers import is_untouched
from yolov5_ema.kernels.norms import sa, takes_sa


class _Affine(nn.Module):
    """``weight * x + bias`` for each channel; it starts as the constant 1, as in the reference."""

    def __init__(self, channels: int, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.channels = channels
        self.weight = nn.Parameter(torch.zeros(1, channels, 1, 1, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.ones(1, channels, 1, 1, device=device, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x + self.bias  # the shape of x

    def extra_repr(self) -> str:
        return f"{self.channels}"


@register_block(paper="Zhang and Yang, ICASSP 2021, arXiv 2102.00240")
class SA(AttentionBlock):
    """Shuffle attention (arXiv 2102.00240, section 3, equations 1 to 3).

    Each group is split into two halves. The first half gets one gate for each channel, from the channel's mean. The
    second half gets one gate for each value, from its GroupNorm. Both gates have a learned scale and shift. At the
    end all channels are shuffled across the two halves.

    Parameters: 3 * channels / groups, shared by all groups; 24 at 512 channels. Loads the reference's
    ``cweight``, ``cbias``, ``sweight``, ``sbias`` and ``gn``.

    Args:
        channels: channels C of the feature map, a multiple of ``2 * groups``.
        groups: number of groups G that the channels are split into.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        (N, C, H, W) -> (N, C, H, W), any N, H, W >= 1, in the input's dtype.

    Raises:
        ValueError: an option that is not an integer or below 1, or channels that are not a multiple of
            ``2 * groups``.

    >>> import torch
    >>> SA(64, groups=8)(torch.rand(2, 64, 20, 12)).shape
    torch.Size([2, 64, 20, 12])
    """

    reference_names: ClassVar[dict[str, str]] = {
        "cweight": "channel.weight",
        "cbias": "channel.bias",
        "sweight": "spatial.weight",
        "sbias": "spatial.bias",
    }

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
        self.channels = check_positive_int("SA", "channels", channels)
        self.groups = check_positive_int("SA", "groups", groups)
        if self.channels % (2 * self.groups):
            fitting = [g for g in range(1, self.groups) if self.channels % (2 * g) == 0]
            advice = (
                f"the largest smaller one that fits is {fitting[-1]}" if fitting else "use an even number of channels"
            )
            raise ValueError(
                f"SA: {self.channels} channels cannot be split into {self.groups} groups of two halves: "
                f"they must be a multiple of 2 * {self.groups} = {2 * self.groups}; {advice}"
            )
        k = self.channels // (2 * self.groups)
        self.half_channels = k
        self.channel = _Affine(k, device, dtype)
        self.spatial = _Affine(k, device, dtype)
        self.gn = nn.GroupNorm(k, k, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.jit.is_scripting():  # noqa: SIM102 - alone, or TorchScript compiles what follows
            if self._takes_kernel(x):
                slope, offset, gn = self.spatial.weight.flatten(), self.spatial.bias.flatten(), self.gn
                u = torch.cat([self.channel.weight.flatten(), slope * gn.weight])  # (2k,)
                v = torch.cat([self.channel.bias.flatten(), slope * gn.bias + offset])  # (2k,)
                return sa(x, u, v, self.groups, gn.eps)  # (N, C, H, W)
        n, c, h, w = x.shape
        k = self.half_channels
        groups = x.reshape(n * self.groups, 2 * k, h, w)  # (NG, 2k, H, W)
        x_c, x_s = groups[:, :k], groups[:, k:]  # (NG, k, H, W) each

        gate_c = self.channel(stable_mean(x_c, [2, 3])).sigmoid()  # (NG, k, 1, 1)
        wide = wide_dtype(x)
        normed = torch.group_norm(
            x_s.to(wide), k, self.gn.weight.to(wide), self.gn.bias.to(wide), self.gn.eps
        )  # (NG, k, H, W)
        gate_s = self.spatial(normed).sigmoid()  # (NG, k, H, W)

        out = torch.cat([x_c * gate_c.to(x.dtype), x_s * gate_s.to(x.dtype)], dim=1)  # (NG, 2k, H, W)
        out = out.reshape(n, 2, c // 2, h, w)  # channels as two rows of C/2 ...
        return out.transpose(1, 2).reshape(n, c, h, w)  # ... read by columns: (N, C, H, W)

    @torch.jit.unused
    def _takes_kernel(self, x: torch.Tensor) -> bool:
        if not (is_untouched(self.channel, _Affine) and is_untouched(self.spatial, _Affine)):
            return False
        parameters = [*self.channel.parameters(), *self.spatial.parameters(), self.gn.weight, self.gn.bias]
        return takes_sa(x, parameters, self.channels)

    def zero_gate_(self) -> None:
        """Set the last parameters to zero, so that training starts with a gate of 1/2 everywhere."""
        zero_(self.channel, self.spatial)
