"""SE, ECA, CA, NAM and SA by their C++ kernels: as by plain operations. More on NAM and SA is in test_norms.py."""

from __future__ import annotations

import copy

import pytest
import torch
from forms import assert_same, computed, noise, randomised, saved_bytes
from torch import nn

from yolov5_ema.blocks import create_block
from yolov5_ema.kernels import dispatch, means, native, norms
from yolov5_ema.kernels.memory import ArgumentsError
from yolov5_ema.settings import VARIABLES

pytestmark = pytest.mark.skipif(native.library().handle is None, reason=native.library().reason)

NAMES = ("SE", "ECA", "CA", "NAM", "SA")
SHAPES = [(33, 8, 1, 4), (2, 16, 6, 1), (3, 8, 9, 7), (1, 16, 33, 40), (2, 8, 97, 101)]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 3e-4}

each_block = pytest.mark.parametrize("name", NAMES)
both_modes = pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])


def made(name, channels, training=True, dtype=torch.float64):
    torch.manual_seed(0)
    options = {"SE": {"reduction": 2, "bias": True}, "SA": {"groups": 2}}.get(name, {})
    return randomised(create_block(name, channels, dtype=dtype, **options), training)


def assert_like_plain(block, x, grad=None, wanted=None):
    grad = noise(*x.shape, dtype=x.dtype, seed=2) if grad is None else grad
    expected = computed(block, "reference", x, grad, wanted)
    assert_same(computed(block, "cpp", x, grad, wanted), expected, TOLERANCE[x.dtype])


@each_block
@both_modes
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_like_plain_operations(name, training, dtype, shape):
    assert_like_plain(made(name, shape[1], training, dtype), noise(*shape, dtype=dtype))


@each_block
def test_a_single_pixel(name):
    assert_like_plain(made(name, 8, training=False), noise(1, 8, 1, 1))


@each_block
@both_modes
def test_derivatives_of_both_orders(name, training):
    block = made(name, 8, training)
    names = [key for key, _ in block.named_parameters()]
    values = [p.detach().clone().requires_grad_() for p in block.parameters()]
    x = noise(2, 8, 3, 4).requires_grad_()

    def run(x, *values):
        return torch.func.functional_call(copy.deepcopy(block), dict(zip(names, values)), (x,))

    with dispatch.forced("cpp"):
        # NAM's shares are constants in the backward pass, so its weight has another gradient than the function
        given = (x, *(value.detach() if name == "NAM" else value for value in values))
        assert torch.autograd.gradcheck(run, given, fast_mode=True)
        assert torch.autograd.gradgradcheck(run, given, fast_mode=True)


@each_block
def test_second_derivatives_are_those_of_plain_operations(name):
    results = []
    for form in ("reference", "cpp"):
        block = made(name, 8)
        x = noise(2, 8, 5, 6).requires_grad_()
        with dispatch.forced(form):
            (gradient,) = torch.autograd.grad(block(x).square().sum(), x, create_graph=True)
            gradient.square().sum().backward()
        results.append({"x": x.grad, **{key: p.grad for key, p in block.named_parameters()}})
        results[-1].update(block.named_buffers())
    assert_same(results[1], results[0], 1e-9)


@each_block
def test_other_memory_formats(name):
    x, block = noise(2, 8, 6, 5), made(name, 8)
    views = [
        x.contiguous(memory_format=torch.channels_last),
        x.transpose(2, 3).contiguous().transpose(2, 3),
        noise(2, 10, 6, 5)[:, 1:9].copy_(x),
    ]
    for grad in (noise(2, 5, 8, 6, seed=2).permute(0, 2, 3, 1), torch.tensor(0.7).double().expand(x.shape)):
        expected = computed(block, "reference", x, grad)
        for view in views:
            assert not view.is_contiguous()
            assert_same(computed(block, "cpp", view, grad), expected, 1e-9)
    with dispatch.forced("cpp"):
        assert block(views[0]).is_contiguous(memory_format=torch.channels_last) or name == "SA"


@each_block
def test_gradients_of_a_part(name):
    block = made(name, 8)
    for wanted in ({"x"}, {key for key, _ in block.named_parameters()}, {next(iter(block.named_parameters()))[0]}):
        assert_like_plain(block, noise(2, 8, 6, 5), wanted=wanted)


@each_block
def test_backward_twice_gives_the_same_bits(name):
    block, x = made(name, 16, dtype=torch.float32), noise(2, 16, 40, 40, dtype=torch.float32).requires_grad_()
    with dispatch.forced("cpp"):
        losses = [copy.deepcopy(block)(x).square().sum() for _ in range(2)]
    found = [torch.autograd.grad(loss, x, retain_graph=True)[0] for loss in (*losses, losses[0])]
    assert all(torch.equal(found[0], other) for other in found)


