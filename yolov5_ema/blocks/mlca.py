"""MLCA: mixed local channel attention.

Paper: "Mixed local channel attention for object detection", Wan et al., Engineering Applications of Artificial
Intelligence 123, 2023, doi 10.1016/j.engappai.2023.106442 (no arXiv version).
Reference implementation: https://github.com/wandahangFY/MLCA

Deviations:
- adaptive pooling is written as products with small matrices, since its backward raises on CUDA under deterministic
  algorithms and several exporters do not support it;
- means are summed in float32 for half-precision inputs.

Two properties of the reference are kept. The convolution of the local branch runs over all channels of the first
patch, then of the second, and so on, so at the borders it mixes the last channels of a patch with the first ones of
the next. And the global mean is that of the patches; where patches overlap (sizes that ``local_size`` does not divide),
some pixels count twice.
"""

from __future__ import annotations

import torch
from torch import nn

from yolov5_ema.blocks.common import (
    AttentionBlock,
    check_number,
    check_odd_kernel,
    check_positive_int,
    is_symbolic,
    saturate,
    wide_dtype,
    zero_,
)
from yolov5_ema.blocks.eca import eca_kernel_size
from yolov5_ema.blocks.positions import named_numbers
from yolov5_ema.blocks.registry import register_block


def _patches(x: torch.Tensor, parts: int, of: int) -> torch.Tensor:
    """The matrix (parts, of) that averages ``of`` values in ``parts`` patches as adaptive pooling does; wide dtype."""
    # not one condition with the next: TorchScript would compile what follows
    if not torch.jit.is_scripting():  # noqa: SIM102
        if is_symbolic(x):
            return x.tracer.create_proxy("call_function", _patches, (x, parts, of), {})  # type: ignore[attr-defined]
    part = torch.arange(parts, device=x.device)[:, None]  # (parts, 1)
    value = torch.arange(of, device=x.device)  # (of,)
    # a part and a value overlap, both drawn as intervals of the same length, in units of 1 / (parts * of)
    starts, ends = parts * (value + 1) > part * of, parts * value < (part + 1) * of  # (parts, of)
    # a product and a norm, not "and" and a sum, which torch's older ONNX exporter does not reduce to a constant
    share = starts.to(wide_dtype(x)) * ends.to(wide_dtype(x))  # (parts, of)
    return share / torch.linalg.vector_norm(share, 1.0, [1], True)


@register_block(paper="Wan et al., EAAI 2023, doi 10.1016/j.engappai.2023.106442")
class MLCA(AttentionBlock):
    """Mixed local channel attention (EAAI 2023, doi 10.1016/j.engappai.2023.106442; no arXiv version).

    The map is averaged in ``local_size`` x ``local_size`` patches. A 1-D convolution along the channels gives a gate
    for each channel of each patch, another one a gate for each channel of the whole map. Their weighted mean is spread
    over the map again: ``out = X * ((1 - local_weight) * global + local_weight * local)``.

    Parameters: 2 * kernel_size, so 10 at 512 channels. The layers' names are those of the reference: ``conv`` and
    ``conv_local``.

    Args:
        channels: channels C of the feature map.
        kernel_size: odd number of neighbouring channels; None for ECA's rule, as in the reference.
        local_size: number of patches along H and along W.
        local_weight: share of the local gate, from 0 to 1.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        (N, C, H, W) -> (N, C, H, W), any N, H, W >= 1, in the input's dtype.

    Raises:
        ValueError: an option of the wrong type or out of range, or an even kernel size.

    >>> import torch
    >>> MLCA(64)(torch.rand(2, 64, 20, 12)).shape
    torch.Size([2, 64, 20, 12])
    """

    shown_options = ("kernel_size", "local_size", "local_weight")

    @named_numbers
    def __init__(
        self,
        channels: int,
        kernel_size: int | None = None,
        local_size: int = 5,
        local_weight: float = 0.5,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels = check_positive_int("MLCA", "channels", channels)
        size = eca_kernel_size(self.channels) if kernel_size is None else kernel_size
        k = self.kernel_size = check_odd_kernel("MLCA", size)
        self.local_size = check_positive_int("MLCA", "local_size", local_size)
        self.local_weight = check_number("MLCA", "local_weight", local_weight, 0, 1)
        self.conv = nn.Conv1d(1, 1, k, padding=k // 2, bias=False, device=device, dtype=dtype)
        self.conv_local = nn.Conv1d(1, 1, k, padding=k // 2, bias=False, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        size = self.local_size
        patches = (
            _patches(x, size, h) @ x.to(wide_dtype(x)) @ _patches(x, size, w).transpose(0, 1)
        )  # (N, C, size, size)
        along = patches.flatten(2).transpose(1, 2).reshape(n, 1, size * size * c)  # (N, 1, size^2 * C)
        local = saturate(self.conv_local(along.to(x.dtype))).sigmoid()  # (N, 1, size^2 * C)
        local = local.reshape(n, size * size, c).transpose(1, 2).reshape(n, c, size, size)  # (N, C, size, size)
        mean = patches.mean([2, 3]).unsqueeze(1)  # (N, 1, C)
        whole = saturate(self.conv(mean.to(x.dtype))).sigmoid().reshape(n, c, 1, 1)  # (N, C, 1, 1)
        mixed = whole * (1 - self.local_weight) + local * self.local_weight  # (N, C, size, size)
        spread = _patches(x, h, size) @ mixed.to(wide_dtype(x)) @ _patches(x, w, size).transpose(0, 1)  # (N, C, H, W)
        return x * spread.to(x.dtype)  # (N, C, H, W)

    def zero_gate_(self) -> None:
        """Set the parameters to zero, so that training starts with a gate of 1/2 everywhere."""
        zero_(self.conv, self.conv_local)
