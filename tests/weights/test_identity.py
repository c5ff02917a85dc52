"""New blocks that change nothing at step 0, and learn from then on."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import randomise
from torch import nn

import yolov5_ema
from yolov5_ema.blocks import create_block, get_block, list_blocks, register_block, unregister_block
from yolov5_ema.cfgs.dry_run import quiet
from yolov5_ema.cfgs.generator import build_cfg
from yolov5_ema.errors import ConfigError
from yolov5_ema.weights.identity import rows_with_blocks, start_as_identity
from yolov5_ema.weights.transfer import transfer

OF_THE_PAPER = ["CA", "CBAM", "EMA", "ECA", "NAM", "SA", "SE"]
BLOCKS = [name for name in list_blocks() if hasattr(get_block(name), "zero_gate_")]
# the constant that zero_gate_ gives, where it is not 1/2
FACTORS = {
    **dict.fromkeys(("CA", "CBAM", "ELA", "GAM", "PolarizedSA"), 0.25),
    **dict.fromkeys(("A2", "GC", "LSKA", "NonLocal"), 1.0),
    "BAM": 1.5,
}
NO_POWER_OF_TWO = ("BAM", "SA")  # or another order of sums
START_UNCHANGED = ("GC", "NonLocal")


@pytest.fixture(scope="module")
def build():
    with yolov5_ema.installed():
        from yolov5.models.yolo import Model

        def build(cfg):
            torch.manual_seed(0)
            with quiet():
                return Model(cfg).eval()

        yield build


@pytest.fixture(scope="module")
def detector(build):
    """A detector without blocks, with BatchNorms that differ from new ones."""
    model = build(build_cfg(size="n", block="none", nc=2))
    generator = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model


def outputs(model):
    with torch.no_grad():
        return model(torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(3)))[0]


def grown(build, source, cfg):
    """A detector with another cfg, the weights of a pretrained one, and new blocks."""
    model = build(cfg)
    found = transfer(source, model)
    model.load_state_dict(found.state, strict=False)
    return model, found.fresh_blocks


def test_every_block_of_ours_is_tried():
    assert {*OF_THE_PAPER, "SGE", "SRM", "Triplet"} <= set(BLOCKS)


@pytest.mark.parametrize(
    "block", [pytest.param(name, marks=() if name in OF_THE_PAPER else pytest.mark.slow) for name in BLOCKS]
)
def test_a_detector_computes_what_it_did_without_the_blocks(build, detector, block):
    """Bit for bit; but SA shuffles channels and so changes the order of sums, and BAM's factor is 3/2."""
    place = "backbone" if block == "SA" else "neck"  # 64 channels are too few for its groups
    model, fresh = grown(build, detector, build_cfg(size="n", block=block, at=place, nc=2))
    assert fresh
    expected = outputs(detector)
    if block not in START_UNCHANGED:
        assert (outputs(model) - expected).abs().max() > 1e-3  # without --init it is not so
    start_as_identity(model, fresh)
    if block in NO_POWER_OF_TWO:
        torch.testing.assert_close(outputs(model), expected, rtol=1e-4, atol=1e-4)
    else:
        assert torch.equal(outputs(model), expected)


def test_in_training_mode_too(build, detector):
    model, fresh = grown(build, detector, build_cfg(size="n", block="EMA", nc=2))
    start_as_identity(model, fresh)
    image = torch.rand(2, 3, 64, 64)
    plain = copy.deepcopy(detector).train()
    for ours, theirs in zip(model.train()(image), plain(image)):
        assert torch.equal(ours, theirs)


def test_rows_with_blocks(build):
    assert rows_with_blocks(build(build_cfg(size="n", block="none", nc=2))) == []
    assert rows_with_blocks(build(build_cfg(size="n", block="EMA", nc=2))) == [7, 10]
    assert rows_with_blocks(build(build_cfg(size="n", block="EMA", inside="C3", at="neck", nc=2))) == [13, 17, 20]


def test_a_residual_ema_starts_as_identity_by_itself(build, detector):
    options = {"residual": True, "norm_groups": 1}
    model, fresh = grown(build, detector, build_cfg(size="n", block="EMA", at="neck", options=options, nc=2))
    expected = outputs(detector)
    assert fresh and torch.equal(outputs(model), expected)
    start_as_identity(model, fresh)
    assert torch.equal(outputs(model), expected)
    nn.init.ones_(model.model[fresh[0]].gate.weight)
    assert (outputs(model) - expected).abs().max() > 1e-3


