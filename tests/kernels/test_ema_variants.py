"""EMA beyond the paper: what each option changes, in every form; its loops are in tests/blocks."""

from __future__ import annotations

import pickle

import pytest
import torch
from conftest import randomise
from forms import assert_same, computed, noise, saved_bytes
from public_layouts import PUBLIC
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from yolov5_ema.blocks import EMA
from yolov5_ema.errors import UserError
from yolov5_ema.kernels import dispatch, native
from yolov5_ema.kernels.ema import attended, gated, means_of_sides
from yolov5_ema.settings import VARIABLES

VARIANTS = {
    "norm_groups": {"norm_groups": 1},
    "norm_groups of four": {"norm_groups": 2},
    "residual": {"residual": True},
    "depthwise": {"depthwise": True},
    "norm_groups, depthwise": {"norm_groups": 4, "depthwise": True},
    "all": {"norm_groups": 1, "residual": True, "depthwise": True},
}
every_variant = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
needs_kernels = pytest.mark.skipif(native.library().handle is None, reason=native.library().reason)
SHAPES = [(2, 16, 6, 7), (1, 16, 1, 5), (3, 16, 4, 1), (1, 16, 1, 1)]


def block_with(dtype=torch.float64, groups=2, channels=16, **options):
    return randomise(EMA(channels, groups=groups, dtype=dtype, **options)).eval()


