"""timm's attention layers as blocks: timm's own values, the contract of all blocks as far as said, checkpoints."""

from __future__ import annotations

import importlib
import inspect
import itertools
import json
import pickletools
import re
import sys
import zipfile
from pathlib import Path

import cv2
import pytest
import torch
from blocks import test_blocks_contract as contract
from conftest import randomise, run_cli, small_cfg
from offline_ultralytics import offline
from opencv_networks import opencv_networks
from small_ultralytics import output_of, save, small_model
from small_ultralytics import small_cfg as small_ultralytics_cfg
from torch import nn

import yolov5_ema
from yolov5_ema.blocks import block_info, create_block, get_block, list_blocks, registry
from yolov5_ema.blocks.by_timm import LAYERS, LEFT_OUT, LIMITS, OfTimm, PooledBatchNorm
from yolov5_ema.cfgs.generator import build_cfg
from yolov5_ema.checkpoints import loading as checkpoints
from yolov5_ema.checkpoints.allowed import plain_names
from yolov5_ema.cli.main import main
from yolov5_ema.errors import CheckpointError, ConfigError, UserError
from yolov5_ema.upstream.ultralytics import located
from yolov5_ema.weights.identity import start_as_identity
from yolov5_ema.weights.transfer import transfer

layers = pytest.importorskip("timm.layers")

EVERY_DAY = ("timm.eca", "timm.gca")
DOCS = Path(__file__).parents[2] / "docs/blocks.md"
every_layer = pytest.mark.parametrize("name", LAYERS)


