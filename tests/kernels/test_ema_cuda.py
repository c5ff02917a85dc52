"""The block on a GPU in a training. Skipped without a GPU."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import randomise

from yolov5_ema.blocks import EMA
from yolov5_ema.kernels import dispatch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

SHAPES = [(8, 512, 20, 20), (2, 640, 40, 40), (1, 320, 160, 160), (2, 64, 7, 9), (1, 64, 1, 5)]


def gradients(block, x):
    generator = torch.Generator().manual_seed(1)
    towards = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
    return [block(x), *torch.autograd.grad(block(x), [x, *block.parameters()], towards)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["auto", "exact"])
def test_values_and_gradients(shape, name):
    """Compared with the reference in float64 on the CPU."""
    block = randomise(EMA(shape[1]))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    truth = copy.deepcopy(block).double()
    with dispatch.forced("reference"):
        expected = gradients(truth, x.detach().double().requires_grad_())
    with dispatch.forced(name):
        found = gradients(block.cuda(), x.detach().cuda().requires_grad_())
    assert (found[0].double().cpu() - expected[0]).abs().max() < 4e-6
    for a, b in zip(found[1:], expected[1:]):
        assert (a.double().cpu() - b).abs().max() <= 1e-4 * b.abs().max().clamp(min=1e-3)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_amp_training_gives_no_nan(layout, dtype):
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3), EMA(64), torch.nn.Conv2d(64, 4, 1)).cuda()
    net = net.to(memory_format=layout)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
    x = 100 * torch.randn(4, 3, 66, 66, device="cuda").to(memory_format=layout)
    for _ in range(20):
        with torch.autocast("cuda", dtype=dtype):
            loss = net(x).float().square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert loss.isfinite()
    assert all(p.isfinite().all() for p in net.parameters())


def test_repeats_under_deterministic_algorithms():
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        block = randomise(EMA(320)).cuda()
        x = torch.randn(2, 320, 80, 80, device="cuda", requires_grad=True)
        first, second = gradients(block, x), gradients(block, x)
    finally:
        torch.use_deterministic_algorithms(before)
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_torch_compile_takes_the_whole_block():
    torch.compiler.reset()
    block = randomise(EMA(64)).cuda()
    x = torch.randn(2, 64, 9, 7, device="cuda", requires_grad=True)
    compiled = torch.compile(block, fullgraph=True)
    torch.testing.assert_close(compiled(x), block(x))
    found = torch.autograd.grad(compiled(x).square().sum(), [x, *block.parameters()])
    expected = torch.autograd.grad(block(x).square().sum(), [x, *block.parameters()])
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b)


def test_kernels_are_well_formed_operators():
    block = randomise(EMA(64)).cuda()
    x = torch.randn(2, 64, 9, 7, device="cuda")
    convs = (block.conv1x1, block.conv3x3)
    values = (convs[0].weight, convs[0].bias, block.gn.weight, block.gn.bias, convs[1].weight, convs[1].bias)
    arguments = (*(p.detach() for p in values), 32, 1e-5)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.yolov5_ema.ema_forward, (x, *arguments), test_utils=checks)
    _, stats = torch.ops.yolov5_ema.ema_forward(x, *arguments)
    torch.library.opcheck(torch.ops.yolov5_ema.ema_backward, (x, x, stats, *arguments), test_utils=checks)


def test_a_detector_moves_from_one_device_to_the_other():
    """A model trained on one device gives the same predictions on the other."""
    block = randomise(EMA(64))
    x = torch.randn(2, 64, 9, 7)
    on_cpu = block(x)
    torch.testing.assert_close(copy.deepcopy(block).cuda()(x.cuda()).cpu(), on_cpu, atol=4e-6, rtol=1e-5)
