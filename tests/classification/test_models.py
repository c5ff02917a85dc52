"""Classifiers: parameters of the paper's models, the places of blocks, values, pretrained weights, mistakes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from yolov5_ema.blocks import CBAM, ECA, EMA, SA, list_blocks, register_block, unregister_block
from yolov5_ema.classification import (
    attention_places,
    create_classifier,
    create_paper_model,
    list_paper_models,
)
from yolov5_ema.errors import CheckpointError, ConfigError, UserError

pytestmark = pytest.mark.usefixtures("messages")

timm = pytest.importorskip("timm")

# the sum of p.numel(), counted in the form of each model that the authors published
PARAMETERS = {
    "resnet50": 23_705_252,
    "resnet50-cbam": 26_237_844,
    "resnet50-sa": 23_705_960,
    "resnet50-eca": 23_705_300,
    "resnet50-nam": 23_735_460,
    "resnet50-ca": 25_623_084,
    "resnet50-ema32": 23_903_620,
    "resnet50-ema16": 24_494_948,
    "resnet50-ema-no": 23_903_620,
    "resnet50-se": 26_220_196,
    "resnet101": 42_697_380,
    "resnet101-ca": 46_322_828,
    "resnet101-ema32": 43_072_004,
    "mobilenetv2": 3_504_872,
    "mobilenetv2-se": 3_888_208,
    "mobilenetv2-cbam": 3_889_808,
    "mobilenetv2-ca": 3_950_648,
    "mobilenetv2-ema": 3_549_726,
}
HIDDEN = [96, 144, 144, 192, 192, 192, 384, 384, 384, 384, 576, 576, 576, 960, 960, 960]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def randomised(model: nn.Module) -> nn.Module:
    """timm sets the last BatchNorm of every residual block to 0, so give every parameter an effect."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
                module.running_mean.uniform_(-0.2, 0.2)
                module.running_var.uniform_(0.5, 1.5)
        for parameter in model.parameters():
            if not parameter.any():  # SA's gates ignore their input at first
                parameter.uniform_(-0.5, 0.5)
    return model


def recorded(module: nn.Module, into: dict, name: str) -> None:
    module.register_forward_hook(
        lambda _m, inputs, out: into.update({name: (inputs[0].clone(), out.clone())})  # act works in place
    )


