"""What every registered block must do. A new block is tested here as soon as it is registered."""

from __future__ import annotations

import copy
import doctest
import importlib
import inspect
import math
import pickle
import re
import warnings
from pathlib import Path

import pytest
import torch
from opencv_networks import opencv_networks
from public_layouts import randomise
from torch import nn

from yolov5_ema import blocks
from yolov5_ema.blocks import block_info, get_block, list_blocks
from yolov5_ema.upstream.openvino_core import openvino_core

CHANNELS = 128  # the smallest number of channels that every block accepts with its default options
SPATIAL = [(1, 1, 7), (2, 5, 1), (1, 1, 1), (3, 4, 6)]  # N, H, W

# Biases before a softmax over the pixels, which it does not depend on: their gradient is 0 but for rounding.
INERT = {
    *(("A2", "convB.bias"), ("GC", "conv_mask.bias"), ("NonLocal", "phi.bias")),
    *(("timm.gc", "conv_attn.bias"), ("timm.gca", "conv_attn.bias"), ("timm.nl", "p.bias")),
}
# Parameters whose gradient is by design not the derivative of the output.
DETACHED = {("NAM", "bn.weight")}

# blocks that have nothing to train
NO_PARAMETERS = {"SimAM"}
# options that make another function of a block
VARIANTS = {
    "EMA-norm_groups": {"norm_groups": 1},
    "EMA-residual": {"residual": True},
    "EMA-depthwise": {"depthwise": True},
    "EMA-all": {"norm_groups": 2, "residual": True, "depthwise": True},
}
# blocks that add to their input or mix channels, or whose factors are not between 0 and 1
NOT_GATES = {"A2", "BAM", "CPCA", "EMA-residual", "EMA-all", "GC", "LSKA", "NonLocal", "ParNet"}


def create_block(name, channels, **options):
    """A block, by its name or as one of the `VARIANTS`."""
    return blocks.create_block(name.split("-")[0], channels, **VARIANTS.get(name, {}), **options)


