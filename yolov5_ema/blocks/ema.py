"""EMA: efficient multi-scale attention.

Paper: "Efficient Multi-Scale Attention Module with Cross-Spatial Learning", Ouyang et al., ICASSP 2023,
arXiv 2305.13563.
Reference implementation: https://github.com/YOLOonMe/EMA-attention-module

`yolov5_ema.kernels.ema` computes it. If ``conv1x1``, ``conv3x3`` and ``gn`` are the plain layers that the block built,
the kernels read their parameters directly. If one of them has a hook, another geometry or class, a parametrization or
a forward of its own, all three layers are called instead, in the paper's form.

Deviations, none of which changes a value that the reference gives:
- the number of groups must divide the channels, checked when the block is built (the reference fails in forward);
- statistics are summed in float32 for half-precision inputs, and float16 overflow saturates;
- one group on a 1 x 1 map of one image works (``nn.GroupNorm`` refuses a single value per channel);
- ``cross_spatial=False`` is the ablation EMA_no of the paper's Table 4, which the reference does not contain.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from yolov5_ema.blocks.common import AttentionBlock, check_bool, check_positive_int, nearest_divisors, zero_
from yolov5_ema.blocks.positions import Named, named_numbers
from yolov5_ema.blocks.registry import register_block
from yolov5_ema.kernels.dispatch import check_implementation
from yolov5_ema.kernels.ema import (
    EMAArguments,
    attended,
    ema,
    ema_exact,
    ema_reference,
    gated,
    means_of_sides,
)
from yolov5_ema.kernels.layers import is_norm_of_each_channel, is_same_size_convolution

# compared by identity, so that a 32 given by the caller is not taken for the default
_DEFAULT_GROUPS = Named(32)


@register_block(paper="Ouyang et al., ICASSP 2023, arXiv 2305.13563")
class EMA(AttentionBlock):
    r"""Efficient multi-scale attention (arXiv 2305.13563, section 3.2).

    For one group of one image, X of shape (k, H, W) with k = channels / groups::

        a, c = sigmoid(W1 mean_W(X) + b1), sigmoid(W1 mean_H(X) + b1)       the 1x1 branch's gates
        x1   = GroupNorm(X * a * c)                                         one norm group per channel
        x2   = W3 * X + b3                                                  the 3x3 branch
        map  = softmax(mean(x1)) . x2 + softmax(mean(x2)) . x1              cross-spatial learning, (1, H, W)
        out  = X * sigmoid(map)

    Without cross-spatial learning (EMA_no in Table 4) the paper keeps both branches and the parameter count, but
    gives no formula. The form chosen here leaves out only the ablated step, in which the pooled channels of each
    branch weight the channels of the other. The rest of section 3.2 stays: a sum of the branches, then a sigmoid. The
    map then has k channels instead of one::

        out = X * sigmoid(x1 + x2)

    Parameters: 10 k^2 + 4 k, shared by all groups. The layers' names are those of the reference: ``conv1x1``,
    ``conv3x3``, ``gn``.

    Args:
        channels: channels C of the feature map.
        groups: number of groups G that the channels are split into, 32 by default; it must divide ``channels``.
        cross_spatial: False for the ablation.
        factor: the reference's name for ``groups``; give one of the two.
        implementation: how the block is computed: auto, reference, exact, cpp or triton
            (`yolov5_ema.kernels.dispatch`). The result is the same. The ablation always uses the reference.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        (N, C, H, W) -> (N, C, H, W), any N, H, W >= 1, in the input's dtype.

    Raises:
        ValueError: an option of the wrong type or below 1, a number of groups that does not divide the channels,
            ``groups`` and ``factor`` with different values, or an unknown implementation.

    >>> import torch
    >>> block = EMA(64, groups=8)
    >>> block(torch.rand(2, 64, 20, 20)).shape
    torch.Size([2, 64, 20, 20])
    >>> sum(p.numel() for p in block.parameters())  # k = 8
    672
    """

    # for blocks in old checkpoints, from before this attribute existed
    implementation = "auto"

    shown_options = ("groups", "cross_spatial", "implementation")

    @named_numbers
    def __init__(
        self,
        channels: int,
        groups: int = _DEFAULT_GROUPS,
        cross_spatial: bool = True,
        factor: int | None = None,
        implementation: str = "auto",
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
        self.implementation = check_implementation("EMA", implementation)
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
        if not torch.jit.is_scripting():  # noqa: SIM102 - alone, or TorchScript compiles what follows
            if not self._layers_are_plain():
                return self._by_layers(x)  # (N, C, H, W)
        w1, b1, w3, b3 = self.conv1x1.weight, self.conv1x1.bias, self.conv3x3.weight, self.conv3x3.bias
        gamma, beta, eps = self.gn.weight, self.gn.bias, self.gn.eps
        assert b1 is not None and b3 is not None  # TorchScript takes a convolution's bias for optional
        arguments = EMAArguments(w1, b1, gamma, beta, w3, b3, self.groups, eps)
        if not self.cross_spatial:
            return ema_reference(x, arguments, False)  # (N, C, H, W)
        if torch.jit.is_scripting():
            return ema_exact(x, arguments)  # (N, C, H, W)
        return ema(x, arguments, self.implementation)  # (N, C, H, W)

    def _layers_are_plain(self) -> bool:
        """Whether the layers are plain, so that their parameters are all the kernels need."""
        norm = self.gn
        k = norm.num_channels if isinstance(norm, nn.GroupNorm) else 0
        return (
            is_norm_of_each_channel(norm, k)
            and is_same_size_convolution(self.conv1x1, (k, k), 1, bias=True)
            and is_same_size_convolution(self.conv3x3, (k, k), 3, bias=True)
        )

    def _by_layers(self, x: torch.Tensor) -> torch.Tensor:
        """The paper's form, computed by calling the layers."""
        n, c, h, w = x.shape
        gx = x.reshape(n * self.groups, c // self.groups, h, w)  # (NG, k, H, W)
        x1 = self.gn(gated(gx, self.conv1x1(means_of_sides(gx))))  # (NG, k, H, W)
        x2 = self.conv3x3(gx)  # (NG, k, H, W)
        return attended(gx, x1, x2, self.cross_spatial).reshape(x.shape)  # (N, C, H, W)

    def __prepare_scriptable__(self) -> nn.Module:
        """The module that TorchScript compiles: for layers that are not plain, a block that only calls them."""
        if self._layers_are_plain():
            return self
        twin = copy.copy(self)
        twin.__class__ = _EMAByLayers
        return twin

    def zero_gate_(self) -> None:
        """Set the last parameters to zero, so that training starts with a gate of 1/2 everywhere."""
        zero_(self.gn, self.conv3x3)


class _EMAByLayers(EMA):
    """The block that TorchScript compiles if the layers are not plain."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._by_layers(x)  # (N, C, H, W)

    def __prepare_scriptable__(self) -> nn.Module:
        return self
