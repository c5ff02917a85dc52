"""The block on a GPU in a training, and its kernels' proof there. Skipped without a GPU."""

from __future__ import annotations

import copy

import pytest
import torch
from cases.native import runs_a_block_on_a_gpu
from conftest import randomise
from fresh_process import run_fresh

from yolov5_ema.blocks import EMA
from yolov5_ema.kernels import dispatch, proof
from yolov5_ema.settings import VARIABLES

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


# -------------------------------------------------------------------------------------------- kernels prove themselves


@pytest.fixture
def unproved(monkeypatch, tmp_path):
    """As in a process that has not used a kernel, on a machine where none was used."""
    monkeypatch.delenv(VARIABLES["implementation"], raising=False)
    monkeypatch.setenv(VARIABLES["cache"], str(tmp_path / "cache"))
    for name in ("_faults", "_warned", "_required"):
        monkeypatch.setattr(proof, name, type(getattr(proof, name))())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_kernels_are_right(dtype, unproved):
    assert dispatch.choose("EMA", "auto", "cuda", dtype).name == "triton"
    assert list(proof._faults.values()) == ["", ""]


@pytest.mark.parametrize("kind", ["forward", "backward"])
@pytest.mark.parametrize("fault", ["wrong", "raises at once", "raises later"])
def test_a_fault_is_replaced_by_plain_operations(kind, fault, unproved, monkeypatch):
    from yolov5_ema.kernels.ema import triton

    right, block = getattr(triton, kind), randomise(EMA(64)).cuda()
    x = torch.randn(2, 64, 9, 7, device="cuda", requires_grad=True)
    with dispatch.forced("exact"):
        expected = gradients(block, x)

    def wrong(*arguments):
        if fault != "wrong":
            raise RuntimeError("an illegal launch")
        first, *others = right(*arguments)
        return first * 1.01, *others

    if fault == "raises later":
        gradients(block, x)
    monkeypatch.setattr(triton, kind, wrong)
    for one, other in zip(gradients(block, x), expected):
        torch.testing.assert_close(one, other, atol=4e-6, rtol=1e-4)
    assert dispatch.choose("EMA", "auto", "cuda", torch.float32).name == "exact"


@pytest.mark.parametrize("is_proved", [True, False])
def test_a_cuda_graph(is_proved, unproved):
    block = randomise(EMA(64)).cuda()
    x = torch.randn(2, 64, 9, 7, device="cuda")
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.no_grad():
        with torch.cuda.stream(stream), dispatch.forced("auto" if is_proved else "exact"):
            for _ in range(3):
                block(x)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            chosen = dispatch.choose("EMA", "auto", x.device, x.dtype).name
            out = block(x)
        assert chosen == ("triton" if is_proved else "exact")
        x.copy_(torch.randn_like(x))
        graph.replay()
        with dispatch.forced("exact"):
            torch.testing.assert_close(out, block(x), atol=4e-6, rtol=1e-4)


def test_torch_compile_with_cuda_graphs_as_the_first_use(unproved):
    torch.compiler.reset()
    block = randomise(EMA(64)).cuda()
    x = torch.randn(2, 64, 9, 7, device="cuda", requires_grad=True)
    with dispatch.forced("exact"):
        expected = torch.autograd.grad(block(x).square().sum(), [x, *block.parameters()])
    compiled = torch.compile(block, fullgraph=True, mode="reduce-overhead")
    for _ in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        found = torch.autograd.grad(compiled(x).square().sum(), [x, *block.parameters()])
        for one, other in zip(found, expected):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert list(proof._faults.values()) == ["", ""]


def test_without_a_c_compiler(tmp_path, monkeypatch):
    """Triton compiles its launcher with one, as the first thing that it does."""
    monkeypatch.delenv("CC", raising=False)
    env = {"PATH": str(tmp_path), "TRITON_CACHE_DIR": str(tmp_path / "triton"), VARIABLES["cache"]: str(tmp_path)}
    done = run_fresh(runs_a_block_on_a_gpu, env=env)
    assert done.returncode == 0, done.stderr
    *values, name = done.stdout.split()
    assert name == "exact" and done.stderr.count("EMA: the triton kernel is not used in this process") == 1
    block = randomise(EMA(64, groups=8))
    x = torch.ones(2, 64, 9, 7, requires_grad=True)
    out = block(x)
    out.sum().backward()
    expected = [out.double().abs().sum().item(), x.grad.double().abs().sum().item()]
    assert [float(value) for value in values] == pytest.approx(expected, rel=1e-3)
