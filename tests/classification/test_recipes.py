"""Recipes: their values and allowed keys, and schedules and averaged weights against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from yolov5_ema.classification.averaging import averaged
from yolov5_ema.classification.recipes import Settings, find_recipe, load_recipe, make_settings
from yolov5_ema.classification.schedules import learning_rate
from yolov5_ema.errors import ConfigError


def test_the_papers_values():
    cifar = make_settings("cifar100", {})
    assert (cifar.model, cifar.stem, cifar.imgsz) == ("resnet50", "cifar", 32)
    assert (cifar.optimizer, cifar.momentum, cifar.weight_decay, cifar.batch) == ("SGD", 0.9, 4e-5, 128)
    assert (cifar.epochs, cifar.schedule, cifar.lr, cifar.gamma) == (200, "step", 0.1, 0.2)
    assert cifar.milestones == [60, 120, 160] and not cifar.nesterov and cifar.average == 0
    assert (cifar.augment, cifar.padding, cifar.flip) == ("crop", 4, 0.5)
    imagenet = make_settings("imagenet", {})
    assert (imagenet.model, imagenet.imgsz, imagenet.epochs) == ("mobilenetv2_100", 224, 400)
    assert (imagenet.optimizer, imagenet.lr, imagenet.momentum) == ("SGD", 0.4, 0.9)
    assert (imagenet.weight_decay, imagenet.batch, imagenet.warmup_lr) == (1e-5, 256, 1e-6)
    assert imagenet.warmup_epochs == 5 and imagenet.average == 0.9998 and imagenet.schedule == "cosine"


@pytest.mark.parametrize("name", ["cifar100", "imagenet", "synthetic"])
def test_numbers_of_shipped_recipes_are_numbers(name):
    for key, value in load_recipe(name).items():
        default = getattr(Settings(), key)
        assert type(value) is type(default), key  # 4e-5 is a string in YAML


def test_every_value_can_be_overridden(tmp_path):
    for key, value in Settings().as_dict().items():
        if key == "recipe":
            continue
        other = {"block": "EMA", "block_options": {"groups": 4}, "milestones": [2, 3], "scale": [0.5, 0.9]}
        other |= {"model": "resnet34", "stem": "cifar", "optimizer": "AdamW", "schedule": "constant"}
        other |= {
            "augment": "none",
            "precision": "bf16-mixed",
            "data": "here",
            "mean": [0.1] * 3,
            "std": [0.7] * 3,
        }
        other |= {"average": 0.5, "flip": 0.25, "eval_crop": 0.5, "imgsz": 64, "momentum": 0.5}
        new = other.get(key, (not value) if isinstance(value, bool) else 1)
        assert getattr(make_settings("synthetic", {key: new}), key) == new != value
    own = tmp_path / "own.yaml"
    own.write_text("model: resnet34\nweight_decay: 4e-5\n")
    assert make_settings(str(own), {}).weight_decay == 4e-5


def test_milestones_and_warm_up_keep_their_share_of_the_training():
    assert make_settings("cifar100", {"epochs": 20}).milestones == [6, 12, 16]
    assert make_settings("imagenet", {"epochs": 40}).warmup_epochs == 0.5
    assert make_settings("cifar100", {"epochs": 20, "milestones": [1, 2]}).milestones == [1, 2]
    assert make_settings("cifar100", {"epochs": 1}).milestones == [1]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"epochs": 0}, "epochs: 0 must be 1 or more"),
        ({"epochs": 1.5}, "whole number"),
        ({"lr": float("nan")}, "must be above 0"),
        ({"lr": -1}, "must be above 0"),
        ({"lr": "fast"}, "is not a number"),
        ({"lr": True}, "is not a number"),
        ({"batch": 10**400}, "batch"),
        ({"learning_rate": 1}, "no setting 'learning_rate'"),
        ({"leraning": 1}, "There are: model"),
        ({"wieght_decay": 1}, "did you mean weight_decay?"),
        ({"optimizer": "Lion"}, "SGD, Adam, AdamW"),
        ({"milestones": [3, 2]}, "must be in increasing order"),
        ({"milestones": 3}, "list"),
        ({"mean": [0.5]}, "list of 3"),
        ({"block_options": [1]}, "groups: 16"),
        ({"warmup_epochs": 500}, "longer than the training"),
        ({"nesterov": True, "momentum": 0}, "nesterov"),
        ({"scale": [0.9, 0.1]}, "scale"),
        ({"std": [0, 1, 1]}, "above 0"),
    ],
)
def test_values_that_cannot_be_are_named(values, words):
    with pytest.raises(ConfigError) as caught:
        make_settings("cifar100", values)
    assert words in str(caught.value)


def test_a_recipe_file_that_cannot_be_is_named(tmp_path):
    with pytest.raises(ConfigError, match="cifar100, imagenet, synthetic"):
        find_recipe("cifar10")
    own = tmp_path / "own.yaml"
    for text, words in (
        ("- 1", "not a recipe"),
        ("a: [", "not valid YAML"),
        ("epochs: x", "own.yaml: epochs"),
        ("1: 2", "1"),
    ):
        own.write_text(text)
        with pytest.raises(ConfigError, match=words):
            make_settings(str(own), {})
    own.write_text("model: !!python/object/apply:os.system ['touch ran']")
    with pytest.raises(ConfigError, match="not valid YAML"):
        make_settings(str(own), {})


# --- learning rates ------------------------------------------------------------------------------


def test_the_step_schedule_is_that_of_the_reference_code():
    settings = make_settings("cifar100", {})
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    reference = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[60, 120, 160], gamma=0.2)
    for epoch in range(200):
        for done in (0.0, 0.5, 0.99):
            assert learning_rate(settings, epoch, done) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        optimizer.step()
        reference.step()
    found = [learning_rate(settings, epoch) for epoch in (0, 59, 60, 119, 120, 159, 160, 199)]
    assert found == pytest.approx([0.1, 0.1, 0.02, 0.02, 0.004, 0.004, 0.0008, 0.0008], rel=1e-12)


def test_warm_up_and_cosine():
    settings = make_settings("imagenet", {})
    assert learning_rate(settings, 0) == 1e-6
    assert learning_rate(settings, 2, 0.5) == pytest.approx((1e-6 + 0.4) / 2, rel=1e-12)
    for epoch in (5, 100, 200, 399):
        assert learning_rate(settings, epoch) == pytest.approx(0.2 * (1 + math.cos(math.pi * epoch / 400)), rel=1e-9)
    assert learning_rate(settings, 200) == pytest.approx(0.2) and learning_rate(settings, 399, 1.0) < 1e-12
    ending = make_settings("imagenet", {"final_lr": 0.1})
    assert learning_rate(ending, 200) == pytest.approx(0.25) and learning_rate(ending, 399, 1.0) == pytest.approx(0.1)
    assert learning_rate(make_settings("imagenet", {"schedule": "constant"}), 300) == 0.4


def test_cosine_and_warm_up_are_timms():
    from timm.scheduler import CosineLRScheduler

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4)
    timms = CosineLRScheduler(optimizer, t_initial=400, lr_min=0.0, warmup_t=5, warmup_lr_init=1e-6)
    settings = make_settings("imagenet", {})
    for epoch in range(400):
        timms.step(epoch)
        assert learning_rate(settings, epoch) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), epoch


# --- averaged weights ----------------------------------------------------------------------------


def test_averaged_weights_follow_the_closed_form():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1)).double()
    weight = model[0].weight
    follower = averaged(model, decay=0.25)
    values = [3.0, -1.0, 2.0, 10.0, 4.0]
    expected = None
    for count, value in enumerate(values):
        with torch.no_grad():
            weight.fill_(value)
            model[1].running_mean.fill_(2 * value)
            model[1].num_batches_tracked.fill_(count)
        follower.update_parameters(model)
        share = min(0.25, (1 + count) / (10 + count))
        expected = value if expected is None else share * expected + (1 - share) * value
    kept = follower.module
    assert kept[0].weight.item() == pytest.approx(expected, rel=1e-6)
    assert kept[1].running_mean.item() == pytest.approx(2 * expected, rel=1e-6)
    assert kept[1].num_batches_tracked.item() == len(values) - 1
    assert not kept[0].weight.requires_grad and weight.item() == 4.0


def test_a_long_average_has_the_asked_decay():
    model = nn.Linear(1, 1, bias=False).double()
    follower = averaged(model, decay=0.9998)
    with torch.no_grad():
        model.weight.fill_(0.0)
        follower.update_parameters(model)
        follower.n_averaged.fill_(10**6)
        model.weight.fill_(1.0)
    for _ in range(100):
        follower.update_parameters(model)
    assert follower.module.weight.item() == pytest.approx(1 - 0.9998**100, rel=1e-4)