def of_groups(block, x):
    return x.reshape(-1, x.shape[1] // block.groups, *x.shape[2:])


def first_weights(block, x):
    """softmax(mean(x1)) of each image and group, as the layers of the block compute it."""
    gx = of_groups(block, x)
    x1 = block.gn(gated(gx, block.conv1x1(means_of_sides(gx))))
    return x1.mean((2, 3)).softmax(1).reshape(len(x), block.groups, -1)


# ------------------------------------------------------------------------------------------------ what they compute


def test_the_first_weight_of_the_published_block_is_a_constant():
    block, x = block_with(), noise(5, 16, 9, 8)
    expected = block.gn.bias.softmax(0).expand(5, 2, 8)
    torch.testing.assert_close(first_weights(block, x), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("norm_groups", [1, 2, 4])
def test_with_norm_groups_it_depends_on_the_image(norm_groups):
    block, x = block_with(norm_groups=norm_groups), noise(5, 16, 9, 8)
    found = first_weights(block, x)
    assert (found.amax(0) - found.amin(0)).min() > 1e-3
    # gamma (m - M) / sqrt(V + eps) + beta, with the means m of the gated channels
    gx = of_groups(block, x)
    y = gated(gx, block.conv1x1(means_of_sides(gx)))
    together = y.reshape(len(y), norm_groups, -1)
    scale = (together.var(2, unbiased=False) + block.gn.eps).rsqrt()
    shift = y.mean((2, 3)).reshape(len(y), norm_groups, -1) - together.mean(2, keepdim=True)
    means = block.gn.weight * (shift * scale[:, :, None]).reshape(len(y), -1) + block.gn.bias
    torch.testing.assert_close(found, means.softmax(1).reshape(found.shape))


def test_as_many_norm_groups_as_channels_are_the_published_norm():
    plain, x = block_with(), noise(2, 16, 5, 6)
    block = EMA(16, groups=2, norm_groups=8, dtype=torch.float64)
    block.load_state_dict(plain.state_dict())
    assert block.norm_groups is None and torch.equal(block(x), plain(x))


def test_a_depthwise_convolution_is_a_full_one_with_zeros():
    block, x = block_with(depthwise=True), noise(2, 16, 5, 6)
    full = EMA(16, groups=2, dtype=torch.float64)
    state = block.state_dict()
    kernel = torch.zeros(8, 8, 3, 3, dtype=torch.float64)
    for channel in range(8):
        kernel[channel, channel] = state["conv3x3.weight"][channel, 0]
    full.load_state_dict({**state, "conv3x3.weight": kernel})
    for form in ("reference", "exact", "auto"):
        with dispatch.forced(form):
            torch.testing.assert_close(block(x), full(x), rtol=0, atol=1e-15)


def test_the_reference_is_made_of_torchs_layers():
    block, x = block_with(norm_groups=2, residual=True, depthwise=True), noise(2, 16, 5, 6)
    gx = of_groups(block, x)
    y = torch.cat([image[None] for image in gated(gx, block.conv1x1(means_of_sides(gx)))])
    x1, x2 = nn.functional.group_norm(y, 2, block.gn.weight, block.gn.bias), block.conv3x3(gx)
    expected = x + block.gate.weight * attended(gx, x1, x2, True).reshape(x.shape)
    with dispatch.forced("reference"):
        torch.testing.assert_close(block(x), expected)


def counted(block):
    with dispatch.forced("reference"), FlopCounterMode(display=False) as counter:
        block(torch.zeros(1, 16, 6, 7, dtype=torch.float64))
    return counter.get_total_flops()


def test_multiply_adds_of_the_papers_form():
    """Two operations each; k = 8 in 2 groups of 6 x 7 pixels: the kernel falls from 9 k^2 to 9 k for each pixel."""
    plain = counted(block_with())
    assert plain - counted(block_with(depthwise=True)) == 2 * 2 * 42 * (9 * 8 * 8 - 9 * 8)
    assert counted(block_with(norm_groups=1)) == counted(block_with(residual=True)) == plain


# ----------------------------------------------------------------------------------------------------- every form


@every_variant
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forms_agree_on_values_and_gradients(options, shape):
    block, x, grad = block_with(**options), noise(*shape), noise(*shape, seed=2)
    wanted = computed(block, "reference", x, grad)
    for form in ("exact", "auto"):
        assert_same(computed(block, form, x, grad), wanted, 1e-12)


@every_variant
def test_forms_agree_in_float32(options):
    block, x, grad = block_with(torch.float32, **options), noise(2, 16, 20, 17), noise(2, 16, 20, 17, seed=2)
    wanted = computed(block, "reference", x.float(), grad.float())
    for form in ("exact", "auto"):
        assert_same(computed(block, form, x.float(), grad.float()), wanted, 2e-5)


@every_variant
def test_gradients_of_gradients_and_of_one_image_at_a_time(options):
    block, x = block_with(**options), noise(2, 16, 3, 4).requires_grad_()
    assert torch.autograd.gradgradcheck(block, x, fast_mode=True)
    alone = torch.cat([block(image[None]) for image in x])
    torch.testing.assert_close(torch.func.vmap(lambda image: block(image[None])[0])(x), alone)


@every_variant
def test_layers_that_are_not_plain_are_called(options):
    block, x = block_with(**options), noise(2, 16, 5, 6)
    before = block(x)
    block.conv3x3.register_forward_hook(lambda module, args, out: -out)
    gx = of_groups(block, x)
    x1, x2 = block.gn(gated(gx, block.conv1x1(means_of_sides(gx)))), block.conv3x3(gx)
    expected = attended(gx, x1, x2, True).reshape(x.shape)
    expected = x + block.gate.weight * expected if block.residual else expected
    assert not torch.allclose(expected, before)
    torch.testing.assert_close(block(x), expected)


@pytest.mark.slow
@pytest.mark.parametrize("options", [VARIANTS["residual"], VARIANTS["depthwise"], VARIANTS["all"]], ids=str)
def test_torch_compile_takes_the_whole_block(options):
    block, x, grad = (
        block_with(torch.float32, **options),
        noise(2, 16, 5, 6).float(),
        noise(2, 16, 5, 6, seed=2).float(),
    )
    torch.compiler.reset()
    compiled = torch.compile(block, fullgraph=True)
    wanted = computed(block, "reference", x, grad)
    x = x.requires_grad_()
    compiled(x).backward(grad)
    found = {"out": compiled(x).detach(), "x": x.grad, **{name: p.grad for name, p in block.named_parameters()}}
    assert_same(found, wanted, 2e-5)


# ------------------------------------------------------------------------------------------------ kernels, memory


def test_a_kernel_that_was_asked_for_refuses_norm_groups(monkeypatch):
    x = noise(1, 16, 4, 5)
    message = "EMA: implementation 'cpp' cannot run: no kernel normalizes several channels together, as norm_groups=1"
    with pytest.raises(UserError, match=message):
        EMA(16, groups=2, norm_groups=1, implementation="cpp", dtype=torch.float64)(x)
    monkeypatch.setenv(VARIABLES["implementation"], "cpp")
    with pytest.raises(UserError, match=message):
        block_with(norm_groups=1)(x)
    monkeypatch.setenv(VARIABLES["implementation"], "triton")  # which is for another device
    assert block_with(norm_groups=1)(x).isfinite().all()


@needs_kernels
def test_what_is_kept_for_backward():
    """In multiples of the input: the kernels run for all but norm_groups; residual keeps what it adds too."""
    x = noise(2, 128, 20, 20).float().requires_grad_()
    kept = {
        name: saved_bytes(block_with(torch.float32, 8, 128, **options), x, "auto") / (4 * x.numel())
        for name, options in {"published": {}, **VARIANTS}.items()
    }
    assert kept["published"] < 1.02 and kept["depthwise"] < 1.05  # with the kernel and its zeros
    assert 2 <= kept["residual"] < 2.02
    assert kept["norm_groups"] > 3


# ------------------------------------------------------------------------------------------------------- residual


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("more", [{}, {"norm_groups": 1, "depthwise": True}, {"cross_spatial": False}], ids=str)
def test_a_new_residual_block_changes_no_bit(dtype, more):
    block = EMA(64, groups=8, residual=True, dtype=dtype, **more)
    x = (noise(2, 64, 5, 6) * 100).to(dtype)
    x[0, :, 0] = 0.0
    x[1, :, 0] = -0.0
    out = block(x)
    assert torch.equal(out, x) and torch.equal(out.signbit(), x.signbit())


def test_the_first_step_of_a_residual_block_moves_its_gate():
    block, x = EMA(16, groups=2, residual=True), noise(2, 16, 5, 6).float()
    plain = EMA(16, groups=2)
    plain.load_state_dict(block.state_dict(), strict=False)
    block(x).square().sum().backward()
    grads = {name: parameter.grad for name, parameter in block.named_parameters()}
    torch.testing.assert_close(grads.pop("gate.weight"), (2 * x * plain(x)).sum().reshape(1))
    assert not any(grad.any() for grad in grads.values())
    with torch.no_grad():
        block.gate.weight.fill_(0.1)
    block(x).square().sum().backward()
    assert all(parameter.grad.any() for parameter in block.parameters())


def test_zero_gate():
    x = noise(2, 16, 5, 6)
    block = block_with(residual=True)
    block.zero_gate_()
    assert torch.equal(block(x), x) and block.conv3x3.weight.any()
    block = block_with(norm_groups=2, depthwise=True)
    block.zero_gate_()
    assert torch.equal(block(x), x / 2)


# ---------------------------------------------------------------------------------------------------- old blocks


def test_state_dicts_of_the_default_are_the_published_ones():
    assert list(EMA(64).state_dict()) == list(PUBLIC["EMA"](64).state_dict())
    assert set(EMA(64, residual=True).state_dict()) - set(EMA(64).state_dict()) == {"gate.weight"}


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_blocks_pickled_before_there_were_options():
    block, x = block_with(torch.float32), noise(2, 16, 5, 6).float()
    old = pickle.loads(pickle.dumps(block))
    for name in ("norm_groups", "residual", "depthwise"):
        del vars(old)[name]
    old = pickle.loads(pickle.dumps(old))
    assert repr(old) == repr(block)
    assert torch.equal(old(x), block(x))
    torch.testing.assert_close(torch.jit.script(old)(x), block(x))
