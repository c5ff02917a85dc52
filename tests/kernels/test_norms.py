"""NAM and SA by their C++ kernels: what test_means.py does not cover."""

from __future__ import annotations

import pytest
import torch
from forms import assert_same, computed, noise, randomised

from yolov5_ema.blocks import NAM, SA
from yolov5_ema.kernels import dispatch, native, norms
from yolov5_ema.kernels.memory import ArgumentsError

pytestmark = pytest.mark.skipif(native.library().handle is None, reason=native.library().reason)


@pytest.mark.parametrize("momentum", [0.3, None])
def test_running_statistics_of_nam(momentum):
    block, x, grad = randomised(NAM(8, dtype=torch.float64)), noise(2, 8, 6, 5), noise(2, 8, 6, 5, seed=2)
    block.bn.momentum = momentum
    for _ in range(2):
        expected, found = (computed(block, form, x, grad) for form in ("reference", "cpp"))
        assert found["bn.num_batches_tracked"] == block.bn.num_batches_tracked + block.bn.training
        assert_same(found, expected, 1e-9)
        block.bn.eval()  # frozen, while the block trains


def test_second_pass_of_nam_keeps_the_statistics_of_the_first():
    """The running statistics may change between forward and backward."""
    block, x = randomised(NAM(8), training=False), noise(2, 8, 6, 5, dtype=torch.float32).requires_grad_()
    with dispatch.forced("cpp"):
        (expected,) = torch.autograd.grad(block(x).sum(), x)
        out = block(x)
    block.bn.running_mean.add_(1)
    assert torch.equal(torch.autograd.grad(out.sum(), x)[0], expected)


def test_sa_refuses_what_it_cannot_split():
    with pytest.raises(RuntimeError):
        SA(8, groups=2)(torch.rand(2, 12, 3, 3))


def test_what_does_not_fit_is_refused():
    x, row = torch.rand(2, 8, 3, 3), torch.rand(8)
    with pytest.raises(ArgumentsError, match="expected a contiguous array"):
        norms._nam(x, row, row[:7], 1e-5)
    with pytest.raises(ArgumentsError, match="expected a contiguous array"):
        norms._sa_backward(x, x, torch.rand(2, 2, 7), row, row, 2, 1e-5)
    with pytest.raises(ArgumentsError, match="cannot be split"):
        norms._sa(x, row, row, 3, 1e-5)
