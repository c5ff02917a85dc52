"""Blocks behind the bottlenecks inside C3, C2f and C3k2, with both engines."""

from __future__ import annotations

import importlib
import importlib.util
import logging

import pytest
import torch
from offline_ultralytics import needs_yolo26, offline
from torch import nn

import yolov5_ema
from yolov5_ema.blocks.inside import Attended, host_and_block, put_inside
from yolov5_ema.cfgs.generator import build_cfg
from yolov5_ema.checkpoints import ultralytics_files
from yolov5_ema.checkpoints.loading import load_checkpoint, save_checkpoint
from yolov5_ema.errors import ConfigError
from yolov5_ema.weights.identity import start_as_identity
from yolov5_ema.weights.transfer import transfer

GROUPS = {"groups": 8}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    with offline(tmp_path_factory.mktemp("config")):
        yolov5_ema.install("ultralytics")
        yield importlib.import_module("ultralytics.nn.tasks")


@pytest.fixture(scope="module")
def yolov5():
    """The YOLOv5 in use, and its class of models."""
    if importlib.util.find_spec("yolov5") is None:
        pytest.skip("needs the PyPI package yolov5")
    before = logging.root.manager.disable
    with yolov5_ema.installed() as engine:
        logging.disable(logging.CRITICAL)
        yield engine, engine.module("models.yolo").Model
        logging.disable(before)


def blocks_in(model):
    return [module for module in model.modules() if type(module) is Attended]


def step_changes(model, loss):
    """Whether one step of training changes every parameter of the blocks."""
    before = [[p.detach().clone() for p in held.attention.parameters()] for held in blocks_in(model)]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    loss.backward()
    optimizer.step()
    after = [list(held.attention.parameters()) for held in blocks_in(model)]
    return [any(not torch.equal(a, b) for a, b in zip(*pair)) for pair in zip(before, after)]


class Bottleneck(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.cv1, self.add = nn.Conv2d(channels, channels, 1), True

    def forward(self, x):
        return x + self.cv1(x) if self.add else self.cv1(x)


def test_an_attended_bottleneck_is_the_block_of_its_output_under_the_same_names():
    torch.manual_seed(0)
    inner = Bottleneck(16)
    names, x = list(inner.state_dict()), torch.rand(2, 16, 4, 5)
    expected = inner(x)
    block = yolov5_ema.CA(16)
    held = Attended(inner, block)
    assert torch.equal(held(x), block(expected))
    own = {"gain", *(f"attention.{name}" for name in block.state_dict())}
    assert set(held.state_dict()) == own | set(names)
    held.gain.fill_(2.0)
    assert torch.equal(held(x), 2 * block(expected))


def test_a_bottleneck_with_a_part_of_that_name_is_refused():
    inner = Bottleneck(16)
    inner.attention = nn.Identity()
    with pytest.raises(ValueError, match="Bottleneck has an attribute attention of its own"):
        Attended(inner, yolov5_ema.CA(16))


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("C3_EMA", ("C3", "EMA")),
        ("C3k2_CBAM", ("C3k2", "CBAM")),
        ("yolov5_ema.C2f_SE", ("C2f", "SE")),
        ("C3_EMMA", ("", "")),
        ("EMA", ("", "")),
        ("_EMA", ("", "")),
        ("C3", ("", "")),
        (nn.Conv2d, ("", "")),
    ],
)
def test_names_of_rows(name, parts):
    assert host_and_block(name) == parts


def test_the_last_part_of_a_sequence_gets_the_block():
    layer = nn.Module()
    layer.m = nn.ModuleList([nn.Sequential(Bottleneck(8), Bottleneck(8)), Bottleneck(8)])
    put_inside(layer, yolov5_ema.CA)
    assert [type(part) for part in layer.m[0]] == [Bottleneck, Attended] and type(layer.m[1]) is Attended
    with pytest.raises(ValueError, match="Module has no list of bottlenecks"):
        put_inside(nn.Module(), yolov5_ema.CA)


