"""Maps of classifiers: class activation maps in closed form, gates, and what is shown next to a plain model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from yolov5_ema.errors import UserError
from yolov5_ema.explain.classifiers import Classifier
from yolov5_ema.explain.layers import choose
from yolov5_ema.explain.looks import maps_of

pytest.importorskip("timm")
pytest.importorskip("captum")

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)


def saved(folder, block):
    from yolov5_ema.classification import create_classifier
    from yolov5_ema.classification.checkpoints import save_classifier

    torch.manual_seed(0)
    options = {"groups": 8} if block == "EMA" else {}
    model = create_classifier("test_resnet", block, num_classes=3, block_options=options)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(module.weight)  # timm sets the last one of a residual block to 0
    record = {
        "model": "test_resnet", "block": block, "block_options": options, "stem": "imagenet", "num_classes": 3,
        "names": ["cat", "dog", "eel"], "imgsz": 64, "mean": list(MEAN), "std": list(STD), "epoch": 0, "settings": {},
        "top1": 0.5, "top5": 1.0, "state_dict": model.state_dict(),
    }  # fmt: skip
    file = folder / f"{block}.pt"
    save_classifier(file, record)
    return file


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("plain"), None)


@pytest.fixture(scope="module")
def with_ema(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("ema"), "EMA")


def picture():
    return np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)


def test_the_last_stage_of_a_plain_model_in_closed_form(plain):
    """It is followed by a mean over positions and a linear layer, so alpha_c is the class's weight / (H W)."""
    subject = Classifier(plain, ["eel"])
    ((layer,),) = choose([subject.candidates])
    assert (layer.name, layer.block, layer.stride) == ("layer4", None, 32)
    look = subject.look(picture())
    (found,) = maps_of(subject, look, [layer])
    with torch.no_grad():
        cells = subject.model.forward_features(look.batch)[0]  # (C, 2, 2)
        cam = torch.einsum("c,chw->hw", subject.model.fc.weight[2], cells).clamp(min=0) / 4
        wide = torch.nn.functional.interpolate(cam[None, None], (64, 64), mode="bilinear")[0, 0].numpy()
    assert wide.max() > 0 and found.gate is None and found.gate_range is None
    np.testing.assert_allclose(found.cam, wide, rtol=1e-4, atol=1e-6 * wide.max())


def test_the_picture_is_what_the_model_sees(plain):
    """The middle of the picture, with its colours unchanged."""
    look = Classifier(plain).look(picture())
    assert look.batch.shape == (1, 3, 64, 64)
    np.testing.assert_array_equal(look.picture, picture()[:, 16:80, ::-1])
    assert tuple(look.area) == (0, 0, 64, 64) and not len(look.found)


def test_the_predicted_class_is_explained_unless_another_is_named(plain):
    look = Classifier(plain).look(picture())
    with torch.no_grad():
        logits = Classifier(plain).model(look.batch)[0]
    best = int(logits.argmax())
    assert look.score(look.batch).item() == pytest.approx(logits[best].item())
    assert look.words.startswith(["cat", "dog", "eel"][best]) and len(look.details) == 3
    other = Classifier(plain, ["dog"]).look(picture())
    assert other.score(other.batch).item() == pytest.approx(logits[1].item())
    assert other.words.endswith("; Grad-CAM is of dog")
    with pytest.raises(UserError, match=r"--classes cow: .* knows the classes cat, dog, eel"):
        Classifier(plain, ["cow"])


def test_every_block_and_beside_it_the_place_in_a_plain_model(plain, with_ema):
    subjects = [Classifier(plain), Classifier(with_ema)]
    beside, blocks = choose([subject.candidates for subject in subjects])
    assert [(layer.name, layer.block) for layer in blocks] == [(f"layer{stage}.0.se", "EMA") for stage in (1, 2, 3, 4)]
    assert [layer.place for layer in beside] == [layer.place for layer in blocks]
    assert all(layer.block is None and "bn" in layer.name for layer in beside)


def test_maps_of_blocks_equal_an_own_computation(with_ema):
    """The gate from the block's input and output; Grad-CAM from the retained output, into which timm then writes."""
    subject = Classifier(with_ema)
    look = subject.look(picture())
    (layers,) = choose([subject.candidates], ["layer2*"])
    (found,) = maps_of(subject, look, layers)
    kept = {}

    def keep(module, args, output):
        kept["x"], kept["y"] = args[0].detach().clone(), output
        return output.clone()

    handle = layers[0].module.register_forward_hook(keep)
    try:
        score = subject.model(look.batch.clone().requires_grad_())[0].max()
    finally:
        handle.remove()
    (gradient,) = torch.autograd.grad(score, kept["y"])
    y = kept["y"].detach()
    cam = (gradient.mean((2, 3), keepdim=True) * y).sum(1, keepdim=True).clamp(min=0)
    wide = torch.nn.functional.interpolate(cam, (64, 64), mode="bilinear")[0, 0].numpy()
    assert wide.max() > 0
    np.testing.assert_allclose(found.cam, wide, rtol=1e-4, atol=1e-5 * wide.max())
    gate = (y.square().sum(1) / kept["x"].square().sum(1)).sqrt()[0].numpy()  # (8, 8)
    np.testing.assert_allclose(found.gate, gate.repeat(8, 0).repeat(8, 1), rtol=1e-4)
    assert found.gate_range == pytest.approx((gate.min(), gate.mean(), gate.max()), rel=1e-4)
