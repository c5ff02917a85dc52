"""NonLocal: non-local block, embedded Gaussian.

Paper: "Non-local Neural Networks", Wang et al., CVPR 2018, arXiv 1711.07971.
Reference implementations: https://github.com/AlexHex7/Non-local_pytorch (class ``NONLocalBlock2D``), whose state dicts
load; the authors' own, https://github.com/facebookresearch/video-nonlocal-net, is for Caffe2

Deviations:
- a map with one row or column works (the reference's pooling leaves nothing of it);
- a batch of one pixel in training mode works, see NonLocal;
- the parameters have other names (the reference's are mapped when a state dict is loaded);
- float16 overflow saturates, and the softmax is computed in float32 for half-precision inputs.

The paper and the authors' code differ. The paper, and with it the PyTorch reference, is followed: the softmax is not
scaled (the code divides by the root of the hidden channels), and the max pooling comes after the convolutions phi and g
(in the code before them). As in both, the last BatchNorm starts at zero, so a new block changes nothing.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from yolov5_ema.blocks.common import (
    AttentionBlock,
    BatchNorm,
    check_bool,
    check_positive_int,
    check_reduction,
    saturate,
    wide_dtype,
    zero_,
)
from yolov5_ema.blocks.positions import named_numbers
from yolov5_ema.blocks.registry import register_block


@register_block(paper="Wang et al., CVPR 2018, arXiv 1711.07971")
class NonLocal(AttentionBlock):
    """Non-local block, embedded Gaussian (arXiv 1711.07971, section 3.3, equation 6 and figure 2).

    Every pixel gets a mean of all others, weighted by their likeness:
    ``out = X + BN(W(softmax(theta(X)^T phi(X)) g(X)))``. With ``subsample``, phi and g are halved in size by a max
    pooling, which leaves a quarter of the pairs. Memory and time grow with the square of the number of pixels: at
    80 x 80 pixels there are 6400 * 1600 weights for each image.

    In training mode a batch of one image with one pixel has no batch statistics (``nn.BatchNorm2d`` raises). The norm
    then uses its running statistics and leaves them unchanged.

    Parameters: 4 * C * h + 3 * h + 3 * C with h = C / reduction; 526,592 at 512 channels. Loads the reference's
    ``theta``, ``phi``, ``g`` and ``W``.

    Args:
        channels: channels C of the feature map.
        reduction: the hidden channels are ``channels // reduction``.
        subsample: halve H and W of phi and g.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        (N, C, H, W) -> (N, C, H, W), any N, H, W >= 1, in the input's dtype.

    Raises:
        ValueError: an option of the wrong type or below 1, or a reduction larger than the number of channels.

    >>> import torch
    >>> NonLocal(64)(torch.rand(2, 64, 20, 12)).shape
    torch.Size([2, 64, 20, 12])
    """

    reference_names: ClassVar[dict[str, str]] = {"g.0": "g", "phi.0": "phi", "W.0": "out", "W.1": "norm.bn"}

    shown_options = ("reduction", "subsample")

    @named_numbers
    def __init__(
        self,
        channels: int,
        reduction: int = 2,
        subsample: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        c = self.channels = check_positive_int("NonLocal", "channels", channels)
        self.reduction = check_reduction("NonLocal", c, reduction)
        self.subsample = check_bool("NonLocal", "subsample", subsample)
        hidden = self.hidden = c // self.reduction
        self.theta = nn.Conv2d(c, hidden, 1, device=device, dtype=dtype)
        self.phi = nn.Conv2d(c, hidden, 1, device=device, dtype=dtype)
        self.g = nn.Conv2d(c, hidden, 1, device=device, dtype=dtype)
        self.out = nn.Conv2d(hidden, c, 1, device=device, dtype=dtype)
        self.norm = BatchNorm(c, device=device, dtype=dtype)
        zero_(self.norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, _, h, w = x.shape
        wide = wide_dtype(x)
        theta = saturate(self.theta(x)).flatten(2).to(wide)  # (N, hidden, HW)
        phi = self._fewer(saturate(self.phi(x))).flatten(2).to(wide)  # (N, hidden, P)
        g = self._fewer(saturate(self.g(x))).flatten(2).to(wide)  # (N, hidden, P)
        share = (theta.transpose(1, 2) @ phi).to(wide).softmax(2)  # (N, HW, P)
        y = (g @ share.transpose(1, 2)).to(x.dtype).reshape(n, self.hidden, h, w)  # (N, hidden, H, W)
        return saturate(x + self.norm(saturate(self.out(saturate(y)))).to(x.dtype))  # (N, C, H, W)

    def _fewer(self, x: torch.Tensor) -> torch.Tensor:
        """The maxima of 2x2 pixels; an odd last row or column is left out, unless it is the only one."""
        if not self.subsample:
            return x
        h, w = x.shape[2], x.shape[3]
        # padded, not ceil_mode: OpenVINO refuses a window that is larger than the map
        pooled = F.max_pool2d(F.pad(x, [0, 1, 0, 1], value=-math.inf), 2, 2)
        # arithmetic, not a condition: a traced graph would keep its result for the example's size
        return pooled[:, :, : h // 2 + 1 // h, : w // 2 + 1 // w]

    def zero_gate_(self) -> None:
        """Set the norm to zero, as it is in a new block, so that training starts with an unchanged map."""
        zero_(self.norm)