def test_every_paper_model_is_counted_here():
    assert list_paper_models() == list(PARAMETERS)
    assert list_paper_models(4) == ["resnet50", "resnet50-ema32", "resnet50-ema16", "resnet50-ema-no"]


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_of_the_paper_s_models(name):
    with torch.device("meta"):
        model = create_paper_model(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


def test_an_unknown_paper_model_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean resnet50-ema16"):
        create_paper_model("resnet50-ema-16")


def test_in_a_resnet_the_block_is_between_the_third_batchnorm_and_the_addition():
    model = randomised(create_classifier("resnet50", "CBAM", num_classes=10, stem="cifar")).eval()
    residual, seen = model.layer2[0], {}
    for name in ("bn3", "se", "downsample", "act3"):
        recorded(getattr(residual, name), seen, name)
    with torch.no_grad():
        model(torch.rand(2, 3, 16, 16))
        assert isinstance(residual.se, CBAM) and seen["se"][0].shape == (2, 512, 8, 8)
        torch.testing.assert_close(seen["se"][0], seen["bn3"][1], rtol=0, atol=0)
        expected = F.relu(residual.se(seen["bn3"][1]) + seen["downsample"][1])
    torch.testing.assert_close(seen["act3"][1], expected, rtol=0, atol=1e-6)
    places = attention_places(model)
    assert [p.channels for p in places] == [256] * 3 + [512] * 4 + [1024] * 6 + [2048] * 3
    assert places[0].name == "layer1.0.se"


def test_in_mobilenetv2_the_block_is_behind_the_depthwise_convolution_of_the_16_blocks_that_expand():
    model = randomised(create_classifier("mobilenetv2_100", "CBAM", num_classes=10)).eval()
    assert [p.channels for p in attention_places(model)] == HIDDEN
    assert sum(isinstance(m, CBAM) for m in model.modules()) == 16
    residual = model.blocks[2][1]  # with a shortcut
    x = torch.rand(2, residual.conv_pw.in_channels, 8, 8)

    def normalised(y, bn):
        return F.batch_norm(y, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)

    with torch.no_grad():
        hidden = F.relu6(normalised(F.conv2d(x, residual.conv_pw.weight), residual.bn1))
        deep = F.conv2d(hidden, residual.conv_dw.weight, padding=1, groups=hidden.shape[1])
        gated = residual.se(F.relu6(normalised(deep, residual.bn2)))
        expected = normalised(F.conv2d(gated, residual.conv_pwl.weight), residual.bn3) + x
        torch.testing.assert_close(residual(x), expected, rtol=1e-5, atol=1e-5)


def test_the_cifar_resnet_is_torchvision_s_with_another_stem():
    torchvision = pytest.importorskip("torchvision")
    ours = randomised(create_classifier("resnet50", num_classes=100, stem="cifar")).eval()
    theirs = torchvision.models.resnet50(num_classes=100)
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    theirs.load_state_dict(ours.state_dict())
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        ours.fc.weight.mul_(1e-3)  # 50 layers with random gains: logits of about 1
        theirs.fc.weight.copy_(ours.fc.weight)
        logits = ours(x)
        assert logits.std() > 0.01
        torch.testing.assert_close(logits, theirs.eval()(x), rtol=1e-5, atol=1e-5)


def test_the_cifar_stem_keeps_the_size_of_the_images():
    for name, stem, size in (
        ("resnet18", "cifar", 32),
        ("resnet18", "imagenet", 8),
        ("mobilenetv2_100", "cifar", 32),
    ):
        with torch.device("meta"):
            model, seen = create_classifier(name, stem=stem).eval(), {}
            recorded(model.layer1 if name == "resnet18" else model.blocks[0], seen, "stage")
            model(torch.zeros(1, 3, 32, 32))
        assert seen["stage"][1].shape[-1] == size, (name, stem)


def test_timm_s_own_way_of_an_attention_layer_leads_to_the_same_modules():
    with torch.device("meta"):
        ours = create_classifier("resnet50", "CBAM")
        theirs = timm.create_model("resnet50", block_args={"attn_layer": CBAM})
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


@pytest.mark.parametrize("block", ["CA", "CBAM", "ECA", "EMA", "NAM", "SA", "SE"])
def test_every_parameter_gets_a_gradient(block):
    assert block in list_blocks()
    options = {"groups": 16} if block in ("EMA", "SA") else {}
    model = randomised(create_classifier("resnet10t", block, num_classes=5, stem="cifar", block_options=options))
    F.cross_entropy(model(torch.rand(4, 3, 16, 16)), torch.tensor([0, 1, 2, 3])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_with_one_seed_the_backbone_starts_the_same_whatever_the_block():
    states = []
    for block in (None, "EMA", "CBAM"):
        torch.manual_seed(3)
        states.append(create_classifier("resnet18", block, num_classes=7, stem="cifar").state_dict())
    for other in states[1:]:
        assert len(other) > len(states[0])
        for key, value in states[0].items():
            torch.testing.assert_close(other[key], value, rtol=0, atol=0)


# one model of each timm family, and the number of blocks that it takes
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnext50_32x4d", 16),
        ("seresnet50", 16),
        ("res2net50_26w_4s", 16),
        ("mobilenetv3_large_100", 14),
        ("mobilenetv4_conv_small", 12),
        ("efficientnet_b0", 16),
        ("efficientnet_es", 18),
        ("mixnet_s", 15),
        ("regnety_002", 13),
        ("regnetv_040", 22),
        ("darknet53", 23),
        ("cspresnet50", 13),
        ("gernet_s", 14),
        ("seresnet33ts", 10),
        ("ese_vovnet19b_dw", 4),
    ],
)
def test_other_backbones_take_the_block_where_they_take_an_attention_layer(name, count):
    with torch.device("meta"):
        model, seen = create_classifier(name, "ECA", num_classes=10), []
        for module in model.modules():
            if isinstance(module, ECA):
                module.register_forward_hook(lambda m, i, _o: seen.append((m.channels, i[0].shape[1])))
        assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 10)
    assert len(seen) == count and all(built == given for built, given in seen)
    assert not any("SqueezeExcite" in type(m).__name__ or type(m).__name__ == "SEModule" for m in model.modules())


def test_groups_nearest_to_a_number_are_printed(capsys):
    with torch.device("meta"):
        model = create_classifier("mobilenetv2_100", "EMA", block_options={"groups": "nearest"})
    chosen = {m.channels: m.groups for m in model.modules() if isinstance(m, EMA)}
    assert chosen == {96: 32, 144: 36, 192: 32, 384: 32, 576: 32, 960: 32}
    line = "EMA, groups nearest to 32: 32 at 96, 36 at 144, 32 at 192, 32 at 384, 32 at 576, 32 at 960 channels\n"
    assert capsys.readouterr().err == line


