"""Invalid arguments raise torch's kind of error in every form; layers other than the plain ones are called."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from conftest import randomise
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import prune

from yolov5_ema.blocks import CBAM, EMA
from yolov5_ema.kernels import dispatch, native
from yolov5_ema.kernels.ema import attended, gated, means_of_sides
from yolov5_ema.kernels.memory import check_memory

KERNEL = pytest.param("cpp", marks=pytest.mark.skipif(native.library().handle is None, reason=native.library().reason))
every_form = pytest.mark.parametrize("form", ["reference", "exact", KERNEL])
both_blocks = pytest.mark.parametrize("kind", [EMA, CBAM], ids=["EMA", "CBAM"])


def noise(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def ema_block(channels=64, groups=4):
    return randomise(EMA(channels, groups=groups)).eval()


def block_of(kind):
    return ema_block() if kind is EMA else randomise(CBAM(64)).eval()


# ------------------------------------------------------------------------------------------- shapes, dtypes, devices


@every_form
@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ((64, 32), (2, 128, 8, 8)),
        ((64, 2), (1, 8192, 4, 4)),
        ((64, 4), (1, 32, 4, 4)),
        ((64, 4), (64, 4, 4)),
        ((64, 4), (1, 64, 0, 4)),
    ],
    ids=str,
)
def test_a_wrong_input(form, options, shape):
    with dispatch.forced(form), pytest.raises(RuntimeError, match="EMA: expected a feature map"):
        EMA(options[0], groups=options[1])(torch.rand(shape))


@every_form
def test_groups_changed_after_building(form):
    """As a checkpoint with allowed names and classes can hold it."""
    block = ema_block()
    for groups in (2, 8, 0, -4, 64):
        block.groups = groups
        with dispatch.forced(form), pytest.raises(RuntimeError, match="EMA: expected"):
            block(noise(1, 64, 4, 4))


@every_form
@pytest.mark.parametrize("name", ["conv1x1.weight", "conv1x1.bias", "gn.weight", "gn.bias", "conv3x3.weight"])
def test_a_parameter_of_another_shape(form, name):
    block = ema_block()
    layer, attribute = name.split(".")
    parameter = getattr(getattr(block, layer), attribute)
    setattr(getattr(block, layer), attribute, nn.Parameter(parameter[:1].clone()))
    with dispatch.forced(form), pytest.raises(RuntimeError, match="EMA: expected"):
        block(noise(1, 64, 4, 4))


@every_form
@both_blocks
@pytest.mark.parametrize("dtype", [torch.int32, torch.float64, torch.complex64, torch.bool], ids=str)
def test_dtypes_that_a_convolution_refuses(kind, form, dtype):
    with dispatch.forced(form), pytest.raises((RuntimeError, TypeError)):
        block_of(kind)(torch.ones(1, 64, 4, 4).to(dtype))


@every_form
@both_blocks
def test_parameters_without_memory(kind, form):
    with dispatch.forced(form), pytest.raises(RuntimeError, match="device"):
        kind(64, device="meta")(noise(1, 64, 4, 4))


@every_form
def test_a_gate_of_too_few_channels(form):
    block = block_of(CBAM)
    block.channel_gate.fc2 = nn.Linear(4, 8)
    for x in (noise(1, 64, 4, 4), noise(1, 64, 4, 4).requires_grad_()):
        with dispatch.forced(form), pytest.raises(RuntimeError, match=r"channel gate of shape|must match"):
            block(x)


@every_form
@both_blocks
def test_views_that_are_not_what_their_memory_says(kind, form):
    block, x = block_of(kind), noise(1, 64, 4, 6)
    negated = torch.complex(x, -x).conj().imag
    assert negated.is_neg()
    with dispatch.forced(form), torch.no_grad():
        torch.testing.assert_close(block(negated), block(x))
        torch.testing.assert_close(block(x.as_subclass(_Named)).as_subclass(torch.Tensor), block(x))


@pytest.mark.skipif(native.library().handle is None, reason=native.library().reason)
@pytest.mark.parametrize("place", range(7))
def test_zeros_without_memory_are_zeros(place):
    arguments = [
        noise(1, 6, 4, 4),
        *(noise(*s) for s in ((3, 3, 1, 1), (3,), (3,), (3,), (3, 3, 3, 3), (3,))),
    ]
    shape = arguments[place].shape
    arguments[place] = torch.zeros(shape)
    expected = torch.ops.yolov5_ema.ema_forward(*arguments, 2, 1e-5)
    arguments[place] = torch._efficientzerotensor(shape)
    torch.testing.assert_close(torch.ops.yolov5_ema.ema_forward(*arguments, 2, 1e-5), expected)


class _Named(torch.Tensor):
    pass


def test_the_last_door_lets_only_plain_memory_through():
    x = noise(2, 3)
    check_memory(x, (2, 3), torch.float32, x.device)
    small = x.clone()
    small.untyped_storage().resize_(8)
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(x)
    refused = [
        noise(2, 4), x.double(), x.to("meta"), noise(3, 2).t(), torch.complex(x, x).conj().imag, small, fake,
        torch._efficientzerotensor((2, 3)), x.to_sparse(), x[:1].expand(2, 3),
    ]  # fmt: skip
    for tensor in refused:
        with pytest.raises(RuntimeError):
            check_memory(tensor, (2, 3), torch.float32, x.device)


# ----------------------------------------------------------------------------------------------- layers are called


def by_hand(block, x):
    """The paper's form with the given layers."""
    gx = x.reshape(len(x) * block.groups, -1, *x.shape[2:])
    x1 = block.gn(gated(gx, block.conv1x1(means_of_sides(gx))))
    return attended(gx, x1, block.conv3x3(gx), block.cross_spatial).reshape(x.shape)


