"""ParNet: the block of ParNet, with skip-squeeze-and-excitation (SSE).

Paper: "Non-deep Networks", Goyal et al., NeurIPS 2022, arXiv 2110.07641.
Reference implementation: https://github.com/imankgoyal/NonDeepNetworks (class ``RepVGGBlock`` with ``se_block``)

Deviations:
- the parameters have other names (the reference's are mapped when a state dict is loaded);
- a batch of one pixel in training mode works, see ParNet;
- means are summed in float32 for half-precision inputs, and float16 overflow saturates.

As in the reference, the SSE branch gates the output of its BatchNorm, and no convolution has a bias. The class
``ParNetAttention`` of other collections has biases and gates the input itself, so its state dicts do not load.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from yolov5_ema.blocks.common import AttentionBlock, BatchNorm, check_positive_int, saturate, stable_mean
from yolov5_ema.blocks.positions import named_numbers
from yolov5_ema.blocks.registry import register_block


@register_block(paper="Goyal et al., NeurIPS 2022, arXiv 2110.07641")
class ParNet(AttentionBlock):
    """The RepVGG-SSE block (arXiv 2110.07641, section 3.1, figure 2a).

    ``Y = BN(X); out = silu(BN(conv3x3(X)) + BN(conv1x1(X)) + Y * sigmoid(conv1x1(mean(Y))))``.

    It is no gate: the output is not the input times a factor, and ``--init identity`` cannot be used.

    In training mode a batch of one image with one pixel has no batch statistics (``nn.BatchNorm2d`` raises). The norms
    then use their running statistics and leave them unchanged.

    Parameters: 11 * C^2 + 6 * C; 2,886,656 at 512 channels. Loads the reference's ``rbr_identity``, ``rbr_dense``,
    ``rbr_1x1`` and ``se.cvsig.conv``.

    Args:
        channels: channels C of the feature map.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        (N, C, H, W) -> (N, C, H, W), any N, H, W >= 1, in the input's dtype.

    Raises:
        ValueError: channels that are not an integer or below 1.

    >>> import torch
    >>> ParNet(64)(torch.rand(2, 64, 20, 12)).shape
    torch.Size([2, 64, 20, 12])
    """

    reference_names: ClassVar[dict[str, str]] = {
        "rbr_identity": "identity.bn",
        "rbr_dense.conv": "dense",
        "rbr_dense.bn": "dense_norm.bn",
        "rbr_1x1.conv": "pointwise",
        "rbr_1x1.bn": "pointwise_norm.bn",
        "se.cvsig.conv": "excite",
    }

    @named_numbers
    def __init__(
        self,
        channels: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        c = self.channels = check_positive_int("ParNet", "channels", channels)
        self.identity = BatchNorm(c, device=device, dtype=dtype)
        self.excite = nn.Conv2d(c, c, 1, bias=False, device=device, dtype=dtype)
        self.dense = nn.Conv2d(c, c, 3, padding=1, bias=False, device=device, dtype=dtype)
        self.dense_norm = BatchNorm(c, device=device, dtype=dtype)
        self.pointwise = nn.Conv2d(c, c, 1, bias=False, device=device, dtype=dtype)
        self.pointwise_norm = BatchNorm(c, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.identity(x)  # (N, C, H, W)
        y = y * self.excite(stable_mean(y, [2, 3]).to(y.dtype)).sigmoid().to(y.dtype)  # (N, C, H, W)
        dense = self.dense_norm(saturate(self.dense(x)))  # (N, C, H, W)
        pointwise = self.pointwise_norm(saturate(self.pointwise(x)))  # (N, C, H, W)
        return F.silu(saturate(dense + pointwise + y)).to(x.dtype)  # (N, C, H, W)
