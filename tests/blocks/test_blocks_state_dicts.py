"""State dicts of the public implementations load anywhere in a model and give the same output."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from public_layouts import CASE_IDS, CASES, DEFAULT_CHANNELS, PUBLIC, randomise
from reference import LOOPS
from torch import nn

from yolov5_ema.blocks import SA, SE, create_block, list_blocks


def expected_output(name, layout, x, options):
    parameters = {key: value.double().numpy() for key, value in layout.state_dict().items()}
    return LOOPS[name](x.numpy(), parameters, False, **options)


@pytest.mark.parametrize(("name", "channels", "options"), CASES, ids=CASE_IDS)
def test_public_state_dict_loads_strictly(name, channels, options):
    layout = randomise(PUBLIC[name](channels, **options).double(), seed=3)
    public = layout.state_dict()
    keys = list(public)
    block = create_block(name, channels, dtype=torch.float64, **options).eval()
    result = block.load_state_dict(public, strict=True)
    assert not result.missing_keys and not result.unexpected_keys
    assert list(public) == keys, "the caller's dict was changed"
    x = torch.randn(2, channels, 3, 4, dtype=torch.float64)
    expected = expected_output(name, layout, x, options)
    np.testing.assert_allclose(block(x).detach().numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", list_blocks())
def test_public_state_dict_loads_inside_a_model(name):
    channels = DEFAULT_CHANNELS.get(name, 16)
    layouts = [randomise(PUBLIC[name](channels).double(), seed=seed) for seed in (5, 6)]
    public_model = nn.Sequential(nn.BatchNorm2d(channels), nn.Sequential(*layouts)).double()
    blocks = [create_block(name, channels, dtype=torch.float64) for _ in layouts]
    model = nn.Sequential(nn.BatchNorm2d(channels), nn.Sequential(*blocks)).double().eval()
    model.load_state_dict(public_model.state_dict(), strict=True)
    x = torch.randn(1, channels, 2, 3, dtype=torch.float64)
    for layout, block in zip(layouts, blocks):
        np.testing.assert_allclose(
            block(x).detach().numpy(), expected_output(name, layout, x, {}), rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("name", list_blocks())
def test_own_state_dict_round_trips(name):
    source = randomise(create_block(name, 128), seed=7).eval()
    target = create_block(name, 128).eval()
    target.load_state_dict(source.state_dict(), strict=True)
    x = torch.randn(2, 128, 4, 3)
    assert torch.equal(target(x), source(x))
    assert target.state_dict().keys() == source.state_dict().keys()


@pytest.mark.parametrize("name", list_blocks())
def test_missing_and_unexpected_keys_are_still_reported(name):
    block = create_block(name, 128)
    state = {f"body.{key}": value for key, value in block.state_dict().items()}
    model = nn.Module()
    model.body = block
    dropped = list(state)[:1]  # SimAM has none
    state = {key: value for key, value in state.items() if key not in dropped}
    state["body.stray.weight"] = torch.zeros(1)
    result = model.load_state_dict(state, strict=False)
    assert result.missing_keys == dropped
    assert result.unexpected_keys == ["body.stray.weight"]


def test_wrong_shape_is_still_an_error():
    with pytest.raises(RuntimeError, match=r"size mismatch for channel\.weight"):
        SA(64, groups=8).load_state_dict(PUBLIC["SA"](64, groups=4).state_dict())


def test_our_name_wins_when_both_are_there():
    block = SE(16)
    state = block.state_dict()
    state["fc.0.weight"] = torch.full_like(state["fc1.weight"], 9.0)
    result = block.load_state_dict(state, strict=False)
    assert result.unexpected_keys == ["fc.0.weight"]
    assert not torch.any(block.fc1.weight == 9.0)