class _Adapted(nn.Module):
    """As LoRA wraps a layer: without a weight and a bias of its own."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer
        self.more = nn.Conv2d(layer.in_channels, layer.out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.more(x)


class _Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def _forward_replaced(block):
    layer = block.conv1x1
    forward = layer.forward
    layer.forward = lambda x: forward(x) * 0.5


CHANGES = {
    "hook": lambda b: b.conv3x3.register_forward_hook(lambda m, args, out: out * 0.5),
    "pre-hook": lambda b: b.gn.register_forward_pre_hook(lambda m, args: (args[0].abs(),)),
    "replaced forward": _forward_replaced,
    "old weight_norm": lambda b: nn.utils.weight_norm(b.conv3x3),
    "old spectral_norm": lambda b: nn.utils.spectral_norm(b.conv1x1),
    "weight_norm": lambda b: nn.utils.parametrizations.weight_norm(b.conv3x3),
    "pruning": lambda b: prune.random_unstructured(b.conv3x3, "weight", 0.5),
    "adapter": lambda b: setattr(b, "conv3x3", _Adapted(b.conv3x3)),
    "subclass": lambda b: setattr(b, "conv1x1", _Doubled(16, 16, 1)),
    "padding mode": lambda b: setattr(b, "conv3x3", nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular")),
    "dilation": lambda b: setattr(b, "conv3x3", nn.Conv2d(16, 16, 3, padding=2, dilation=2)),
    "depthwise": lambda b: setattr(b, "conv3x3", nn.Conv2d(16, 16, 3, padding=1, groups=16)),
    "no bias": lambda b: setattr(b, "conv1x1", nn.Conv2d(16, 16, 1, bias=False)),
    "another norm": lambda b: setattr(b, "gn", nn.GroupNorm(4, 16)),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("cross_spatial", [True, False])
def test_layers_that_are_not_the_plain_ones_are_called(change, cross_spatial):
    block, x = randomise(EMA(64, groups=4, cross_spatial=cross_spatial)).eval(), noise(2, 64, 5, 6)
    plain = block(x)
    CHANGES[change](block)
    expected = by_hand(block, x)
    assert not torch.allclose(expected, plain, atol=1e-5) or "norm" in change, "the change changes something"
    found = block(x)
    torch.testing.assert_close(found, expected)
    parameters = [p for p in block.parameters() if p.requires_grad]
    grads = torch.autograd.grad(found.sum(), parameters)
    for one, other in zip(grads, torch.autograd.grad(by_hand(block, x).sum(), parameters)):
        torch.testing.assert_close(one, other)


def test_a_hook_on_all_modules_sees_the_layers():
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, args, out: seen.append(type(m)))
    try:
        ema_block()(noise(1, 64, 4, 4))
    finally:
        handle.remove()
    assert seen == [nn.Conv2d, nn.GroupNorm, nn.Conv2d, EMA]


@pytest.mark.parametrize("kind", [EMA, CBAM], ids=["EMA", "CBAM"])
def test_weights_that_a_hook_brings(kind):
    """As accelerate's cpu_offload: parameters are on the meta device, and loaded around each layer's forward."""
    block, x = block_of(kind), noise(1, 64, 4, 6)
    expected = block(x)
    values = copy.deepcopy(block.state_dict())
    block.to("meta")
    for name, layer in block.named_modules():
        if layer._parameters:
            _bring(layer, {key: values[f"{name}.{key}"] for key in layer.state_dict()})
    with torch.no_grad():
        torch.testing.assert_close(block(x), expected)


def _bring(layer, state):
    forward = layer.forward
    layer.forward = lambda *args: torch.func.functional_call(_Called(layer, forward), _prefixed(state), args)


class _Called(nn.Module):
    def __init__(self, layer, function):
        super().__init__()
        self.layer, self.function = layer, function

    def forward(self, *args):
        return self.function(*args)


def _prefixed(state):
    return {f"layer.{key}": value for key, value in state.items()}


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.parametrize("change", ["adapter", "depthwise", "no bias", "another norm"])
def test_torchscript_calls_them_too(change):
    block, x = ema_block(), noise(2, 64, 5, 6)
    CHANGES[change](block)
    whole = nn.Sequential(nn.Identity(), block)
    torch.testing.assert_close(torch.jit.script(whole)(x), block(x))
    assert type(block) is EMA


@every_form
def test_gates_that_were_replaced_are_called(form):
    block, x = block_of(CBAM), noise(2, 64, 5, 6)
    block.channel_gate = nn.Sequential(block.channel_gate)
    with dispatch.forced(form):
        torch.testing.assert_close(block(x), block.spatial_gate(block.channel_gate(x)))


# ------------------------------------------------------------------------------------------------------- operators


def _operator_calls(layout):
    ops = torch.ops.yolov5_ema
    x, grad = (noise(2, 6, 4, 5).to(memory_format=layout) for _ in range(2))
    shapes = ((3, 3, 1, 1), (3,), (3,), (3,), (3, 3, 3, 3), (3,))
    parameters = [noise(*s).to(memory_format=layout) if len(s) == 4 else noise(*s) for s in shapes]
    stats = ops.ema_forward(x, *parameters, 2, 1e-5)[1]
    yield ops.ema_forward, (x, *parameters, 2, 1e-5)
    yield ops.ema_backward, (grad, x, stats, *parameters, 2, 1e-5)
    gate_c, gate_s, weight = noise(2, 6), noise(2, 1, 4, 5), noise(1, 2, 7, 7)
    (pooled, ties), (maps, map_ties) = ops.cbam_pool(x, True), ops.cbam_maps(x, gate_c, True)
    for count_ties in (True, False):
        yield ops.cbam_pool, (x, count_ties)
        yield ops.cbam_maps, (x, gate_c, count_ties)
    yield ops.cbam_apply, (x, gate_c, gate_s)
    yield ops.cbam_apply_backward, (grad, x, gate_c, gate_s)
    yield ops.cbam_maps_backward, (maps, x, gate_c, maps, map_ties)
    yield ops.cbam_input_backward, (x, gate_c, gate_s, maps, map_ties, pooled[1], ties, grad, pooled, maps)
    yield ops.cbam_convolve, (maps, weight)
    yield ops.cbam_convolve_backward, (gate_s, maps, weight)


@pytest.mark.skipif(native.library().handle is None, reason=native.library().reason)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_operators_are_well_formed(layout):
    for operator, arguments in _operator_calls(layout):
        checks = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(operator, arguments, test_utils=checks)


@pytest.mark.slow
@pytest.mark.skipif(native.library().handle is None, reason=native.library().reason)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_operators_are_well_formed_under_all_checks(layout):
    for operator, arguments in _operator_calls(layout):
        torch.library.opcheck(operator, arguments)


@both_blocks
@pytest.mark.parametrize("grad", [False, True])
def test_a_graph_recorded_by_make_fx(kind, grad):
    block, x = block_of(kind), noise(2, 64, 5, 6)
    with torch.set_grad_enabled(grad), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = make_fx(block)(torch.rand(2, 64, 5, 6))
        torch.testing.assert_close(graph(x), block(x))


@both_blocks
def test_a_real_input_among_fake_tensors(kind):
    block, x = block_of(kind), noise(2, 64, 5, 6).requires_grad_()
    with FakeTensorMode(allow_non_fake_inputs=True):
        out = block(x)
    assert type(out).__name__ == "FakeTensor" and out.shape == x.shape


@pytest.mark.slow
@both_blocks
def test_training_compiled_in_channels_last(kind):
    block = block_of(kind).to(memory_format=torch.channels_last)
    x = noise(2, 64, 6, 5).to(memory_format=torch.channels_last)
    torch.compiler.reset()
    found = torch.autograd.grad(torch.compile(block)(x).square().sum(), list(block.parameters()))
    expected = torch.autograd.grad(block(x).square().sum(), list(block.parameters()))
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