def noise(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def theirs(name, channels, **options):
    return layers.create_attn(name.removeprefix("timm."), channels, **options)


# -- which ones there are --


def test_every_attention_layer_of_timm_is_a_block_or_left_out():
    source = inspect.getsource(importlib.import_module("timm.layers.create_attn"))
    named = {f"timm.{name}" for name in re.findall(r"attn_type == '(\w+)'", source)}
    assert named == LAYERS.keys() | LEFT_OUT.keys() and not LAYERS.keys() & LEFT_OUT.keys()
    assert not set(LAYERS) & set(list_blocks()) and set(LAYERS) <= set(list_blocks(on_demand=True))


def test_the_layers_that_are_left_out_cannot_be_blocks():
    with pytest.raises(TypeError):
        theirs("timm.ge", 64)
    with pytest.raises(AssertionError):
        theirs("timm.bottleneck", 64)
    for name, size in (("timm.halo", 8), ("timm.bat", 7)):
        layer = theirs(name, 64).eval()
        assert layer(noise(1, 64, 2 * size, size)).shape == (1, 64, 2 * size, size)
        with pytest.raises(AssertionError):
            layer(noise(1, 64, 20, 20))  # YOLOv5 at 640 pixels and stride 32


@every_layer
def test_values_and_state_dicts_are_those_of_timm(name):
    """Bit for bit, in evaluation and in training."""
    reference, block = randomise(theirs(name, 64)), create_block(name, 64)
    assert isinstance(block, type(reference)) and isinstance(block, OfTimm)
    block.load_state_dict(reference.state_dict(), strict=True)
    for training in (False, True):
        x = noise(2, 64, 7, 5)
        assert torch.equal(block.train(training)(x), reference.train(training)(x))
    for key, value in reference.state_dict().items():
        assert torch.equal(block.state_dict()[key], value) or key.endswith("num_batches_tracked"), key


def test_sk_trains_with_one_image():
    """YOLOv5 passes one image through each new model while it is in training mode."""
    block, x = create_block("timm.sk", 64).train(), noise(1, 64, 8, 8)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        theirs("timm.sk", 64).train()(x)
    assert type(block.attn.bn) is PooledBatchNorm
    before = block.attn.bn.running_mean.clone()
    assert block(x).shape == x.shape and torch.equal(block.attn.bn.running_mean, before)
    block(noise(2, 64, 8, 8))
    assert not torch.equal(block.attn.bn.running_mean, before)


OTHER_VALUES = {
    **{"rd_ratio": 0.5, "rd_channels": 24, "rd_divisor": 48, "se_factor": 1.0, "spatial_kernel_size": 3},
    **{"kernel_size": 5, "r": 3, "num_heads": 2, "dim_head": 8, "groups": 2, "radix": 1},
}


@pytest.mark.parametrize(
    ("name", "option"), [(name, option) for name in LAYERS for option in LAYERS[name].options.split()]
)
def test_an_option_means_what_it_means_in_timm(name, option):
    default = dict(block_info(name).options)[option]
    other = not default if isinstance(default, bool) else OTHER_VALUES[option]
    block, reference = randomise(create_block(name, 256, **{option: other})), theirs(name, 256, **{option: other})
    plain = randomise(create_block(name, 256))
    shapes = [{key: value.shape for key, value in one.state_dict().items()} for one in (block, reference, plain)]
    assert shapes[0] == shapes[1]
    reference.load_state_dict(block.state_dict())
    x = noise(1, 256, 6, 5)
    assert torch.equal(block.eval()(x), reference.eval()(x))
    assert shapes[0] != shapes[2] or not torch.equal(block(x), plain.eval()(x)), "the option changes nothing"
    assert f"{option}={other}" in repr(block) and repr(block).startswith(f"{name}(\n  256, ")


@pytest.mark.parametrize(
    ("name", "channels", "options", "message"),
    [
        ("timm.se", 64, {"rd_ratio": 16}, "timm.se: rd_ratio must be from 0 to 1, got 16"),
        ("timm.se", 64, {"bias": 1}, "timm.se: bias must be True or False, got 1 (int)"),
        ("timm.se", 64, {"rd_channels": 0}, "timm.se: rd_channels must be at least 1, got 0"),
        ("timm.ela", 64, {"kernel_size": 4}, "timm.ela: kernel_size must be odd, got 4; use 3 or 5"),
        ("timm.lambda", 64, {"r": 2}, "timm.lambda: r must be odd, got 2; use 1 or 3"),
        ("timm.lambda", 64, {"num_heads": 3}, "timm.lambda: timm cannot build it for 64 channels with num_heads=3"),
        ("timm.sk", 7, {}, "timm.sk: timm cannot build it for 7 channels"),
        ("timm.sk", 64, {"groups": 3}, "for 64 channels with groups=3: in_channels must be divisible"),
        ("timm.eca", 64.0, {}, "timm.eca: channels must be an integer, got 64.0 (float)"),
        ("timm.eca", 64, {"kernel_size": 3}, "timm.eca has no option 'kernel_size'; it has: none"),
        ("timm.bat", 64, {}, "timm.bat is not a block: height and width must be multiples"),
        ("timm.ecca", 64, {}, "no block is named 'timm.ecca'. Did you mean timm.eca"),
    ],
)
def test_what_is_refused(name, channels, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        create_block(name, channels, **options)


# -- the contract of all blocks --


def runs_in_opencv_behind_a_convolution(name, tmp_path):
    """OpenCV 5 computes additions and convolutions together, which fails for some layers."""
    pytest.importorskip("onnx")
    model, x = nn.Sequential(nn.Conv2d(128, 128, 1), create_block(name, 128)).eval(), noise(1, 128, 8, 6)
    torch.onnx.export(model, x, tmp_path / "model.onnx", dynamo=False, opset_version=12)
    for network in opencv_networks(tmp_path / "model.onnx"):
        network.setInput(x.numpy())
        torch.testing.assert_close(torch.from_numpy(network.forward()), model(x).detach(), rtol=1e-4, atol=1e-4)


TESTS_OF_LIMITS = {
    "gate": (contract.test_is_a_gate,),
    "pixel": (
        contract.test_keeps_shape_and_input,
        contract.test_gradients_are_finite_at_any_size,
        contract.test_scripted_takes_a_single_pixel_in_training,
    ),
    "float16": (
        contract.test_half_precision_is_finite_on_large_inputs,
        contract.test_float16_overflow_saturates,
        contract.test_half_precision_gradients_survive_large_inputs,
        contract.test_traced_by_fx_in_half_precision,
    ),
    "precision": (contract.test_half_precision_is_close_to_float32,),
    "autocast": (contract.test_autocast_keeps_the_inputs_dtype,),
    "tracer": (contract.test_scripted_is_traced_is_eager,),
    "channels_last": (contract.test_channels_last_gives_the_same,),
    "norms": (contract.test_batch_norms_are_plain,),
    "opencv": (contract.test_opencv_runs_its_onnx, runs_in_opencv_behind_a_convolution),
    # takes long: see test_onnx_and_openvino
    "openvino": (contract.test_onnx_and_openvino_at_sizes_that_were_not_traced,),
}
ALWAYS = (
    contract.test_images_of_a_batch_do_not_mix_in_eval,
    contract.test_every_parameter_gets_a_gradient,
    contract.test_gradcheck,
    contract.test_non_contiguous_input_gives_the_same,
    contract.test_deepcopy_and_pickle,
    contract.test_instances_share_nothing,
    contract.test_dtype_and_device_are_honoured,
    contract.test_repr_names_the_options,
    contract.test_deterministic_forward_and_backward,
    contract.test_no_adaptive_pooling,
    contract.test_yolov5_optimizer_finds_every_parameter,
    contract.test_traced_by_fx_at_any_size,
)
# about what this package writes about its own blocks
OF_OUR_OWN = {"test_documented", "test_the_docs_give_the_count"}


def failures(test, name, folder):
    """The errors of a contract test for one layer, over all other parameters that the test has."""
    axes = []
    for mark in getattr(test, "pytestmark", ()):
        if mark.name == "parametrize" and mark.args[0] != "name":
            names = [mark.args[0]] if isinstance(mark.args[0], str) else mark.args[0]
            values = [value if isinstance(value, tuple) and len(names) > 1 else (value,) for value in mark.args[1]]
            axes.append([dict(zip(names, value)) for value in values])
    found = []
    for number, combination in enumerate(itertools.product(*axes)):
        given = {key: value for part in combination for key, value in part.items()}
        if "tmp_path" in inspect.signature(test).parameters:
            given["tmp_path"] = folder / f"{test.__name__}-{number}"
            given["tmp_path"].mkdir()
        if "deterministic" in inspect.signature(test).parameters:
            given["deterministic"] = None
        torch.manual_seed(number)
        try:
            test(name, **given)
        except Exception as error:
            found.append((test.__name__, given, repr(error)[:200]))
    return found


def test_every_contract_test_is_tried():
    tests = {key: test for key, test in vars(contract).items() if key.startswith("test_")}
    of_blocks = {key for key, test in tests.items() if list(inspect.signature(test).parameters)[:1] == ["name"]}
    tried = {test.__name__ for test in (*ALWAYS, *itertools.chain(*TESTS_OF_LIMITS.values()))} & tests.keys()
    assert tried == of_blocks - OF_OUR_OWN - {"test_parameters_at_512_channels"}
    assert TESTS_OF_LIMITS.keys() == LIMITS.keys() and {
        key for one in LAYERS.values() for key in one.limits.split()
    } == set(LIMITS)


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in EVERY_DAY else pytest.mark.slow) for name in LAYERS]
)
def test_the_contract_holds_but_for_what_is_said(name, tmp_path, deterministic):
    quick = {key: tests for key, tests in TESTS_OF_LIMITS.items() if key != "openvino"}
    limits = {key for key, tests in quick.items() if any(failures(test, name, tmp_path) for test in tests)}
    elsewhere = {"openvino"} if hasattr(cv2.dnn, "ENGINE_NEW") else {"openvino", "opencv"}
    assert limits == set(LAYERS[name].limits.split()) - elsewhere
    assert not [failure for test in ALWAYS for failure in failures(test, name, tmp_path)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@every_layer
def test_onnx_and_openvino(name, tmp_path):
    found = failures(*TESTS_OF_LIMITS["openvino"], name, tmp_path)
    assert [given["exporter"] for _, given, _ in found] == ["dynamo"] * ("openvino" in LAYERS[name].limits.split())
    assert all("src/inference" in error for *_, error in found)  # raised by OpenVINO, not by ONNX Runtime


C = 512
AT_512 = {
    "timm.cbam": 2 * C * 32 + 2 * 49 + 2,
    "timm.ceca": 5,
    "timm.coord": 3 * C * 24 + 2 * 24,
    "timm.eca": 5,
    "timm.ecam": 2 * 64 + 64 * 5 + 1,
    "timm.ela": 2 * 7 * C + 4 * C,
    "timm.ese": C * C + C,
    "timm.gc": C + 1 + 2 * C * 64 + 3 * 64 + C,
    "timm.gca": C + 1 + 2 * C * 64 + 3 * 64 + C,
    "timm.lambda": 208 * C + 2 * 64 + 2 * 128 + 16 * 81 + 16,
    "timm.lcbam": 2 * C * 32 + 49 + 2,
    "timm.nl": 4 * C * 64 + 3 * 64 + C + 2 * C,
    "timm.scoord": 3 * C * 88 + 88 + 2 * C,
    "timm.se": 2 * C * 32 + 32 + C,
    "timm.sk": 9 * C * C + 4 * C + 3 * C * 32 + 2 * 32,
    "timm.splat": 9 * C * C + C * 256 // 1 + 256 + 256 * 2 * C + 2 * C,
    "timm.strip": 2 * 3 * C,
}


@every_layer
def test_the_docs_give_the_counts_and_the_limits(name):
    count = sum(parameter.numel() for parameter in get_block(name)(C, device="meta").parameters())
    assert count == AT_512[name]
    (row,) = (line for line in DOCS.read_text().splitlines() if line.startswith(f"| `{name}` |"))
    _, _, paper, said, limits, _ = (cell.strip() for cell in row.split("|"))
    assert said == f"{count:,}" and re.findall(r"\d{4}\.\d{5}", LAYERS[name].paper)[0] in paper
    assert limits.replace(",", "") == LAYERS[name].limits


def test_the_docs_say_what_the_limits_mean_and_what_is_left_out():
    text = " ".join(DOCS.read_text().split())
    for key, meaning in LIMITS.items():
        assert f"- {key}: {meaning}" in text, key
    for name, reason in LEFT_OUT.items():
        assert f"- `{name}`: {reason}" in text, name


# -- in detectors, and their checkpoints --

CLASSES = {
    *("TimmCbam", "TimmCeca", "TimmCoord", "TimmEca", "TimmEcam", "TimmEla", "TimmEse", "TimmGc", "TimmGca"),
    *("TimmLambda", "TimmLcbam", "TimmNl", "TimmScoord", "TimmSe", "TimmSk", "TimmSplat", "TimmStrip"),
    "PooledBatchNorm",
}
"""The classes in checkpoints: their names must never change."""


def classes_of_ours(file):
    with zipfile.ZipFile(file) as archive:
        data = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    named = {str(arg).replace(" ", ".") for op, arg, _ in pickletools.genops(data) if op.name == "GLOBAL"}
    home = "yolov5_ema.blocks.by_timm."
    return {name.removeprefix(home) for name in named if name.startswith(home)}


def cfg_with_all():
    """A model YAML of YOLOv5 with a row for each of timm's layers, one after the other."""
    rows = [[-1, 1, "Conv", [32, 6, 4, 2]], [-1, 1, "Conv", [64, 3, 2]]]
    rows += [[-1, 1, name, []] for name in LAYERS]
    return {
        **{"nc": 3, "depth_multiple": 1.0, "width_multiple": 0.5, "anchors": [[10, 13, 16, 30]]},
        **{"backbone": rows, "head": [[[len(rows) - 1], 1, "Detect", ["nc", "anchors"]]]},
    }


def checkpoint_of(model):
    return {"epoch": -1, "model": model, "ema": None, "optimizer": None, "best_fitness": None}


@pytest.fixture(scope="module")
def model_with_all(engine):
    torch.manual_seed(0)
    return engine.module("models.yolo").Model(cfg_with_all())


def test_yolov5_builds_trains_saves_and_loads_a_model_with_all(engine, model_with_all, tmp_path):
    model = model_with_all
    built = [registry.block_of(row) for row in model.model if isinstance(row, OfTimm)]
    assert built == list(LAYERS) and all(row.channels == 32 for row in model.model if isinstance(row, OfTimm))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x = noise(2, 3, 64, 96)
    sum(level.square().mean() for level in model.train()(x)).backward()
    optimizer.step()
    assert all(parameter.grad is not None for parameter in model.parameters())
    file = tmp_path / "all.pt"
    checkpoints.save_checkpoint(checkpoint_of(model.eval()), file, engine=engine)
    assert classes_of_ours(file) == CLASSES
    loaded = checkpoints.load_checkpoint(file, engine=engine)["model"]
    with torch.no_grad():
        assert torch.equal(loaded(x)[0], model(x)[0])


@pytest.fixture(scope="module")
def in_ultralytics(tmp_path_factory):
    with offline(tmp_path_factory.mktemp("config")) as package:
        yolov5_ema.install("ultralytics")
        yield package
        yolov5_ema.uninstall("ultralytics")


def test_ultralytics_builds_saves_and_loads_a_model_with_all(in_ultralytics, tmp_path):
    content = small_ultralytics_cfg("detect", None)
    content["backbone"] = [*content["backbone"], *([-1, 1, name, []] for name in LAYERS)]
    content["head"][0][0] = [3, len(content["backbone"]) - 1]
    model = small_model("detect", cfg=content)
    assert [row.channels for row in model.model if isinstance(row, OfTimm)] == [32] * len(LAYERS)
    file = save(model, tmp_path / "all.pt")
    assert classes_of_ours(file) == CLASSES
    loaded = checkpoints.load_checkpoint(file, engine=located())["model"]
    torch.testing.assert_close(output_of(loaded), output_of(model.half()))


def cfg_with(*names):
    rows = [*cfg_with_all()["backbone"][:2], *([-1, 1, name, []] for name in names)]
    return {**cfg_with_all(), "backbone": rows, "head": [[[len(rows) - 1], 1, "Detect", ["nc", "anchors"]]]}


def test_weights_of_a_model_without_the_blocks_are_transferred(engine, model_with_all):
    plain = engine.module("models.yolo").Model(cfg_with())
    found = transfer(plain, model_with_all)
    assert found.fresh_blocks == list(range(2, 2 + len(LAYERS)))
    own, last = plain.state_dict(), 2 + len(LAYERS)
    assert found.taken == len(own)
    assert torch.equal(found.state[f"model.{last}.m.0.weight"], own["model.2.m.0.weight"])


NOT_GATES = ("timm.lambda", "timm.sk", "timm.splat")


@pytest.mark.parametrize("name", [name for name in LAYERS if name not in NOT_GATES])
def test_zeroed_gates_are_constant_and_learn(name):
    block, x = randomise(create_block(name, 64)).eval(), noise(2, 64, 6, 5)
    block.zero_gate_()
    factor = {"timm.gca": 1.0, "timm.nl": 1.0, **dict.fromkeys(("timm.cbam", "timm.lcbam"), 0.25)}.get(name, 0.5)
    factor = 0.25 if name in ("timm.coord", "timm.ela") else factor
    assert torch.equal(block(x), factor * x)
    block.train()(x).square().sum().backward()
    parts = [block.get_submodule(part) for part in LAYERS[name].last.split()]
    assert all(any(parameter.grad.abs().max() > 0 for parameter in part.parameters()) for part in parts)


def test_layers_without_a_gate_say_so():
    assert {name for name, layer in LAYERS.items() if not layer.last} == set(NOT_GATES)
    with pytest.raises(ValueError, match=r"timm\.sk has no gate that could be constant"):
        create_block("timm.sk", 64).zero_gate_()


def test_a_detector_with_fresh_blocks_of_timm_computes_what_it_computed_before(engine):
    model_of = engine.module("models.yolo").Model
    torch.manual_seed(0)
    plain, model = (model_of(build_cfg(size="n", block=name, nc=3)).eval() for name in ("none", "timm.cbam"))
    found = transfer(plain, model)
    model.load_state_dict(found.state, strict=False)
    assert found.fresh_blocks == [7, 10]
    start_as_identity(model, found.fresh_blocks)
    x = noise(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(model(x)[0], plain(x)[0])


class Called:
    """An object that is unpickled by a call of a function of timm."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def hostile():
    models = importlib.import_module("timm.models")
    return {
        "timm.layers.create_attn.create_attn": Called(layers.create_attn, "se", 8),
        "timm.layers.create_act.get_act_fn": Called(layers.get_act_fn, "relu"),
        "timm.models._factory.create_model": Called(models.create_model, "resnet18"),
        "timm.models._hub.load_state_dict_from_hf": Called(models.load_state_dict_from_hf, "a/b"),
        "timm.layers.drop.DropPath": layers.DropPath(0.1),
        # a part of other blocks than the one in the model
        "timm.layers.norm.LayerNorm2d": layers.LayerNorm2d(8),
        "timm.layers.eca.EcaModule": layers.EcaModule(8),
    }


@pytest.mark.parametrize("named", hostile())
def test_other_names_of_timm_are_refused(engine, tmp_path, named):
    model = engine.module("models.yolo").Model(cfg_with("timm.eca"))
    torch.save({**checkpoint_of(model), "extra": hostile()[named]}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match=re.escape(named)):
        checkpoints.load_checkpoint(tmp_path / "evil.pt", engine=engine)


def test_a_checkpoint_that_needs_timm_says_so_where_it_is_missing(engine, tmp_path, monkeypatch):
    model = engine.module("models.yolo").Model(cfg_with("timm.eca"))
    checkpoints.save_checkpoint(checkpoint_of(model), tmp_path / "eca.pt", engine=engine)
    monkeypatch.setitem(sys.modules, "timm.layers", None)
    monkeypatch.setattr(registry, "_MADE", {})
    with pytest.raises(CheckpointError, match=r"eca\.pt: timm\.eca is an attention layer of timm.*pip install"):
        checkpoints.load_checkpoint(tmp_path / "eca.pt", engine=engine)
    with pytest.raises(ConfigError, match=r"model dict, backbone row 2: timm\.eca is an attention layer of timm"):
        engine.module("models.yolo").Model(cfg_with("timm.eca"))


def test_a_timm_whose_import_fails_in_any_way_is_named(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.syspath_prepend(tmp_path)
    import_module = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", lambda name: import_module("broken" if "timm" in name else name))
    monkeypatch.setattr(registry, "_MADE", {})
    with pytest.raises(UserError, match=r"timm\.eca is an attention layer of timm.*torchvision::nms does not exist"):
        create_block("timm.eca", 64)


def test_parts_with_senseless_values_are_refused(engine, tmp_path):
    model = engine.module("models.yolo").Model(cfg_with("timm.ela"))
    model.model[2].norm_h.num_groups = 0
    checkpoints.save_checkpoint(checkpoint_of(model), tmp_path / "odd.pt", engine=engine)
    with pytest.raises(CheckpointError, match=r"layer model\.2\.norm_h \(GroupNorm1\): num_groups cannot be 0"):
        checkpoints.load_checkpoint(tmp_path / "odd.pt", engine=engine)


def test_parts_are_allowed_only_with_the_blocks_that_have_them():
    home = "yolov5_ema.blocks.by_timm."
    assert not [name for name in plain_names() if "timm" in name]
    with_sk = {name for name in plain_names({f"{home}TimmSk"}) if "timm" in name}
    parts = ("selective_kernel.SelectiveKernelAttn", "conv_bn_act.ConvNormAct", "norm_act.BatchNormAct2d")
    assert with_sk == {f"{home}TimmSk", f"{home}PooledBatchNorm", *(f"timm.layers.{part}" for part in parts)}


def test_inspect_lists_the_blocks_and_warns_of_nothing(engine, model_with_all, own_folder, capsys):
    checkpoints.save_checkpoint(checkpoint_of(model_with_all), own_folder / "all.pt", engine=engine)
    assert main(["inspect", "all.pt", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["outside"] == [] and found["warnings"] == []
    blocks = {block["cls"]: block["options"] for block in found["models"][0]["blocks"]}
    assert len(blocks) == len(LAYERS)
    assert (
        blocks["yolov5_ema.blocks.by_timm.TimmStrip"]["options"]
        == "use_conv=True, kernel_size=3, bias=False, has_skip=False"
    )


@pytest.mark.slow
def test_a_training_with_commands_of_their_own_process(tiny_set, tmp_path):
    (tmp_path / "mine.yaml").write_text(small_cfg("timm.eca, []"))
    flags = ("--data", tiny_set, "--weights", "", "--img", 64, "--batch", 4, "--epochs", 1, "--workers", 0)
    trained = run_cli("train", "--cfg", "mine.yaml", *flags, "--name", "mine", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr[-3000:]
    weights, images = "runs/train/mine/weights/best.pt", tiny_set.parent / "images/val"
    for line in (
        ("detect", "--weights", weights, "--source", images, "--img", 64),
        ("predict", "--weights", weights, "--source", images, "--img", 64, "-o", "found.parquet"),
        ("export", "--weights", weights, "--include", "onnx", "torchscript", "--img", 64),
        ("convert", weights, "-o", "converted"),
        ("convert", "converted.safetensors", "-o", "back.pt"),
    ):
        done = run_cli(*line, cwd=tmp_path)
        assert done.returncode == 0, (line, done.stderr[-3000:])