def test_blocks_behind_blocks_and_repeated_ones(build, detector):
    cfg = build_cfg(size="n", block="none", nc=2)
    cfg["depth_multiple"] = 0.33
    rows = [
        *cfg["backbone"],
        [-1, 1, "SA", []],
        [-1, 6, "EMA", [8]],
        [-1, 1, "CA", []],
    ]  # 6 * 0.33 = 2 of them
    head = [[list(f) if isinstance(f, list) else f, *rest] for f, *rest in cfg["head"]]
    for row in head:
        reads = row[0] if isinstance(row[0], list) else [row[0]]
        moved = [f + 3 if f > 9 else f for f in reads]
        row[0] = moved if isinstance(row[0], list) else moved[0]
    model, fresh = grown(build, detector, {**cfg, "backbone": rows, "head": head})
    assert fresh == [10, 11, 12] and len(model.model[11]) == 2
    start_as_identity(model, fresh)
    torch.testing.assert_close(outputs(model), outputs(detector), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_constant_gate(name):
    block = randomise(create_block(name, 128)).eval()
    block.zero_gate_()
    x = torch.randn(2, 128, 5, 7)
    expected = x * FACTORS.get(name, 0.5)
    if name == "SA":  # channels as two rows of 64, read by columns
        expected = expected.reshape(2, 2, 64, 5, 7).transpose(1, 2).reshape(2, 128, 5, 7)
    assert torch.equal(block(x), expected)


@pytest.mark.parametrize("name", BLOCKS)
def test_it_learns_from_there(name):
    torch.manual_seed(0)
    block = create_block(name, 128)
    block.zero_gate_()
    optimizer = torch.optim.Adam(block.parameters(), lr=0.02)
    x = 1 + torch.rand(4, 128, 6, 6)
    losses = []
    for _ in range(40):
        out = block(x)
        loss = (out.sum(1) - 0.7 * x.sum(1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < (0.999 if name == "NAM" else 0.9) * losses[0]  # the slope of its gate is divided by C


def test_a_block_without_zero_gate_is_named(build, detector):
    @register_block
    class Silent(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.scale = nn.Conv2d(channels, channels, 1, groups=channels)

        def forward(self, x):
            return self.scale(x)

    try:
        model, fresh = grown(build, detector, build_cfg(size="n", block="Silent", nc=2))
        with pytest.raises(ConfigError, match=r"row 7 \(Silent\) is a Silent, which has no method zero_gate_"):
            start_as_identity(model, fresh)
    finally:
        unregister_block("Silent")


@pytest.mark.parametrize(
    ("block", "options", "message"),
    [
        ("PolarizedSA", {"mode": "parallel"}, "mode=parallel has no constant"),
        ("A2", {"residual": False}, "residual=False"),
    ],
)
def test_a_form_that_cannot_start_as_identity_is_named(build, detector, block, options, message):
    model, fresh = grown(build, detector, build_cfg(size="n", block=block, options=options, nc=2))
    with pytest.raises(
        ConfigError, match=rf"--init identity: row 7 \({block}\): {block} with {message}.*leave --init out"
    ):
        start_as_identity(model, fresh)


def test_a_gate_that_is_no_constant_is_found(build, detector, monkeypatch):
    model, fresh = grown(build, detector, build_cfg(size="n", block="SE", nc=2))
    monkeypatch.setattr(type(model.model[7]), "zero_gate_", lambda self: None)
    with pytest.raises(ConfigError, match=r"after zero_gate_\(\) the gate of row 7 \(SE\) is not constant"):
        start_as_identity(model, fresh)


def test_readers_that_cannot_take_the_factor_are_named(build, detector):
    trained = randomise(build(build_cfg(size="n", block="CA", after=[9], nc=2)))
    cfg = build_cfg(size="n", block="CA", after=[9], nc=2)
    cfg["backbone"] = [*cfg["backbone"][:10], [-1, 1, "EMA", []], cfg["backbone"][10]]
    for row in cfg["head"]:
        reads = [f + 1 if f > 9 else f for f in (row[0] if isinstance(row[0], list) else [row[0]])]
        row[0] = reads if isinstance(row[0], list) else reads[0]
    model, fresh = grown(build, trained, cfg)
    assert fresh == [10]
    with pytest.raises(ConfigError, match=r"row 11 \(CA\) reads features that a fresh block gates, and its gate"):
        start_as_identity(model, fresh)