def test_groups_nearest_to_another_number_and_of_another_block(capsys):
    with torch.device("meta"):
        ema = create_classifier("mobilenetv2_100", "EMA", block_options={"groups": "nearest:10"})
        sa = create_classifier("mobilenetv2_100", "SA", block_options={"groups": "nearest"})
    assert {m.channels: m.groups for m in ema.modules() if isinstance(m, EMA)} == {
        **{96: 8, 144: 9, 192: 8, 384: 8},  # 8 and 12 are equally near: the lower one
        **{576: 9, 960: 10},
    }
    # SA accepts only divisors of half the channels: 96 / 2 = 48, not 64
    assert {m.channels: m.groups for m in sa.modules() if isinstance(m, SA)} == {
        **{96: 48, 144: 72, 192: 48, 384: 64},
        **{576: 72, 960: 60},
    }
    assert "SA, groups nearest to 64: 48 at 96, 72 at 144" in capsys.readouterr().err


def test_a_block_of_the_user_s():
    @register_block(name="TestScale")
    class Scale(nn.Module):
        def __init__(self, channels, factor=0.5):
            super().__init__()
            self.gain = nn.Parameter(torch.full((channels, 1, 1), factor))

        def forward(self, x):  # (N, C, H, W)
            return x * self.gain

    try:
        model = create_classifier("resnet18", "TestScale", num_classes=3, block_options={"factor": 0.25})
        assert model.layer4[1].se.gain.flatten().tolist() == [0.25] * 512
        with pytest.raises(ConfigError, match="TestScale has no option 'groups' with a number as its default"):
            create_classifier("resnet18", "TestScale", block_options={"groups": "nearest"})
    finally:
        unregister_block("TestScale")


