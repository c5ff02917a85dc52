"""Every form of EMA computes the reference's function: values, gradients, dtypes, layouts, a training."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from cases.ema_exact import gradients_of_half_of_a_batch
from conftest import randomise
from fresh_process import fresh_environment, name_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from yolov5_ema.blocks import EMA
from yolov5_ema.kernels import dispatch, native
from yolov5_ema.kernels.ema import EMAArguments, ema_exact, ema_reference, exact

NAMES = ("x", "w1", "b1", "gamma", "beta", "w3", "b3")
# N, groups, k, H, W
SHAPES = [
    (1, 1, 1, 5, 7),
    (33, 2, 1, 3, 4),
    (1, 3, 5, 1, 9),
    (2, 2, 4, 8, 1),
    (33, 1, 3, 2, 2),
    (2, 4, 16, 20, 20),
    (1, 2, 10, 37, 41),
    (1, 1, 20, 33, 17),
    (2, 1, 7, 1, 2),
]
KERNELS = [
    "exact",
    pytest.param("cpp", marks=pytest.mark.skipif(native.library().handle is None, reason=native.library().reason)),
]
every_kernel = pytest.mark.parametrize("name", KERNELS)
every_form = pytest.mark.parametrize("name", ["expression", *KERNELS])


def block_and_input(shape, dtype=torch.float32, seed=0):
    n, groups, k, h, w = shape
    block = randomise(EMA(groups * k, groups=groups, dtype=torch.float64), seed).to(dtype)
    generator = torch.Generator().manual_seed(seed + 1)
    x = torch.randn(n, groups * k, h, w, generator=generator, dtype=torch.float64).to(dtype)
    return block, x.requires_grad_()


def run(name, block, x):
    """The block with one implementation; "expression" is the form for TorchScript and exporters."""
    if name != "expression":
        with dispatch.forced(name):
            return block(x)
    return ema_exact(x, EMAArguments(*parameters(block), block.groups, block.gn.eps))


def parameters(block):
    convs = (block.conv1x1, block.conv3x3)
    return [convs[0].weight, convs[0].bias, block.gn.weight, block.gn.bias, convs[1].weight, convs[1].bias]


def value_and_gradients(name, block, x):
    out = run(name, block, x)
    generator = torch.Generator().manual_seed(9)
    towards = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, [x, *parameters(block)], towards)]


def assert_close(found, expected, forward, gradients):
    """``forward`` is an absolute tolerance; ``gradients`` is relative to each gradient's largest value."""
    assert (found[0].double() - expected[0].double()).abs().max() <= forward
    for what, a, b in zip(NAMES, found[1:], expected[1:]):
        scale = b.abs().max().clamp(min=1e-3)  # some are zero: the biases before a softmax of one channel
        assert (a.double() - b.double()).abs().max() <= gradients * scale, what


@every_form
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_in_float32(name, shape):
    block, x = block_and_input(shape)
    assert_close(value_and_gradients(name, block, x), value_and_gradients("reference", block, x), 2e-6, 1e-4)


@every_form
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_in_float64(name, shape):
    block, x = block_and_input(shape, torch.float64)
    assert_close(value_and_gradients(name, block, x), value_and_gradients("reference", block, x), 1e-12, 1e-10)


@every_form
@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(*(st.integers(1, top) for top in (4, 3, 9, 12, 12))).filter(lambda s: s[3] * s[4] > 1),
    seed=st.integers(0, 2**16),
)
def test_any_shape_and_parameters(name, shape, seed):
    block, x = block_and_input(shape, torch.float64, seed)
    assert_close(value_and_gradients(name, block, x), value_and_gradients("reference", block, x), 1e-12, 1e-9)


@every_kernel
def test_a_single_pixel(name):
    """GroupNorm refuses a channel of a single value; its formula gives beta."""
    block, x = block_and_input((1, 1, 3, 1, 1), torch.float64)
    assert_close(value_and_gradients(name, block, x), value_and_gradients("expression", block, x), 1e-14, 1e-12)
    p, q = block.gn.bias.softmax(0), block.conv3x3(x).flatten().softmax(0)
    score = (p * block.conv3x3(x).flatten()).sum() + (q * block.gn.bias).sum()
    torch.testing.assert_close(run(name, block, x), x * score.sigmoid())


@every_kernel
def test_no_images(name):
    block, x = block_and_input((0, 2, 3, 4, 4))
    found = value_and_gradients(name, block, x)
    assert found[0].shape == (0, 6, 4, 4)
    assert all(torch.equal(g, torch.zeros_like(g)) for g in found[1:])


