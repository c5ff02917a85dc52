"""No block uses an operation that raises on CUDA when YOLOv5 (v6.2 and later) asks for deterministic algorithms.

This is checked on the CPU: autograd calls the same operations on CUDA in all forms without a kernel of ours.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from yolov5_ema.blocks import create_block, get_block, list_blocks

# The operations that raise on CUDA according to the documentation of torch.use_deterministic_algorithms, in any
# names that the dispatcher knows.
RAISES_ON_CUDA = {
    *("avg_pool3d_backward", "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward"),
    *("adaptive_max_pool2d_backward", "adaptive_max_pool3d_backward", "max_pool3d_with_indices_backward"),
    *("fractional_max_pool2d_backward", "fractional_max_pool3d_backward", "max_unpool2d", "max_unpool3d"),
    *("upsample_linear1d_backward", "upsample_bilinear2d_backward", "upsample_bicubic2d_backward"),
    *("upsample_trilinear3d_backward", "_upsample_bilinear2d_aa_backward", "_upsample_bicubic2d_aa_backward"),
    *("reflection_pad1d_backward", "reflection_pad2d_backward", "reflection_pad3d_backward"),
    *("replication_pad1d_backward", "replication_pad2d_backward", "replication_pad3d_backward"),
    *("nll_loss_forward", "nll_loss2d_forward", "_ctc_loss_backward", "_embedding_bag", "put", "put_"),
    *("histc", "bincount", "median", "nanmedian", "kthvalue", "scatter_reduce", "scatter_reduce_"),
    *("grid_sampler_2d_backward", "grid_sampler_3d_backward", "cumsum"),
}

OPTIONS = {
    "EMA": [{}, {"cross_spatial": False}, {"groups": 8}, {"norm_groups": 1}, {"residual": True, "depthwise": True}],
    "CA": [{}, {"reduction": 4}],
    "CBAM": [{}, {"kernel_size": 3}],
    "SA": [{"groups": 8}],
    "SE": [{}, {"bias": True}],
    "Triplet": [{}, {"spatial": False}],
    "PolarizedSA": [{}, {"mode": "parallel"}],
    "NonLocal": [{}, {"subsample": False}],
}


class Called(TorchDispatchMode):
    """The names of the operations that were called in forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def called(module: Callable[[torch.Tensor], torch.Tensor]) -> set[str]:
    x = torch.randn(2, 64, 7, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with Called() as seen:
        module(x).square().sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()
    return seen.names


def _cases() -> list[tuple[str, dict[str, object]]]:
    cases = []
    for name in list_blocks():
        has_forms = "implementation" in inspect.signature(get_block(name)).parameters
        for options in OPTIONS.get(name, [{}]):
            for form in ("reference", "exact") if has_forms else (None,):
                cases.append((name, {**options, **({"implementation": form} if form else {})}))
    return cases


@pytest.mark.parametrize(("name", "options"), _cases(), ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_no_block_uses_what_raises(name, options, training):
    names = called(create_block(name, 64, **options).train(training))
    assert "mul" in names  # operations were recorded: every block multiplies its input by a gate
    assert not names & RAISES_ON_CUDA


@pytest.mark.parametrize(
    "module",
    [nn.AdaptiveAvgPool2d((None, 1)), nn.AdaptiveMaxPool2d(2), nn.Upsample(scale_factor=2, mode="bilinear")],
    ids=lambda module: type(module).__name__,
)
def test_what_raises_would_be_seen(module):
    assert called(module) & RAISES_ON_CUDA