MISTAKES = {
    "EMA: 144 channels cannot be split into 32 groups.*24 or 36.*nearest": ("mobilenetv2_100", "EMA", {}),
    "did you mean resnet50": ("resnet55", None, {}),
    "Did you mean EMA": ("resnet18", "EMMA", {}),
    "convnext_atto: no block of this backbone takes.*resnet": ("convnext_atto", "EMA", {}),
    "CA has no option 'groups'": ("resnet18", "CA", {"block_options": {"groups": 8}}),
    "groups='near'.*nearest:16": ("resnet18", "EMA", {"block_options": {"groups": "near"}}),
    "groups='nearest:0'": ("resnet18", "EMA", {"block_options": {"groups": "nearest:0"}}),
    "EMA: groups must be at least 1": ("resnet18", "EMA", {"block_options": {"groups": 0}}),
    "without a block": ("resnet18", "none", {"block_options": {"groups": 8}}),
    "unknown stem 'tiny'; known are imagenet, cifar": ("resnet18", None, {"stem": "tiny"}),
    "convnext_atto: stem 'cifar' works only for": ("convnext_atto", None, {"stem": "cifar"}),
    "num_classes must be 1 or more, got 0": ("resnet18", None, {"num_classes": 0}),
    "drop_rate must be from 0 to below 1, got 1": ("resnet18", None, {"drop_rate": 1}),
    "vgg11: timm cannot build it.*drop_path_rate": ("vgg11", None, {"drop_path_rate": 0.1}),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_named(message):
    name, block, options = MISTAKES[message]
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        create_classifier(name, block, **options)


def test_drop_rates_reach_timm():
    with torch.device("meta"):
        model = create_classifier("resnet18", drop_rate=0.2, drop_path_rate=0.1)
    assert model.drop_rate == 0.2 and model.layer4[1].drop_path.drop_prob == pytest.approx(0.1)


class TestPretrained:
    @pytest.fixture(scope="class")
    def plain(self, tmp_path_factory):
        """A plain timm model, and its state dict in a file."""
        torch.manual_seed(1)
        model = randomised(timm.create_model("resnet18", num_classes=6))
        path = tmp_path_factory.mktemp("weights") / "resnet18.pt"
        torch.save(model.state_dict(), path)
        return model.state_dict(), path

    def test_all_tensors_of_a_file_load_into_a_model_with_blocks(self, plain, capsys):
        state, path = plain
        model = create_classifier("resnet18", "EMA", num_classes=6, pretrained=path)
        loaded = model.state_dict()
        for key, value in state.items():
            torch.testing.assert_close(loaded[key], value, rtol=0, atol=0)
        assert {k.split(".")[2] for k in set(loaded) - set(state)} == {"se"}
        assert f"{len(state)} tensors loaded; new weights: blocks" in capsys.readouterr().err

    def test_a_file_of_safetensors_is_loaded_with_another_classifier_and_stem(self, plain, tmp_path, capsys):
        state, _ = plain
        save_file(state, tmp_path / "plain.safetensors")
        model = create_classifier("resnet18", num_classes=9, stem="cifar", pretrained=tmp_path / "plain.safetensors")
        fresh = ("fc.weight", "fc.bias", "conv1.weight")
        for key, value in model.state_dict().items():
            assert key in fresh or torch.equal(value, state[key]), key
        assert f"{len(state) - 3} tensors loaded; new weights: classifier, stem" in capsys.readouterr().err

    def test_a_checkpoint_with_blocks_loads_wholly(self, tmp_path, capsys):
        trained = create_classifier("resnet10t", "EMA", num_classes=6)
        torch.save({"format": "a training's", "state_dict": trained.state_dict()}, tmp_path / "best.pt")
        model = create_classifier("resnet10t", "EMA", num_classes=6, pretrained=str(tmp_path / "best.pt"))
        for key, value in trained.state_dict().items():
            torch.testing.assert_close(model.state_dict()[key], value, rtol=0, atol=0)
        assert "fresh" not in capsys.readouterr().err

    def test_files_that_do_not_fit_are_refused(self, plain, tmp_path):
        _, path = plain
        with pytest.raises(CheckpointError, match=r"not the weights of resnet50: .* such as layer1\.0\.conv1\.weight"):
            create_classifier("resnet50", pretrained=path)
        with pytest.raises(CheckpointError, match=r"nothing\.pt: no such file"):
            create_classifier("resnet10t", pretrained=tmp_path / "nothing.pt")
        (tmp_path / "torn.pt").write_bytes(path.read_bytes()[:1000])
        with pytest.raises(CheckpointError, match=r"torn\.pt: cannot be read as weights"):
            create_classifier("resnet10t", pretrained=tmp_path / "torn.pt")
        torch.save({"epoch": 3}, tmp_path / "other.pt")
        with pytest.raises(CheckpointError, match=r"other\.pt: holds no state dict"):
            create_classifier("resnet10t", pretrained=tmp_path / "other.pt")

    def test_published_weights_in_the_hub_s_cache_need_no_network(self, monkeypatch, tmp_path):
        constants = pytest.importorskip("huggingface_hub.constants")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        folder = tmp_path / f"models--{timm.get_pretrained_cfg('resnet18').hf_hub_id.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("abc")
        (folder / "snapshots" / "abc").mkdir(parents=True)
        plain = randomised(timm.create_model("resnet18"))
        save_file(plain.state_dict(), folder / "snapshots" / "abc" / "model.safetensors")
        model = create_classifier("resnet18", "EMA", num_classes=7, pretrained=True)
        for key, value in model.state_dict().items():
            fresh = ".se." in key or key.startswith("fc.")
            assert fresh or torch.equal(value, plain.state_dict()[key]), key
        assert model.fc.out_features == 7

    def test_without_a_network_it_is_said_at_once(self, monkeypatch, tmp_path):
        constants = pytest.importorskip("huggingface_hub.constants")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
        with pytest.raises(UserError, match=r"127\.0\.0\.1:9 cannot be reached .*name the file"):
            create_classifier("resnet18", pretrained=True)
        with pytest.raises(UserError, match="no pretrained weights for"):
            create_classifier("darknet17", pretrained=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_100"])
def test_torch_compile_gives_the_same_logits(name):
    model = randomised(create_classifier(name, "EMA", num_classes=10, block_options={"groups": "nearest"})).eval()
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model)(x), model(x), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("block", ["EMA", "CA", "CBAM"])
def test_onnx_gives_the_same_logits(block, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    model = randomised(create_classifier("resnet18", block, num_classes=10, stem="cifar")).eval()
    x, path = torch.rand(2, 3, 32, 32), tmp_path / "model.onnx"
    torch.onnx.export(model, (x,), path, dynamo=False, input_names=["images"], opset_version=17)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = model(x)
    found = torch.from_numpy(session.run(None, {"images": x.numpy()})[0])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
