"""CBAM's implementations give the reference's output, gradients and running statistics, and keep little memory."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from forms import assert_same, computed, noise
from torch import nn
from torch._subclasses import FakeTensorMode

from yolov5_ema.blocks import CBAM
from yolov5_ema.errors import UserError
from yolov5_ema.kernels import dispatch, native
from yolov5_ema.kernels.cbam import cpp
from yolov5_ema.settings import VARIABLES

SHAPES = [
    (1, 1, 1, 1),
    (33, 3, 1, 4),
    (2, 7, 6, 1),
    (3, 8, 9, 7),
    (1, 18, 33, 40),
    (1, 6, 97, 101),  # more than one tile, and work for two threads
]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 3e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}

needs_compiler = pytest.mark.skipif(native.library().handle is None, reason="no C++ compiler")
each_form = pytest.mark.parametrize("form", ["exact", pytest.param("cpp", marks=needs_compiler)])
both_modes = pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])


def random_block(channels, training=True, dtype=torch.float64, reduction=1, **options):
    block = CBAM(channels, reduction=reduction, dtype=dtype, **options).train(training)
    with torch.no_grad():
        for i, tensor in enumerate(block.state_dict().values()):
            if tensor.is_floating_point():
                tensor.copy_(0.5 * noise(*tensor.shape, seed=i))
        block.spatial_gate.bn.running_var.abs_().add_(0.5)
    return block


def assert_like_reference(block, form, x, grad=None, tolerance=None, wanted=None):
    grad = noise(*x.shape, dtype=x.dtype, seed=2) if grad is None else grad
    expected = computed(block, "reference", x, grad, wanted)
    assert_same(computed(block, form, x, grad, wanted), expected, tolerance or TOLERANCE[x.dtype])


@each_form
@both_modes
@pytest.mark.parametrize("kernel_size", [1, 3, 7])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_like_the_reference(shape, kernel_size, training, form):
    block = random_block(shape[1], training, kernel_size=kernel_size)
    assert_like_reference(block, form, noise(*shape))


@each_form
@both_modes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_like_the_reference_in_float32(shape, training, form):
    assert_like_reference(random_block(shape[1], training, torch.float32), form, noise(*shape).float())


@each_form
@pytest.mark.parametrize("x", [torch.full((2, 6, 5, 4), 0.3), noise(2, 6, 5, 4).relu(), noise(2, 6, 5, 4).round()])
def test_equal_maxima_share_their_gradient(x, form):
    block = random_block(6, training=False)
    with torch.no_grad():  # a gate that is equal for all channels, so that channels tie too
        block.channel_gate.fc2.weight.fill_(0.1)
        block.channel_gate.fc2.bias.fill_(0.1)
    assert_like_reference(block, form, x.double())
    assert_like_reference(random_block(6), form, x.double())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@both_modes
def test_half_precision_ties_after_rounding(dtype, training):
    x = (noise(2, 64, 6, 5) / 8).to(dtype)
    assert_like_reference(random_block(64, training, dtype, reduction=16), "exact", x)


@each_form
def test_a_large_mean(form):
    block = random_block(16, dtype=torch.float32)
    x = (1000 + noise(2, 16, 20, 20)).float()
    expected = computed(block.double(), "reference", x.double(), noise(*x.shape, seed=2))
    found = computed(block.float(), form, x, noise(*x.shape, seed=2).float())
    torch.testing.assert_close(found["out"].double(), expected["out"], rtol=1e-3, atol=1e-3)
    statistics = [name for name in expected if "running" in name]
    assert_same({n: found[n].double() for n in statistics}, {n: expected[n] for n in statistics}, 1e-5)


@each_form
@both_modes
def test_other_memory_formats(form, training):
    x = noise(2, 7, 6, 5)
    block = random_block(7, training)
    views = [
        x.contiguous(memory_format=torch.channels_last),
        x.transpose(2, 3).contiguous().transpose(2, 3),
        noise(2, 9, 6, 5)[:, 1:8].copy_(x),
    ]
    for grad in (noise(2, 5, 7, 6, seed=2).permute(0, 2, 3, 1), torch.tensor(0.7).double().expand(x.shape)):
        expected = computed(block, "reference", x, grad)
        for view in views:
            assert not view.is_contiguous()
            assert_same(computed(block, form, view, grad), expected, 1e-9)
    channels_last = computed(block.to(memory_format=torch.channels_last), form, views[0], grad)
    assert channels_last["out"].is_contiguous(memory_format=torch.channels_last)
    assert_same(channels_last, expected, 1e-9)


@each_form
@pytest.mark.parametrize(
    "wanted",
    [{"x"}, {"channel_gate.fc1.weight"}, {"spatial_gate.conv.weight"}, {"spatial_gate.bn.bias", "x"}],
    ids=lambda names: "+".join(sorted(names)),
)
def test_gradients_of_a_part(wanted, form):
    assert_like_reference(random_block(7), form, noise(2, 7, 6, 5), wanted=wanted)


@each_form
@both_modes
def test_derivatives_of_both_orders(form, training):
    block = random_block(4, training, kernel_size=3)
    names = [name for name, _ in block.named_parameters()]
    x = noise(2, 4, 3, 4).requires_grad_()
    values = [p.detach().clone().requires_grad_() for p in block.parameters()]

    def run(x, *values):
        return torch.func.functional_call(copy.deepcopy(block), dict(zip(names, values)), (x,))

    with dispatch.forced(form):
        assert torch.autograd.gradcheck(run, (x, *values), fast_mode=True)
        assert torch.autograd.gradgradcheck(run, (x, *values), fast_mode=True)


@each_form
def test_second_derivatives_leave_running_statistics_alone(form):
    results = {}
    for name in ("reference", form):
        block = random_block(5)
        x = noise(2, 5, 6, 7).requires_grad_()
        with dispatch.forced(name):
            (gradient,) = torch.autograd.grad(block(x).square().sum(), x, create_graph=True)
            gradient.square().sum().backward()
        grads = {key: p.grad for key, p in block.named_parameters()}
        results[name] = {"x": x.grad, **grads, **dict(block.named_buffers())}
    assert results[form]["spatial_gate.bn.num_batches_tracked"] == 1
    assert_same(results[form], results["reference"], 1e-9)


@each_form
def test_backward_twice(form):
    block = random_block(7)
    x = noise(2, 7, 6, 5).requires_grad_()
    with dispatch.forced(form):
        loss = block(x).square().sum()
        first = torch.autograd.grad(loss, [x, *block.parameters()], retain_graph=True)
        torch.autograd.grad(loss, list(block.parameters()), retain_graph=True)
        second = torch.autograd.grad(loss, [x, *block.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(first, second))


@each_form
def test_backward_from_within(form):
    """A loss on the attention map alone, which a hook takes from inside."""
    found = []
    for name in ("reference", form):
        block, maps = random_block(7), []
        block.spatial_gate.bn.register_forward_hook(lambda module, args, out, maps=maps: maps.append(out))
        x = noise(2, 7, 6, 5).requires_grad_()
        with dispatch.forced(name):
            block(x)
            maps[0].square().sum().backward()
        found.append({"x": x.grad, **{key: p.grad for key, p in block.named_parameters()}})
    assert_same(found[1], found[0], 1e-9)


@each_form
def test_a_watched_gate_is_called(form):
    block, seen = random_block(7), []
    block.channel_gate.register_forward_hook(lambda module, args, out: seen.append(out))
    with dispatch.forced(form):
        block(noise(2, 7, 6, 5))
    assert seen[0].shape == (2, 7, 6, 5)


@each_form
def test_replaced_layers_are_used(form):
    block = random_block(8)
    block.spatial_gate.conv = nn.Sequential(nn.Conv2d(2, 1, 5, padding=2), nn.Tanh()).double()
    block.channel_gate.fc1 = nn.utils.parametrizations.weight_norm(block.channel_gate.fc1)
    assert_like_reference(block, form, noise(2, 8, 6, 5))


@each_form
@pytest.mark.parametrize(
    "options",
    [{"dilation": 2, "padding": 2}, {"padding": 1, "padding_mode": "circular"}, {"padding": 1, "bias": True}],
)
def test_another_convolution_is_used(options, form):
    block = random_block(8)
    block.spatial_gate.conv = nn.Conv2d(2, 1, 3, **{"bias": False, **options}).double()
    assert_like_reference(block, form, noise(2, 8, 6, 5))


@each_form
def test_tensors_without_memory(form):
    with FakeTensorMode(), dispatch.forced(form):
        x = torch.rand(2, 16, 6, 5, requires_grad=True)
        out = CBAM(16)(x)
        out.sum().backward()
    assert out.shape == x.grad.shape == (2, 16, 6, 5)


@each_form
@pytest.mark.parametrize("size", [(8, 64, 20, 20), (2, 128, 40, 40)], ids=str)
def test_keeps_the_input_only(size, form):
    block = CBAM(size[1])
    x = torch.rand(size, requires_grad=True)
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    parameters = {p.untyped_storage().data_ptr() for p in block.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), dispatch.forced(form):
        block(x)
    total = sum(count for pointer, count in kept.items() if pointer not in parameters)
    assert x.nbytes <= total <= 1.13 * x.nbytes


@each_form
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite(bad, form):
    block = random_block(5, training=False)
    for place in [(0, 0, 0, 0), (1, 4, 5, 6), (1, 2, 3, 1)]:
        x = noise(2, 5, 6, 7)
        x[place] = bad
        grad = noise(2, 5, 6, 7, seed=2)
        expected, found = (computed(block, name, x, grad) for name in ("reference", form))
        for key in ("out", "x"):
            torch.testing.assert_close(found[key], expected[key], equal_nan=True)
        with torch.no_grad(), dispatch.forced(form):
            torch.testing.assert_close(block(x), expected["out"], equal_nan=True)


@each_form
@both_modes
def test_inference_is_the_same_and_moves_statistics_once(form, training):
    block = random_block(7, training)
    twin = copy.deepcopy(block)
    x = noise(2, 7, 6, 5)
    with torch.no_grad():
        with dispatch.forced("reference"):
            expected = twin(x)
        with dispatch.forced(form):
            torch.testing.assert_close(block(x), expected)
    assert_same(dict(block.named_buffers()), dict(twin.named_buffers()), 1e-9)


@needs_compiler
@pytest.mark.parametrize(
    ("implementation", "dtype", "kernel"),
    [
        ("auto", torch.float32, True),
        ("auto", torch.float64, True),
        ("auto", torch.float16, False),
        ("cpp", torch.float32, True),
        ("triton", torch.float32, True),
        ("exact", torch.float32, False),
        ("reference", torch.float32, False),
    ],
)
def test_which_one_runs(implementation, dtype, kernel, monkeypatch):
    calls = []
    pool = cpp.pool
    monkeypatch.setattr(cpp, "pool", lambda *args, **kwargs: calls.append(args) or pool(*args, **kwargs))
    block = CBAM(16, implementation=implementation, dtype=dtype)
    assert f"implementation={implementation}" in repr(block)
    block(torch.rand(1, 16, 3, 3, dtype=dtype))
    assert bool(calls) == kernel
    monkeypatch.setenv(VARIABLES["implementation"], "exact")
    calls.clear()
    block(torch.rand(1, 16, 3, 3, dtype=dtype))
    assert not calls


def test_wrong_names(monkeypatch):
    with pytest.raises(ValueError, match="CBAM: no implementation is called 'fast'"):
        CBAM(16, implementation="fast")
    monkeypatch.setenv(VARIABLES["implementation"], "fast")
    with pytest.raises(UserError, match=VARIABLES["implementation"]):
        CBAM(16)(torch.rand(1, 16, 3, 3))


def test_pickles_from_before_there_was_a_choice():
    block = random_block(7, training=False)
    state = block.state_dict()
    del block.__dict__["implementation"]
    old = pickle.loads(pickle.dumps(block))
    assert "implementation" not in vars(old) and "implementation=auto" in repr(old)
    x = noise(2, 7, 6, 5)
    assert torch.equal(old(x), block(x))
    assert old.state_dict().keys() == state.keys()
    expected = {"channel_gate.fc1", "channel_gate.fc2", "spatial_gate.conv", "spatial_gate.bn"}
    assert {key.rsplit(".", 1)[0] for key in state} == expected


@each_form
def test_autocast(form):
    block = random_block(16, dtype=torch.float32)
    x, grad = noise(2, 16, 6, 5).float(), noise(2, 16, 6, 5, seed=2).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, found = (computed(block, name, x, grad) for name in ("reference", form))
    assert_same(found, expected, 2e-2)


@each_form
def test_an_optimizer_and_a_hook_on_a_weight(form):
    """Hooks on parameters run only once."""
    weights = []
    for name in ("reference", form):
        block = random_block(7)
        for parameter in block.parameters():
            parameter.register_hook(lambda grad: 0.5 * grad)
        optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
        with dispatch.forced(name):
            for step in range(3):
                optimizer.zero_grad()
                block(noise(2, 7, 6, 5, seed=step)).square().mean().backward()
                optimizer.step()
        weights.append(block.state_dict())
    assert_same(weights[1], weights[0], 1e-9)


def test_batched_gradients():
    """As torch.autograd.functional.hessian computes them with vectorize=True."""
    block = random_block(4)
    x = noise(2, 4, 3, 4).requires_grad_()
    grads = noise(3, 2, 4, 3, 4, seed=2)
    (found,) = torch.autograd.grad(block(x), x, grads, is_grads_batched=True)
    for one, grad in zip(found, grads):
        torch.testing.assert_close(one, computed(random_block(4), "reference", x, grad)["x"])


@pytest.mark.slow
def test_compiles_whole():
    block = random_block(16, dtype=torch.float32)
    x, grad = noise(2, 16, 6, 5).float(), noise(2, 16, 6, 5, seed=2).float()
    expected = computed(block, "reference", x, grad)
    compiled = torch.compile(block, fullgraph=True)
    inputs = x.clone().requires_grad_()
    out = compiled(inputs)
    out.backward(grad)
    found = {"out": out.detach(), "x": inputs.grad, **dict(block.named_buffers())}
    found.update({name: parameter.grad for name, parameter in block.named_parameters()})
    assert_same(found, expected, 1e-4)


def test_gates_of_no_images():
    assert CBAM(16).eval()(torch.rand(0, 16, 3, 3)).shape == (0, 16, 3, 3)


@pytest.mark.parametrize("implementation", ["reference", "exact", "auto"])
def test_tied_maxima_share_the_gradient(implementation):
    """As documented: the gradient is shared evenly among equal maxima, where the public code gives it to one."""
    block = CBAM(8, reduction=2, implementation=implementation).eval()
    x = torch.zeros(1, 8, 2, 2, requires_grad=True)
    block.channel_gate(x).sum().backward()
    plain = x.grad.clone()
    x.grad = None
    block(x).sum().backward()
    for grad in (plain, x.grad):  # all four pixels of a channel are equal maxima: none is preferred
        torch.testing.assert_close(grad.flatten(2), grad.mean((2, 3))[:, :, None].expand(1, 8, 4), atol=1e-6, rtol=1e-4)