@every_form
@pytest.mark.parametrize("deviation", [1.0, 0.1])
def test_a_mean_of_1000_does_not_cancel(name, deviation):
    """The error against float64 is no larger than the reference's, and the deviation of y is right."""
    block, x = block_and_input((2, 2, 6, 24, 24))
    x = (1000 + deviation * x.detach()).requires_grad_()
    block.conv1x1.weight.data *= 1e-3  # gates that are neither 0 nor 1
    truth = value_and_gradients("reference", copy.deepcopy(block).double(), x.detach().double().requires_grad_())
    errors = {}
    for form in ("reference", name):
        found = value_and_gradients(form, block, x)
        errors[form] = [(a.double() - b).abs().max().item() for a, b in zip(found, truth)]
    scales = [t.abs().max().item() for t in truth]
    for what, ours, theirs, scale in zip(("out", *NAMES), errors[name], errors["reference"], scales):
        assert ours <= 3 * theirs + 1e-6 * scale, what


@every_kernel
def test_deviation_of_y_at_a_mean_of_1000(name):
    block, x = block_and_input((1, 1, 4, 30, 30))
    block.conv1x1.weight.data *= 1e-3  # gates that are neither 0 nor 1
    x = 1000 + 0.1 * x.detach()
    with torch.no_grad():
        arguments = EMAArguments(*parameters(block), 1, 0.0)
        if name == "exact":
            stats = exact.forward(x, arguments)[1]
        else:
            stats = torch.ops.yolov5_ema.ema_forward(x, *arguments)[1]
        mu, rstd, _ = stats.unbind(1)
        truth = exact.forward(x.double(), arguments.to(torch.float64))[1]
    torch.testing.assert_close(mu.double(), truth[:, 0], rtol=1e-6, atol=0)
    torch.testing.assert_close(rstd.double(), truth[:, 1], rtol=2e-2, atol=0)


@every_kernel
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_is_float32_rounded(name, dtype):
    """Values and gradients are computed in float32 and rounded once at the end."""
    block, x = block_and_input((2, 2, 8, 12, 10))
    half, rounded = x.detach().to(dtype).requires_grad_(), x.detach().to(dtype).float().requires_grad_()
    found, expected = value_and_gradients(name, block, half), value_and_gradients(name, block, rounded)
    assert found[0].dtype == found[1].dtype == dtype
    torch.testing.assert_close(found[0], expected[0].to(dtype), rtol=0, atol=0)
    assert all(g.dtype == torch.float32 for g in found[2:])


@every_form
def test_layouts(name):
    block, x = block_and_input((3, 2, 4, 6, 5))
    expected = value_and_gradients(name, block, x)
    views = {
        "channels_last": x.detach().to(memory_format=torch.channels_last),
        "transposed": x.detach().transpose(2, 3).contiguous().transpose(2, 3),
        "strided": torch.stack([x.detach(), x.detach()], dim=4)[..., 1],
        "expanded batch": x.detach()[:1].expand(3, -1, -1, -1),
    }
    for what, view in views.items():
        view = view.requires_grad_()
        if what == "expanded batch":
            contiguous = view.detach().contiguous().requires_grad_()
            expected = value_and_gradients(name, block, contiguous)
        assert_close(value_and_gradients(name, block, view), expected, 1e-6, 1e-5)


@every_kernel
def test_a_gradient_that_is_expanded(name):
    block, x = block_and_input((2, 2, 3, 5, 4), torch.float64)
    expected = torch.autograd.grad(run("reference", block, x).sum(), x)[0]
    torch.testing.assert_close(torch.autograd.grad(run(name, block, x).sum(), x)[0], expected)


@every_kernel
@pytest.mark.parametrize(
    "wanted",
    [("x",), ("w3",), ("x", "beta"), ("w1", "gamma"), tuple(n for n in NAMES if n != "x")],
    ids="-".join,
)
def test_any_subset_of_gradients(name, wanted):
    block, x = block_and_input((2, 2, 4, 5, 6), torch.float64)
    found = {}
    for form in (name, "reference"):
        tensors = dict(zip(NAMES, [x, *parameters(block)]))
        for key, tensor in tensors.items():
            tensor.requires_grad_(key in wanted)
            tensor.grad = None
        run(form, block, x).square().sum().backward()
        assert {key for key, tensor in tensors.items() if tensor.grad is not None} == set(wanted)
        found[form] = {key: tensors[key].grad for key in wanted}
    for key in wanted:
        torch.testing.assert_close(found[name][key], found["reference"][key])


@every_kernel
@pytest.mark.parametrize("shape", [(2, 2, 3, 4, 3), (1, 2, 1, 1, 3)], ids=str)
def test_gradcheck_and_double_backward(name, shape):
    block, x = block_and_input(shape, torch.float64)

    def function(x, *values):
        named = dict(zip(("conv1x1.weight", "conv1x1.bias", "gn.weight", "gn.bias", "conv3x3.weight"), values))
        return run(name, _Bound(block, named), x)

    values = (x, *(p.detach().clone().requires_grad_() for p in parameters(block)[:5]))
    assert torch.autograd.gradcheck(function, values, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, values, fast_mode=True)


