"""EMA: efficient multi-scale attention.

Paper: "Efficient Multi-Scale Attention Module with Cross-Spatial Learning", Ouyang et al., ICASSP 2023,
arXiv 2305.13563.
Reference implementation: https://github.com/YOLOonMe/EMA-attention-module

Deviations, none of which changes a value the reference gives:
- the groups must divide the channels, checked when the block is built (the reference fails in forward);
- statistics are summed in float32 for half-precision inputs, and float16 overflow saturates;
- one group on a 1 x 1 map of one image works (``nn.GroupNorm`` refuses a single value per channel);
- ``cross_spatial=False`` is the ablation EMA_no of the paper's Table 4, which the reference doesn't publish.
"""

from __future__ import annotations

import torch
from torch import nn

from yolov5_ema.blocks.common import (
    AttentionBlock,
    check_bool,
    check_positive_int,
    nearest_divisors,
    saturate,
    stable_mean,
)
from yolov5_ema.blocks.registry import register_block


class _Default(int):
    """An integer that can be told apart, by identity, from the same one given by the caller."""


_DEFAULT_GROUPS = _Default(32)


@register_block(paper="Ouyang et al., ICASSP 2023, arXiv 2305.13563")
class EMA(AttentionBlock):
    r"""Efficient multi-scale attention (arXiv 2305.13563, section 3.2).

    For one group of one image, X of shape (k, H, W) with k = channels / groups::

        a, c = sigmoid(W1 mean_W(X) + b1), sigmoid(W1 mean_H(X) + b1)       the 1x1 branch's gates
        x1   = GroupNorm(X * a * c)                                         one norm group per channel
        x2   = W3 * X + b3                                                  the 3x3 branch
        map  = softmax(mean(x1)) . x2 + softmax(mean(x2)) . x1              cross-spatial learning, (1, H, W)
        out  = X * sigmoid(map)

    Without cross-spatial learning (EMA_no in Table 4) the paper keeps both branches, and the parameter count,
    but gives no formula. The reading here drops just the step that is ablated, the weighting of each branch's
    channels by the other's pooled ones, and keeps what section 3.2 does around it: the branches are
    aggregated by a sum, followed by a sigmoid. The map then has k channels instead of one::

        out = X * sigmoid(x1 + x2)

    Parameters: 10 k^2 + 4 k, shared by all groups. Names as in the reference: ``conv1x1``,
    ``conv3x3``, ``gn``.

    Args:
        channels: channels C of the feature map.
        groups: groups G the channels are split into; must divide ``channels``.
        cross_spatial: False for the ablation.
        factor: the reference's name for ``groups``; give one of the two.
        device, dtype: of the parameters.

    Shape:
        (N, C, H, W) -> (N, C, H, W), any N, H, W >= 1, in the input's dtype.

    Raises:
        ValueError: an option of the wrong type or below 1, groups that don't divide the channels, or
            ``groups`` and ``factor`` given with different values.

    >>> import torch
    >>> block = EMA(64, groups=8)
    >>> block(torch.rand(2, 64, 20, 20)).shape
    torch.Size([2, 64, 20, 20])
    >>> sum(p.numel() for p in block.parameters())  # k = 8
    672
    """

    def __init__(
        self,
        channels: int,
        groups: int = _DEFAULT_GROUPS,
        cross_spatial: bool = True,
        factor: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels = check_positive_int("EMA", "channels", channels)
        if factor is not None:
            check_positive_int("EMA", "factor", factor)
            if groups is not _DEFAULT_GROUPS and groups != factor:
                raise ValueError(
                    f"EMA: groups={groups} and factor={factor} are two names of one option; give one of them"
                )
            groups = factor
        self.groups = check_positive_int("EMA", "groups", groups)
        self.cross_spatial = check_bool("EMA", "cross_spatial", cross_spatial)
        if self.channels % self.groups:
            nearest = " or ".join(str(d) for d in nearest_divisors(self.channels, self.groups))
            raise ValueError(
                f"EMA: {self.channels} channels cannot be split into {self.groups} groups; "
                f"nearest groups that divide them: {nearest}"
            )
        k = self.channels // self.groups
        self.group_channels = k
        self.gn = nn.GroupNorm(k, k, device=device, dtype=dtype)
        self.conv1x1 = nn.Conv2d(k, k, kernel_size=1, device=device, dtype=dtype)
        self.conv3x3 = nn.Conv2d(k, k, kernel_size=3, padding=1, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        gx = x.reshape(n * self.groups, self.group_channels, h, w)  # (NG, k, H, W)

        x1 = self._branch_1x1(gx)  # (NG, k, H, W), float32 at least
        x2 = saturate(self.conv3x3(gx))  # (NG, k, H, W)

        if self.cross_spatial:
            p = stable_mean(x1, [2, 3]).flatten(2).transpose(1, 2).softmax(-1)  # (NG, 1, k)
            q = stable_mean(x2, [2, 3]).flatten(2).transpose(1, 2).softmax(-1)  # (NG, 1, k)
            from_3x3 = torch.matmul(p.to(x2.dtype), x2.flatten(2))  # (NG, 1, HW)
            from_1x1 = torch.matmul(q.to(x1.dtype), x1.flatten(2))  # (NG, 1, HW)
            attention = (from_3x3 + from_1x1).reshape(n * self.groups, 1, h, w)  # (NG, 1, H, W)
        else:
            attention = x1 + x2  # (NG, k, H, W)

        return (gx * attention.sigmoid().to(x.dtype)).reshape(n, c, h, w)  # (N, C, H, W)

    def _branch_1x1(self, gx: torch.Tensor) -> torch.Tensor:
        h = gx.shape[2]
        mean_w = stable_mean(gx, [3])  # (NG, k, H, 1)
        mean_h = stable_mean(gx, [2]).transpose(2, 3)  # (NG, k, W, 1)
        gates = self.conv1x1(torch.cat([mean_w, mean_h], dim=2).to(gx.dtype)).sigmoid()  # (NG, k, H+W, 1)
        y = gx * gates[:, :, :h] * gates[:, :, h:].transpose(2, 3)  # (NG, k, H, W)
        wide = torch.promote_types(y.dtype, torch.float32)
        return torch.group_norm(
            y.to(wide), self.group_channels, self.gn.weight.to(wide), self.gn.bias.to(wide), self.gn.eps
        )

    def extra_repr(self) -> str:
        return f"{self.channels}, groups={self.groups}, cross_spatial={self.cross_spatial}"