def assert_same(found, expected, tolerance=3e-5):
    """Equal but for rounding, measured by the largest value: random weights make those of some blocks large."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=tolerance * max(1.0, expected.abs().max().item()))


# each option alone takes as long as all together
OPTIONS_ALONE = [pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS if name != "EMA-all"]
every_block = pytest.mark.parametrize("name", [*list_blocks(), "EMA-all", *OPTIONS_ALONE])
every_class = pytest.mark.parametrize("name", list_blocks())
both_modes = pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
ignore_jit_warnings = pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")


def noise(*shape, dtype=torch.float32, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def random_block(name, training=False, **options):
    return randomise(create_block(name, CHANNELS, **options)).train(training)


@every_block
@both_modes
@pytest.mark.parametrize("spatial", SPATIAL, ids=str)
def test_keeps_shape_and_input(name, spatial, training):
    n, height, width = spatial
    x = noise(n, CHANNELS, height, width)
    before = x.clone()
    out = random_block(name, training)(x)
    assert out.shape == x.shape and out.dtype == x.dtype
    assert out.isfinite().all()
    assert torch.equal(x, before), "the input was changed in place"


@every_block
def test_is_a_gate(name):
    """Each output value is an input value, possibly shuffled, times something between 0 and 1."""
    x = noise(2, CHANNELS, 4, 5)
    out = random_block(name)(x)
    assert name in NOT_GATES or out.abs().max() <= x.abs().max()
    assert not torch.allclose(out, x)


@every_block
def test_images_of_a_batch_do_not_mix_in_eval(name):
    block = random_block(name)
    x = noise(3, CHANNELS, 4, 5)
    assert_same(block(x), torch.cat([block(image) for image in x.split(1)]))


@every_block
def test_every_parameter_gets_a_gradient(name):
    block = random_block(name)
    x = noise(2, CHANNELS, 4, 6).requires_grad_()
    block(x).square().mean().backward()
    assert x.grad is not None and x.grad.isfinite().all() and x.grad.abs().max() > 0
    parameters = dict(block.named_parameters())
    assert bool(parameters) != (name in NO_PARAMETERS)
    for key, parameter in parameters.items():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert (parameter.grad.abs().max() > 1e-9) or (name, key) in INERT, key


@every_block
@both_modes
@pytest.mark.parametrize("spatial", SPATIAL, ids=str)
def test_gradients_are_finite_at_any_size(name, spatial, training):
    n, height, width = spatial
    block = random_block(name, training)
    x = noise(n, CHANNELS, height, width).requires_grad_()
    block(x).square().mean().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())


@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(n, marks=pytest.mark.slow if n == "CPCA" else ()) for n in list_blocks()),
        "EMA-all",
        *OPTIONS_ALONE,
    ],
)
@both_modes
def test_gradcheck(name, training):
    block = random_block(name, training, dtype=torch.float64)
    checked = {k: p for k, p in block.named_parameters() if (name, k) not in DETACHED}
    fixed = {k: v.detach() for k, v in block.state_dict().items() if k not in checked}
    x = noise(2, CHANNELS, 2, 3, dtype=torch.float64).requires_grad_()

    def run(x, *values):
        state = {k: v.clone() for k, v in fixed.items()}
        return torch.func.functional_call(block, {**state, **dict(zip(checked, values))}, (x,))

    assert torch.autograd.gradcheck(run, (x, *checked.values()), fast_mode=True)


@every_block
@both_modes
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("scale", [1e3, 3e4])
def test_half_precision_is_finite_on_large_inputs(name, dtype, scale, training):
    block = create_block(name, CHANNELS).to(dtype).train(training)
    flat = torch.full((1, CHANNELS, 8, 8), scale)
    signs = noise(2, CHANNELS, 8, 8).sign() * scale
    inputs = [flat, signs]
    if scale > 1e4:  # the sum of 40 x 40 of these overflows in float16
        inputs.append(noise(1, CHANNELS, 40, 40).abs().clamp(max=1) * scale)
    for x in inputs:
        out = block(x.to(dtype))
        assert out.dtype == dtype
        assert out.isfinite().all()


@every_block
@both_modes
@pytest.mark.parametrize("seed", range(4))
def test_float16_overflow_saturates(name, seed, training):
    """The weights are so large that products overflow in float16; the infinities must not give NaN."""
    block = randomise(create_block(name, CHANNELS), seed)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.mul_(40)
        for key, buffer in block.named_buffers():
            if key.endswith("running_var"):
                buffer.zero_()
    block = block.to(torch.float16).train(training)
    signs = noise(2, CHANNELS, 4, 4, seed=seed).sign() * 3e4
    for x in (signs, signs.abs(), signs[:1, :, :1, :1]):
        assert block(x.to(torch.float16)).isfinite().all()


@every_block
def test_half_precision_gradients_survive_large_inputs(name):
    torch.manual_seed(0)
    block = create_block(name, CHANNELS).to(torch.float16).eval()
    x = (noise(1, CHANNELS, 8, 8) * 1e4).clamp(-3e4, 3e4).to(torch.float16).requires_grad_()
    block(x).float().mean().backward()
    assert x.grad.isfinite().all()
    for parameter in block.parameters():  # a correct derivative may exceed float16, but none may be NaN
        assert not parameter.grad.isnan().any()


@every_block
@both_modes
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float16, 6e-3), (torch.bfloat16, 5e-2)], ids=["float16", "bfloat16"]
)
def test_half_precision_is_close_to_float32(name, dtype, tolerance, training):
    half = create_block(name, CHANNELS).to(dtype).train(training)
    full = copy.deepcopy(half).float()
    x = noise(2, CHANNELS, 16, 16).to(dtype)
    torch.testing.assert_close(half(x).float(), full(x.float()), atol=tolerance, rtol=tolerance)


@every_block
@both_modes
def test_autocast_keeps_the_inputs_dtype(name, training):
    block = create_block(name, CHANNELS).train(training)
    x = noise(2, CHANNELS, 8, 8)
    expected = copy.deepcopy(block)(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, from_half = copy.deepcopy(block)(x), copy.deepcopy(block)(x.bfloat16())
    assert out.dtype == torch.float32 and from_half.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected, atol=5e-2, rtol=5e-2)
    torch.testing.assert_close(from_half.float(), expected, atol=1e-1, rtol=5e-2)


@every_block
def test_channels_last_gives_the_same(name):
    block = random_block(name)
    x = noise(2, CHANNELS, 6, 5)
    out = block.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert_same(out, random_block(name)(x))


@every_block
def test_non_contiguous_input_gives_the_same(name):
    block = random_block(name)
    x = noise(2, 5, CHANNELS, 6).transpose(1, 2)
    torch.testing.assert_close(block(x), block(x.contiguous()))


@ignore_jit_warnings
@every_block
@both_modes
def test_scripted_is_traced_is_eager(name, training):
    block = random_block(name, training)
    x = noise(2, CHANNELS, 4, 6)
    scripted = torch.jit.script(copy.deepcopy(block))
    with warnings.catch_warnings():
        # detectors are exported in eval mode, where nothing may depend on the example input
        warnings.simplefilter("ignore" if training else "error", torch.jit.TracerWarning)
        traced = torch.jit.trace(copy.deepcopy(block), x, check_trace=False)
    for n, height, width in [(2, 4, 6), (3 if training else 1, 7, 3)]:  # one image may have no batch statistics
        x = noise(n, CHANNELS, height, width, seed=2)
        expected = copy.deepcopy(block)(x)
        torch.testing.assert_close(copy.deepcopy(scripted)(x), expected)
        torch.testing.assert_close(copy.deepcopy(traced)(x), expected)


@ignore_jit_warnings
@every_block
def test_scripted_takes_a_single_pixel_in_training(name):
    block = random_block(name, training=True)
    x = noise(1, CHANNELS, 1, 1)
    torch.testing.assert_close(torch.jit.script(copy.deepcopy(block))(x), block(x))


@every_block
def test_deepcopy_and_pickle(name):
    block = random_block(name)
    x = noise(2, CHANNELS, 4, 3)
    for twin in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert type(twin) is type(block) and repr(twin) == repr(block)
        assert torch.equal(twin(x), block(x))
        assert all(a is not b for a, b in zip(twin.parameters(), block.parameters()))


@every_block
def test_instances_share_nothing(name):
    first, second = create_block(name, CHANNELS), create_block(name, CHANNELS)
    assert not {id(m) for m in first.modules()} & {id(m) for m in second.modules()}
    assert not {id(p) for p in first.parameters()} & {id(p) for p in second.parameters()}


@every_block
def test_dtype_and_device_are_honoured(name):
    parameters = inspect.signature(get_block(name.split("-")[0])).parameters
    for keyword in ("device", "dtype"):
        assert parameters[keyword].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters[keyword].default is None
    block = create_block(name, CHANNELS, device="meta", dtype=torch.float64)
    tensors = [*block.parameters(), *(b for b in block.buffers() if b.is_floating_point())]
    assert {t.dtype for t in tensors} <= {torch.float64}
    assert {t.device.type for t in [*tensors, *block.buffers()]} <= {"meta"}
    out = block(torch.empty(2, CHANNELS, 4, 3, device="meta", dtype=torch.float64))
    assert out.shape == (2, CHANNELS, 4, 3) and out.device.type == "meta"
    assert {p.dtype for p in create_block(name, CHANNELS).parameters()} <= {torch.float32}


@every_class
def test_repr_names_the_options(name):
    text = repr(create_block(name, CHANNELS))
    assert re.match(rf"{name}\(\s*{CHANNELS}\b", text)
    for option, default in block_info(name).options:
        if default is not None:
            assert f"{option}={default}" in text


@pytest.fixture
def deterministic():
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@every_block
@both_modes
def test_deterministic_forward_and_backward(name, training, deterministic):
    results = []
    for _ in range(2):
        block = random_block(name, training)
        x = noise(2, CHANNELS, 9, 7).requires_grad_()
        out = block(x)
        out.square().mean().backward()
        results.append([out.detach(), x.grad, *(p.grad for p in block.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results))


@ignore_jit_warnings
@every_block
def test_no_adaptive_pooling(name):
    """Adaptive pooling: its backward raises on CUDA under deterministic algorithms, and some exporters fail on it."""
    block = random_block(name)
    assert not [type(m).__name__ for m in block.modules() if "adaptive" in type(m).__name__.lower()]
    graph = torch.jit.trace(block, noise(1, CHANNELS, 4, 6), check_trace=False).inlined_graph
    assert "adaptive" not in str(graph).lower()


@every_block
def test_yolov5_optimizer_finds_every_parameter(name):
    """YOLOv5 v6.0 trains only parameters of modules that are called ``weight`` or ``bias``."""
    block = create_block(name, CHANNELS)
    found = set()
    for module in block.modules():
        for attribute in ("weight", "bias"):
            value = getattr(module, attribute, None)
            if isinstance(value, nn.Parameter):
                found.add(id(value))
    missed = [key for key, parameter in block.named_parameters() if id(parameter) not in found]
    assert not missed


@every_block
def test_batch_norms_are_plain(name):
    """YOLOv5 finds norms by their exact type, to set eps and momentum and to exclude them from weight decay."""
    for module in create_block(name, CHANNELS).modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert type(module) is nn.BatchNorm2d


@every_class
def test_documented(name):
    cls, info = get_block(name), block_info(name)
    assert re.search(r"arXiv \d{4}\.\d{5}|PMLR \d+|doi 10\.", info.paper)
    assert len(info.summary) > 10
    for heading in ("Args:", "Shape:", "Raises:", ">>>", "Parameters:", "arXiv"):
        assert heading in cls.__doc__, heading
    module_doc = importlib.import_module(cls.__module__).__doc__
    for mention in ("Paper:", "arXiv", "https://", "Deviations"):
        assert mention in module_doc, mention


@pytest.mark.parametrize("module", ["common", "registry", *(get_block(n).__module__ for n in list_blocks())])
def test_doctests(module):
    path = module if "." in module else f"yolov5_ema.blocks.{module}"
    result = doctest.testmod(importlib.import_module(path))
    assert result.attempted > 0 and result.failed == 0


# -- how many parameters --

C = 512
AT_512 = [
    ("CA", {}, 25_648),
    ("CA", {"reduction": 16}, 50_272),
    ("CBAM", {}, 33_412),
    ("ECA", {}, 5),
    ("ECA", {"kernel_size": 3}, 3),
    ("EMA", {}, 2_624),
    ("EMA", {"cross_spatial": False}, 2_624),
    ("EMA", {"norm_groups": 1}, 2_624),
    ("EMA", {"residual": True}, 2_624 + 1),
    ("EMA", {"depthwise": True}, 16**2 + 13 * 16),
    ("EMA", {"norm_groups": 2, "residual": True, "depthwise": True}, 464 + 1),
    ("NAM", {}, 1_024),
    ("SA", {}, 24),
    ("SE", {}, 32_768),
    ("SE", {"bias": True}, 33_312),
    ("SGE", {}, 2 * 64),
    ("SRM", {}, 4 * 512),
    ("SimAM", {}, 0),
    ("Triplet", {}, 3 * (2 * 7**2 + 2)),
    ("Triplet", {"spatial": False}, 2 * (2 * 7**2 + 2)),
    ("PolarizedSA", {}, 3 * C * C // 2 + C + C // 2 * 64 + 3 * 64 + 64 * C + C),
    ("PolarizedSA", {"mode": "parallel"}, 2 * C * C + C),
    ("GC", {}, C + 1 + 2 * C * 32 + 3 * 32 + C),
    ("GC", {"fusion": "mul"}, C + 1 + 2 * C * 32 + 3 * 32 + C),
    ("BAM", {}, 3 * C * 32 + C + 18 * 32**2 + 13 * 32 + 1),
    ("GAM", {}, 2 * C * 128 + 128 + C + 2 * 49 * C * 128 + 3 * 128 + 3 * C),
    ("ParNet", {}, 11 * C * C + 6 * C),
    ("ELA", {}, 7 * C + 2 * C),
    ("ELA", {"width": 8}, 8 * 7 * C + 2 * C),
    ("MLCA", {}, 2 * 5),
    ("LSKA", {}, C * C + C + 2 * C * (3 + 3 + 2)),
    ("LSKA", {"kernel_size": 53}, C * C + C + 2 * C * (5 + 17 + 2)),
    ("CPCA", {}, C * C + C + 2 * C * 128 + 128 + C + 110 * C),
    ("A2", {}, 4 * C * 128 + 3 * 128 + C),
    ("NonLocal", {}, 4 * C * 256 + 3 * 256 + 3 * C),
]


def count(block):
    return sum(p.numel() for p in block.parameters())


@pytest.mark.parametrize(("name", "options", "expected"), AT_512)
def test_parameters_at_512_channels(name, options, expected):
    assert count(create_block(name, 512, **options)) == expected


@every_class
def test_the_docs_give_the_count(name):
    expected = count(create_block(name, 512))
    rows = (Path(__file__).parents[2] / "docs/blocks.md").read_text().splitlines()
    row = next(row for row in rows if row.startswith(f"| `{name}` "))
    said = row.split("|")[3].split()[-1]
    assert said == (f"{expected:,}" if expected else "none")
    assert f"{expected:,}" in get_block(name).__doc__ or name in ("EMA", "ECA", *NO_PARAMETERS)


def test_every_block_has_a_parameter_count():
    assert {name for name, _, _ in AT_512} == set(list_blocks())


@pytest.mark.parametrize(
    ("channels", "groups"), [(64, 32), (144, 36), (256, 32), (320, 32), (640, 32), (96, 8), (7, 1), (5, 5)]
)
def test_parameters_of_ema_in_closed_form(channels, groups):
    k = channels // groups
    assert count(create_block("EMA", channels, groups=groups)) == 10 * k**2 + 4 * k
    depthwise = create_block("EMA", channels, groups=groups, depthwise=True)
    assert count(depthwise) == k**2 + 13 * k and count(depthwise.conv3x3) == 9 * k + k
    assert count(create_block("EMA", channels, groups=groups, residual=True)) == 10 * k**2 + 4 * k + 1


def test_parameters_of_the_published_models():
    """The parameters that blocks add to the paper's detectors: two places in YOLOv5s, five in YOLOv5x."""
    small, large = (256, 512), (640, 320, 320, 320, 640)
    assert sum(count(create_block("EMA", c)) for c in small) == 7_238_685 - 7_235_389
    assert sum(count(create_block("CA", c)) for c in small) == 7_267_717 - 7_235_389
    assert sum(count(create_block("CBAM", c)) for c in small) == 7_277_365 - 7_235_389
    assert sum(count(create_block("SA", c)) for c in small) == 7_235_425 - 7_235_389
    assert sum(count(create_block("ECA", c, kernel_size=3)) for c in small) == 7_235_395 - 7_235_389
    assert sum(count(create_block("EMA", c)) for c in large) == 11_280
    assert sum(count(create_block("CA", c)) for c in large) == 110_290
    assert sum(count(create_block("CBAM", c)) for c in large) == 143_680