# --- YOLOv5 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["backbone", pytest.param("neck", marks=pytest.mark.slow)])
def test_yolov5_builds_trains_saves_and_starts_as_the_plain_model(yolov5, tmp_path, at):
    engine, model_class = yolov5
    torch.manual_seed(0)
    plain = model_class(build_cfg(size="n", block="none", nc=2))
    model = model_class(build_cfg(size="n", inside="C3", at=at, options=GROUPS, nc=2))
    rows = {"backbone": [6, 8], "neck": [13, 17, 20]}[at]
    assert [i for i, row in enumerate(model.model) if blocks_in(row)] == rows
    assert [len(blocks_in(model.model[i])) for i in rows] == [len(plain.model[i].m) for i in rows]
    channels = [held.attention.channels for held in blocks_in(model)]
    assert sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in plain.parameters()) == sum(
        10 * (c // 8) ** 2 + 4 * (c // 8) for c in channels
    )
    for norm in (module for module in plain.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_mean.uniform_(-0.1, 0.1)
        norm.running_var.uniform_(0.5, 1.5)

    found = transfer(plain, model)
    assert set(found.state) == set(plain.state_dict()) and found.fresh_blocks == rows
    model.load_state_dict(found.state, strict=False)
    start_as_identity(model, found.fresh_blocks)
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(model.eval()(x)[0], plain.eval()(x)[0])

    save_checkpoint({"epoch": -1, "model": model, "ema": None, "optimizer": None}, tmp_path / "a.pt", engine=engine)
    back = load_checkpoint(tmp_path / "a.pt", engine=engine)["model"]
    assert torch.equal(back.eval()(x)[0], model(x)[0])
    assert [type(held).__module__ for held in blocks_in(back)] == ["yolov5_ema.blocks.inside"] * len(channels)
    assert all(step_changes(back.train(), sum(level.square().mean() for level in back(x))))


def test_a_block_that_moves_channels_cannot_start_as_identity(yolov5):
    model = yolov5[1](build_cfg(size="n", block="SA", inside="C3", options=GROUPS, nc=2))
    with pytest.raises(ConfigError, match=r"--init identity: SA inside row 6 \(C3\) moves channels"):
        start_as_identity(model, [6, 8])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([-1, 1, "C3_EMA", [64, {"group": 8}]], r"backbone row 6: EMA has no option 'group'"),
        ([-1, 1, "C3_EMA", [512, {"groups": 48}]], r"backbone row 6: \[EMA, .*64 channels.*48 groups"),
        ([-1, 1, "C3_EMMA", [64]], r"backbone row 6: unknown module 'C3_EMMA'"),
        ([-1, 1, "C4_EMA", [64]], r"backbone row 6: unknown module 'C4'"),
        ([-1, 1, "SPPF_EMA", [64, 5]], r"backbone row 6: SPPF has no list of bottlenecks"),
    ],
)
def test_rows_that_cannot_be_built_are_named(yolov5, row, message):
    cfg = build_cfg(size="n", block="none", nc=2)
    cfg["backbone"][6] = row
    with pytest.raises(ConfigError, match=message):
        yolov5[1](cfg)


# --- ultralytics ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "inside", "at"),
    [
        pytest.param("yolov5n.yaml", "C3", "neck", marks=pytest.mark.slow),
        ("yolov8n.yaml", "C2f", "backbone"),
        pytest.param("yolo26n.yaml", "C3k2", "backbone", marks=needs_yolo26),
        # C3k instead of bottlenecks, in the sizes from m on
        pytest.param("yolo11m.yaml", "C3k2", "neck", marks=pytest.mark.slow),
    ],
)
def test_ultralytics_builds_trains_saves_and_takes_plain_weights(tasks, tmp_path, base, inside, at):
    torch.manual_seed(0)
    plain = tasks.DetectionModel(build_cfg(base=base, block="none", nc=2), verbose=False)
    model = tasks.DetectionModel(build_cfg(base=base, inside=inside, at=at, options=GROUPS, nc=2), verbose=False)
    assert len(model.model) == len(plain.model)
    assert [type(row) for row in model.model] == [type(row) for row in plain.model]
    hosts = [row for row in model.model if blocks_in(row)]
    assert {type(row).__name__ for row in hosts} == {inside} and len(hosts) == (3 if at == "neck" else 2)
    assert [row.np for row in hosts] == [sum(p.numel() for p in row.parameters()) for row in hosts]

    model.load(plain, verbose=False)
    ours, theirs = model.state_dict(), plain.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert all(".attention." in name or name.endswith(".gain") for name in ours.keys() - theirs.keys())
    for held in blocks_in(model):
        held.attention.zero_gate_()
        held.gain.fill_(2.0)
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(model.eval()(x)[0], plain.eval()(x)[0])

    torch.save({"model": model}, tmp_path / "a.pt")
    back = ultralytics_files.load(tmp_path / "a.pt")["model"]
    assert torch.equal(back.eval()(x)[0], model(x)[0]) and len(blocks_in(back)) == len(blocks_in(model))
    features = back.train()(x)
    # releases up to 8.3 return the levels as a list
    if isinstance(features, dict):
        features = features.get("one2many", features)["feats"]
    assert all(step_changes(back, sum(level.square().mean() for level in features)))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([-1, 2, "C3k2_EMA", [512, True, {"group": 8}]], r"backbone row 6: EMA has no option 'group'"),
        ([-1, 2, "C3k2_EMA", [512, True, {"groups": 48}]], r"backbone row 6: \[EMA, .*64 channels.*48 groups"),
        ([-1, 1, "SPPF_EMA", [512, 5]], r"backbone row 6: SPPF has no list of bottlenecks"),
        ([-1, 1, "C9_EMA", [512, 5]], r"backbone row 6: unknown module 'C9'"),
    ],
)
def test_rows_of_ultralytics_that_cannot_be_built_are_named(tasks, row, message):
    cfg = build_cfg(base="yolo11n.yaml", block="none", nc=2)
    cfg["backbone"][6] = row
    with pytest.raises(ConfigError, match=message):
        tasks.DetectionModel(cfg, verbose=False)
