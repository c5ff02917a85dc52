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

The options ``norm_groups``, ``residual`` and ``depthwise`` are beyond the paper: each computes another function, and by
default none of them is used.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from yolov5_ema.blocks.common import AttentionBlock, check_bool, check_positive_int, nearest_divisors, saturate, zero_
from yolov5_ema.blocks.positions import Named, named_numbers
from yolov5_ema.blocks.registry import register_block
from yolov5_ema.kernels.dispatch import check_implementation
from yolov5_ema.kernels.ema import (
    EMAArguments,
    EMAVariant,
    attended,
    ema,
    ema_exact,
    ema_reference,
    gated,
    means_of_sides,
)
from yolov5_ema.kernels.layers import is_group_norm, is_same_size_convolution

# compared by identity, so that a 32 given by the caller is not taken for the default
_DEFAULT_GROUPS = Named(32)


class _Gate(nn.Module):
    """A map plus another one times a number, which is zero at first."""

    def __init__(self, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        super().__init__()
        # YOLOv5 v6.0 trains only what is called weight or bias, and biases with a higher rate at first
        self.weight = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))

    def forward(self, x: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
        # in one pass over the maps
        return saturate(torch.addcmul(x, self.weight.to(x.dtype), added))  # the shape of x


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

    Three options go beyond the paper (docs/exact-ema.md has the proofs). The mean of a channel that is normalized by
    itself is the norm's bias, so ``softmax(mean(x1))`` is ``softmax(gn.bias)`` for every image. With ``norm_groups=1``,
    GroupNorm normalizes the k channels of a group together, and this weight depends on the image. ``depthwise=True``
    gives each channel a 3x3 kernel of its own. ``residual=True`` adds the block's output to its input::

        out = X + gate.weight * X * sigmoid(map)

    ``gate.weight`` is one number that starts at 0 (ReZero, arXiv 2003.04887), so at first the output is the input.

    Parameters: 10 k^2 + 4 k, shared by all groups; k^2 + 13 k with ``depthwise``; one more with ``residual``. The
    layers' names are those of the reference: ``conv1x1``, ``conv3x3``, ``gn``.

    Args:
        channels: channels C of the feature map.
        groups: number of groups G that the channels are split into, 32 by default; it must divide ``channels``.
        cross_spatial: False for the ablation.
        factor: the reference's name for ``groups``; give one of the two.
        implementation: how the block is computed: auto, reference, exact, cpp or triton
            (`yolov5_ema.kernels.dispatch`). The result is the same. The ablation always uses the reference.
        norm_groups: number of groups of the GroupNorm, a divisor of k; None, as published, is k.
        residual: True adds the input.
        depthwise: True for a depthwise 3x3 convolution.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        (N, C, H, W) -> (N, C, H, W), any N, H, W >= 1, in the input's dtype.

    Raises:
        ValueError: an option of the wrong type or below 1, a number of groups that does not divide the channels,
            ``norm_groups`` that do not divide k, ``groups`` and ``factor`` with different values, or an unknown
            implementation.

    >>> import torch
    >>> block = EMA(64, groups=8)
    >>> block(torch.rand(2, 64, 20, 20)).shape
    torch.Size([2, 64, 20, 20])
    >>> sum(p.numel() for p in block.parameters())  # k = 8
    672
    """

    # for blocks in old checkpoints, from before these attributes existed
    implementation = "auto"
    norm_groups: int | None = None
    residual = False
    depthwise = False
    # TorchScript finds them in the class too, and leaves out the gate of a block that has none
    __constants__ = ("norm_groups", "residual", "depthwise")

    shown_options = ("groups", "cross_spatial", "implementation", "norm_groups", "residual", "depthwise")

    @named_numbers
    def __init__(
        self,
        channels: int,
        groups: int = _DEFAULT_GROUPS,
        cross_spatial: bool = True,
        factor: int | None = None,
        implementation: str = "auto",
        norm_groups: int | None = None,
        residual: bool = False,
        depthwise: bool = False,
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
        self.residual = check_bool("EMA", "residual", residual)
        self.depthwise = check_bool("EMA", "depthwise", depthwise)
        if self.channels % self.groups:
            nearest = " or ".join(str(d) for d in nearest_divisors(self.channels, self.groups))
            raise ValueError(
                f"EMA: {self.channels} channels cannot be split into {self.groups} groups; "
                f"nearest groups that divide them: {nearest}"
            )
        k = self.channels // self.groups
        self.group_channels = k
        self.norm_groups = _check_norm_groups(norm_groups, k)
        self.gn = nn.GroupNorm(self.norm_groups or k, k, device=device, dtype=dtype)
        self.conv1x1 = nn.Conv2d(k, k, kernel_size=1, device=device, dtype=dtype)
        groups = k if self.depthwise else 1
        self.conv3x3 = nn.Conv2d(k, k, kernel_size=3, padding=1, groups=groups, device=device, dtype=dtype)
        if self.residual:
            self.gate = _Gate(device, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self._attention(x)  # (N, C, H, W)
        if self.residual:
            return self.gate(x, out)  # (N, C, H, W)
        return out

    def _attention(self, x: torch.Tensor) -> torch.Tensor:
        """The block's output without its input."""
        if not torch.jit.is_scripting():  # noqa: SIM102 - alone, or TorchScript compiles what follows
            if not self._layers_are_plain():
                return self._by_layers(x)  # (N, C, H, W)
        w1, b1, w3, b3 = self.conv1x1.weight, self.conv1x1.bias, self.conv3x3.weight, self.conv3x3.bias
        gamma, beta, eps = self.gn.weight, self.gn.bias, self.gn.eps
        assert b1 is not None and b3 is not None  # TorchScript takes a convolution's bias for optional
        arguments = EMAArguments(w1, b1, gamma, beta, w3, b3, self.groups, eps)
        variant = EMAVariant(self.cross_spatial, self.norm_groups, self.depthwise)
        if not self.cross_spatial:
            return ema_reference(x, arguments, variant)  # (N, C, H, W)
        if torch.jit.is_scripting():
            return ema_exact(x, arguments, variant)  # (N, C, H, W)
        return ema(x, arguments, self.implementation, variant)  # (N, C, H, W)

    def _layers_are_plain(self) -> bool:
        """Whether the layers are plain, so that their parameters are all the kernels need."""
        norm = self.gn
        k = norm.num_channels if isinstance(norm, nn.GroupNorm) else 0
        return (
            is_group_norm(norm, self.norm_groups or k, k)
            and is_same_size_convolution(self.conv1x1, (k, k), 1, bias=True)
            and is_same_size_convolution(self.conv3x3, (k, k), 3, bias=True, groups=k if self.depthwise else 1)
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
        """Set the last parameters to zero, so that training starts with a gate of 1/2 everywhere.

        With ``residual`` it starts with an unchanged map instead, as a new block does.
        """
        if self.residual:
            zero_(self.gate)
        else:
            zero_(self.gn, self.conv3x3)


def _check_norm_groups(value: object, k: int) -> int | None:
    """``value`` if it is a divisor of k; None for k itself, which is the published norm."""
    if value is None:
        return None
    found = check_positive_int("EMA", "norm_groups", value)
    if k % found:
        nearest = " or ".join(str(d) for d in nearest_divisors(k, found))
        raise ValueError(f"EMA: norm_groups {found} does not divide the {k} channels of a group; nearest: {nearest}")
    return None if found == k else found


class _EMAByLayers(EMA):
    """The block that TorchScript compiles if the layers are not plain."""

    def _attention(self, x: torch.Tensor) -> torch.Tensor:
        return self._by_layers(x)  # (N, C, H, W)

    def __prepare_scriptable__(self) -> nn.Module:
        return self