@pytest.mark.parametrize("channels", [1, 2, 8, 16, 32, 64, 128, 192, 256, 320, 512, 640, 1024, 2048])
def test_eca_kernel_follows_the_papers_rule(channels):
    kernel = create_block("ECA", channels).kernel_size
    t = int((math.log2(channels) + 1) / 2)
    assert kernel % 2 == 1 and kernel in (t, t + 1)


@every_block
@both_modes
def test_traced_by_fx_at_any_size(name, training):
    """Its graph does not contain the size or dtype of a certain input, and computes the same as the block."""
    block = random_block(name, training)
    traced = torch.fx.symbolic_trace(copy.deepcopy(block))
    for shape in [(2, CHANNELS, 6, 4), (3, CHANNELS, 5, 9)]:
        x = noise(*shape)
        torch.testing.assert_close(traced(x), block(x), rtol=1e-5, atol=2e-6)


@every_block
@both_modes
def test_traced_by_fx_in_half_precision(name, training):
    traced = torch.fx.symbolic_trace(random_block(name, training)).half()
    found = traced(noise(2, CHANNELS, 6, 4).half() * 1e4)
    assert found.dtype == torch.float16 and found.isfinite().all()


@every_block
def test_opencv_runs_its_onnx(name, tmp_path):
    pytest.importorskip("onnx", reason="torch.onnx needs onnx")
    block, x = random_block(name), noise(1, CHANNELS, 6, 4)
    file = str(tmp_path / "block.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(block, x, file, dynamo=False, opset_version=12)
    for network in opencv_networks(file):
        network.setInput(x.numpy())
        assert_same(torch.from_numpy(network.forward()), block(x).detach())


@pytest.mark.slow
@every_block
@pytest.mark.parametrize("exporter", ["older", "dynamo"])
def test_onnx_and_openvino_at_sizes_that_were_not_traced(name, exporter, tmp_path):
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript", reason="the dynamo-based exporter needs onnxscript")
    pytest.importorskip("openvino")
    block, traced, file = random_block(name), noise(2, CHANNELS, 6, 4), str(tmp_path / "block.onnx")
    if exporter == "dynamo":
        free = torch.export.Dim.DYNAMIC
        sizes = ({0: free, 2: free, 3: free},)
        torch.onnx.export(block, (traced,), file, dynamo=True, verbose=False, dynamic_shapes=sizes)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sizes = {key: {0: "n", 2: "h", 3: "w"} for key in "xy"}
            names = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": sizes}
            torch.onnx.export(block, traced, file, dynamo=False, opset_version=12, **names)
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    compiled = openvino_core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for n, height, width in [(1, 6, 4), (2, 7, 5), (1, 1, 9), (1, 8, 1), (1, 1, 1), (1, 33, 21)]:
        x = noise(n, CHANNELS, height, width)
        expected = block(x).detach()
        for found in (session.run(None, {session.get_inputs()[0].name: x.numpy()})[0], compiled([x.numpy()])[0]):
            assert_same(torch.from_numpy(found), expected, 1e-4)