def test_threads_do_not_change_a_bit():
    x, grad = noise(2, 2, 16, 40, 40, dtype=torch.float32)
    u, v, before, found = noise(16).float(), noise(16, seed=3).float(), torch.get_num_threads(), []
    gates = noise(2, 16, 40, seed=4).float(), noise(2, 16, 40, seed=5).float()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            out, stats = norms._nam(x, u, v, 1e-5)
            of_sa, stats_of_sa = norms._sa(x, u, v, 4, 1e-5)
            found.append(
                [means._mean(x), means._sides(x), *means._scale_backward(grad, x, *gates), out, of_sa]
                + [*norms._nam_backward(grad, x, stats, u, v, 1e-5, False)]
                + [*norms._sa_backward(grad, x, stats_of_sa, u, v, 4, 1e-5)]
            )
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *found))


@each_block
def test_keeps_the_input_only(name):
    block = create_block(name, 128)
    x = torch.rand(2, 128, 40, 40, requires_grad=True)
    assert x.nbytes <= saved_bytes(block, x, "cpp") <= 1.15 * x.nbytes
    assert saved_bytes(block, x, "cpp") <= saved_bytes(block, x, "reference")


@each_block
def test_nan_reaches_what_depends_on_it(name):
    block, x, grad = made(name, 8), noise(2, 8, 6, 7), noise(2, 8, 6, 7, seed=2)
    for bad in (float("nan"), float("inf")):
        x[1, 5, 2, 3] = bad
        expected, found = (computed(block, form, x, grad) for form in ("reference", "cpp"))
        for key in ("out", "x"):
            torch.testing.assert_close(found[key], expected[key], equal_nan=True)


@each_block
@pytest.mark.parametrize(
    ("asked", "dtype", "kernel"),
    [
        (None, torch.float32, True),
        (None, torch.float64, True),
        (None, torch.bfloat16, False),
        ("cpp", torch.float32, True),
        ("exact", torch.float32, False),
        ("reference", torch.float32, False),
    ],
)
def test_which_one_runs(name, asked, dtype, kernel, monkeypatch):
    calls = []
    for module in (means, norms):
        call = module.call
        monkeypatch.setattr(module, "call", lambda *args, call=call: calls.append(args) or call(*args))
    if asked:
        monkeypatch.setenv(VARIABLES["implementation"], asked)
    block, x = made(name, 8, dtype=dtype), torch.rand(2, 8, 64, 64, dtype=dtype)
    block(x)
    assert bool(calls) == kernel
    calls.clear()
    block(x[:, :, :3, :3])
    assert bool(calls) == (asked == "cpp"), "a small map is not worth a call"
    calls.clear()
    torch.jit.trace(block.eval(), x, check_trace=False)
    assert not calls, "a trace holds plain operations"


@pytest.mark.parametrize(("name", "kernel"), [("SE", False), ("ECA", False), ("CA", True)])
def test_inference_of_a_mean_and_a_product_is_torchs(name, kernel, monkeypatch):
    calls, call = [], means.call
    monkeypatch.setattr(means, "call", lambda *args: calls.append(args) or call(*args))
    with torch.no_grad():
        made(name, 8, training=False, dtype=torch.float32)(torch.rand(2, 8, 64, 64))
    assert bool(calls) == kernel


@each_block
def test_no_images(name):
    assert made(name, 8, training=False)(noise(0, 8, 3, 3)).shape == (0, 8, 3, 3)


def test_layers_that_were_replaced_are_called():
    se = made("SE", 8)
    se.fc2 = nn.Sequential(nn.Linear(4, 1, dtype=torch.float64))  # one gate for all channels
    assert_like_plain(se, noise(2, 8, 6, 5))
    seen = []
    for name, layer in (("SA", "spatial"), ("NAM", "bn"), ("CA", "bn1"), ("ECA", "conv")):
        block = made(name, 8)
        getattr(block, layer).register_forward_hook(lambda *_, name=name: seen.append(name))
        block(noise(2, 8, 6, 5))
    assert seen == ["SA", "NAM", "CA", "ECA"]


def test_a_large_mean():
    for name in NAMES:
        block = made(name, 8, training=False, dtype=torch.float32)
        x, grad = 1000 + noise(2, 8, 20, 20), noise(2, 8, 20, 20, seed=2)
        expected = computed(copy.deepcopy(block).double(), "reference", x, grad)
        found = computed(block, "cpp", x.float(), grad.float())
        torch.testing.assert_close(found["out"].double(), expected["out"], rtol=1e-3, atol=1e-3, msg=name)


def test_what_does_not_fit_is_refused():
    x, gate = torch.rand(2, 8, 3, 3), torch.rand(2, 8)
    with pytest.raises(ArgumentsError, match="expected a contiguous array"):
        means._scale(x, gate[:, :7])
    with pytest.raises(ArgumentsError, match="float64"):
        means._scale(x, gate.double())
    with pytest.raises(ArgumentsError, match="expected a contiguous array"):
        means._scale_backward(x, x[:1], gate)