class _Bound:
    """A block with some parameters passed in from outside, without torch.func."""

    def __init__(self, block, named):
        self.block, self.named = block, named

    def __call__(self, x):
        values = {**dict(self.block.named_parameters()), **self.named}
        names = ("conv1x1.weight", "conv1x1.bias", "gn.weight", "gn.bias", "conv3x3.weight", "conv3x3.bias")
        from yolov5_ema.kernels.ema import ema

        return ema(x, EMAArguments(*(values[n] for n in names), self.block.groups, self.block.gn.eps))


@every_kernel
def test_backward_twice(name):
    block, x = block_and_input((2, 1, 4, 5, 5))
    out = run(name, block, x).sum()
    first = torch.autograd.grad(out, x, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(out, x)[0])


@every_kernel
def test_many_gradients_at_once(name):
    block, x = block_and_input((1, 2, 4, 3, 4), torch.float64)
    out = run(name, block, x)
    towards = torch.randn(3, *out.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = torch.autograd.grad(out, x, towards, is_grads_batched=True)[0]
    for one, grad in zip(found, towards):
        torch.testing.assert_close(one, torch.autograd.grad(run("reference", block, x), x, grad)[0])


@every_kernel
def test_gradient_penalty_equals_the_references(name):
    """A loss on the gradient of the input differentiates the backward itself."""
    block, x = block_and_input((2, 2, 4, 5, 6), torch.float64)
    results = []
    for form in (name, "reference"):
        (slope,) = torch.autograd.grad(run(form, block, x).square().sum(), x, create_graph=True)
        results.append(torch.autograd.grad(slope.square().sum(), [x, *parameters(block)]))
    for found, expected in zip(*results):
        torch.testing.assert_close(found, expected)


@every_kernel
@pytest.mark.parametrize("shape", [(8, 512, 20, 20), (4, 640, 40, 40), (1, 320, 160, 160), (8, 256, 56, 56)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
def test_bytes_saved_for_backward(name, shape, dtype):
    """At most 1.1 times the input's memory; the reference keeps five times as much."""
    block = EMA(shape[1])
    x = torch.zeros(shape, dtype=dtype, requires_grad=True)
    assert saved_bytes(name, block, x) <= 1.1 * x.numel() * x.element_size()


def test_bytes_saved_by_the_reference():
    x = torch.zeros(1, 64, 20, 20, requires_grad=True)
    assert saved_bytes("reference", EMA(64, groups=4), x) > 5 * x.numel() * 4


def saved_bytes(name, block, x):
    sizes = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = run(name, block, x)
    assert out.requires_grad
    return sum(sizes.values())


def test_values_where_the_float16_reference_overflows():
    """Sums and convolutions of large half-precision maps are in float32, so they are accurate, not only finite."""
    block = randomise(EMA(8, groups=2)).half()
    x = (3e4 * torch.rand(1, 8, 160, 160, generator=torch.Generator().manual_seed(0))).half()
    truth = run("reference", copy.deepcopy(block).double(), x.double())
    for name in ("expression", "exact", "auto"):
        torch.testing.assert_close(
            run(name, block, x).double(), truth, rtol=1e-2, atol=1e-3
        )  # scores of 1e5, computed in float32


@every_kernel
def test_nan_stays_nan(name):
    block, x = block_and_input((2, 2, 4, 5, 6))
    x = x.detach().clone()
    x[0, 1, 2, 3] = torch.nan
    out = run(name, block, x)
    assert out[0, :4].isnan().all(), "the group that holds it"
    assert out[0, 4:].isfinite().all() and out[1].isfinite().all()


class _Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.block = EMA(16, groups=4)
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, x):
        return self.head(self.block(F.silu(self.stem(x)))).mean((2, 3))


@every_kernel
def test_a_training_of_200_steps_has_the_same_curve(name):
    curves = {}
    for form in ("reference", name):
        torch.manual_seed(0)
        net = _Net()
        y = torch.arange(64) % 5
        x = torch.randn(64, 3, 12, 12) + 2 * torch.randn(5, 3, 1, 1)[y]
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        losses = []
        with dispatch.forced(form):
            for step in range(200):
                batch = slice(step % 4 * 16, step % 4 * 16 + 16)
                loss = F.cross_entropy(net(x[batch]), y[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        curves[form] = torch.tensor(losses)
    assert curves[name][-20:].mean() < 0.6 * curves[name][:20].mean(), "it learned"
    torch.testing.assert_close(curves[name], curves["reference"], rtol=1e-3, atol=1e-4)


def test_torch_func():
    block, x = block_and_input((3, 2, 4, 5, 6), torch.float64)
    x = x.detach()
    one_by_one = torch.stack([block(image[None])[0] for image in x])
    torch.testing.assert_close(torch.func.vmap(lambda image: block(image[None])[0])(x), one_by_one)
    tangent = torch.ones_like(x)
    found = torch.func.jvp(block, (x,), (tangent,))[1]
    expected = torch.func.jvp(lambda x: run("reference", block, x), (x,), (tangent,))[1]
    torch.testing.assert_close(found, expected)
    with torch.autograd.forward_ad.dual_level():
        dual = block(torch.autograd.forward_ad.make_dual(x, tangent))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, expected)


@pytest.mark.parametrize("name", ["auto", pytest.param("exact", marks=pytest.mark.slow)])
def test_torch_compile_takes_the_whole_block(name):
    block, x = block_and_input((2, 2, 4, 5, 6))
    torch.compiler.reset()
    with dispatch.forced(name):
        compiled = torch.compile(block, fullgraph=True)
        found = value_and_gradients(name, _Compiled(block, compiled), x)
    assert_close(found, value_and_gradients("reference", block, x), 2e-6, 1e-4)


class _Compiled:
    def __init__(self, block, compiled):
        self.__dict__.update(vars(block)["_modules"])
        self.groups, self.compiled = block.groups, compiled

    def __call__(self, x):
        return self.compiled(x)


def test_compiled_kernels_are_well_formed_operators():
    if native.library().handle is None:
        pytest.skip(native.library().reason)
    block, x = block_and_input((2, 2, 3, 4, 5))
    values = [p.detach() for p in parameters(block)]
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.yolov5_ema.ema_forward, (x.detach(), *values, 2, 1e-5), test_utils=checks)
    _, stats = torch.ops.yolov5_ema.ema_forward(x.detach(), *values, 2, 1e-5)
    arguments = (x.detach(), x.detach(), stats, *values, 2, 1e-5)
    torch.library.opcheck(torch.ops.yolov5_ema.ema_backward, arguments, test_utils=checks)


def test_blocks_pickled_before_there_was_a_choice():
    block, x = block_and_input((2, 2, 3, 4, 5))
    old = pickle.loads(pickle.dumps(block))
    del vars(old)["implementation"]
    old = pickle.loads(pickle.dumps(old))
    assert old.implementation == "auto"
    assert torch.equal(old(x), block(x))


def test_the_state_dict_does_not_know_the_implementation():
    states = [EMA(64, implementation=name).state_dict() for name in dispatch.CHOICES]
    assert all(state.keys() == states[0].keys() for state in states)


def test_groups_that_do_not_fit_threads():
    """One group and many threads: results do not depend on the number of threads."""
    block, x = block_and_input((1, 3, 4, 9, 8))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(value_and_gradients("auto", block, x))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert torch.equal(results[0][0], other[0]) and torch.equal(results[0][1], other[1])
        assert_close(other, results[0], 0, 1e-6)
    assert_close(results[0], value_and_gradients("reference", block, x), 2e-6, 1e-4)


def test_reference_is_the_published_form():
    """One value for each pixel of the map, computed with torch's own layers (the loops are in tests/blocks)."""
    block, x = block_and_input((1, 1, 3, 4, 5), torch.float64)
    out = ema_reference(x, EMAArguments(*parameters(block), 1, block.gn.eps))
    gate_h = block.conv1x1(x.mean(3, keepdim=True)).sigmoid()
    gate_w = block.conv1x1(x.mean(2, keepdim=True)).sigmoid()
    x1, x2 = block.gn(x * gate_h * gate_w), block.conv3x3(x)
    p, q = x1.mean((2, 3)).softmax(1), x2.mean((2, 3)).softmax(1)
    torch.testing.assert_close(p[0], block.gn.bias.softmax(0))
    score = (p[:, :, None, None] * x2 + q[:, :, None, None] * x1).sum(1, keepdim=True)
    torch.testing.assert_close(out, x * score.sigmoid())


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one():
    """DistributedDataParallel over gloo, with half of the batch on each rank."""
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "fresh_process",
        name_of(gradients_of_half_of_a_batch),
    ]
    done = subprocess.run(launch, env=fresh_environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.count("same gradients") == 2, done.stderr[-2000:]


@pytest.mark.parametrize("implementation", ["exact", "auto"])
def test_single_pixels_are_as_far_off_as_the_docs_say(implementation):
    """There the normalisation multiplies rounding errors by 1 / sqrt(eps); so does the paper's form."""
    block = randomise(EMA(64, groups=8)).eval()
    x = torch.randn(64, 64, 1, 1, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        with dispatch.forced("reference"):
            wanted = copy.deepcopy(block).double()(x.double()).float()
        with dispatch.forced(implementation):
            found = block(x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
