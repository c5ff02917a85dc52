"""The gate map of a block, compared with known gates, for every kind of block."""

from __future__ import annotations

import copy
import math
from itertools import product

import pytest
import torch
from conftest import randomise
from torch import nn

from yolov5_ema.blocks import create_block, list_blocks
from yolov5_ema.explain.gates import gate_map, watched_gates


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 8, 5, 7, generator=torch.Generator().manual_seed(0))


def expected(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """sqrt(sum_c (g_c x_c)^2 / sum_c x_c^2) as loops over single numbers; both (N, C, H, W)."""
    n, c, h, w = x.shape
    out = torch.zeros(n, h, w)
    for image, i, j in product(range(n), range(h), range(w)):
        before = math.fsum(float(x[image, k, i, j]) ** 2 for k in range(c))
        after = math.fsum(float(gate[image, k, i, j] * x[image, k, i, j]) ** 2 for k in range(c))
        out[image, i, j] = math.sqrt(after / before)
    return out


def test_a_gate_that_all_channels_share_comes_back_exactly(x):
    gate = torch.rand(2, 1, 5, 7)
    torch.testing.assert_close(gate_map(x, x * gate), gate[:, 0], rtol=1e-6, atol=1e-7)
    assert gate_map(x, x * gate).dtype == torch.float32


def test_a_gate_a_channel_is_averaged_by_energy(x):
    gate = torch.rand(2, 8, 1, 1).expand(x.shape)
    found = gate_map(x, x * gate)
    torch.testing.assert_close(found, expected(x, gate), rtol=1e-6, atol=1e-7)
    assert (found > gate.amin(1)).all() and (found < gate.amax(1)).all()
    alike = torch.ones(1, 4, 2, 2)  # if all channels have the same energy: the root mean square of the gates
    assert gate_map(alike, alike * torch.tensor([0.1, 0.2, 0.3, 0.4])[:, None, None])[0, 0, 0] == pytest.approx(
        math.sqrt((0.01 + 0.04 + 0.09 + 0.16) / 4), rel=1e-6
    )


def test_shuffled_channels_change_nothing(x):
    gate = torch.rand(2, 8, 5, 7)
    y = x * gate
    torch.testing.assert_close(gate_map(x, y[:, torch.randperm(8)]), gate_map(x, y))


def test_where_nothing_comes_in_there_is_no_gate(x):
    x[0, :, 2, 3] = 0
    found = gate_map(x, 0.5 * x)
    assert found[0, 2, 3].isnan() and found.isnan().sum() == 1


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_huge_and_tiny_values_do_not_overflow(x, factor):
    torch.testing.assert_close(gate_map(x * factor, x * factor * 0.25), torch.full((2, 5, 7), 0.25))


def test_maps_of_two_sizes_have_no_gate(x):
    with pytest.raises(ValueError, match="no gate leads from"):
        gate_map(x, x[..., 1:])


def watched(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with watched_gates({"it": block.eval()}) as maps, torch.no_grad():
        block(x)
    return maps["it"]


IN_PLACE = {
    "EMA": {"groups": 4},
    "CA": {},
    "CBAM": {"reduction": 4},
    "ECA": {},
    "NAM": {},
    "SE": {"reduction": 4},
}


@pytest.mark.parametrize("name, options", IN_PLACE.items())
def test_blocks_that_keep_their_channels_in_place(x, name, options):
    """Their gate for each channel can be found by division."""
    block = randomise(create_block(name, 8, **options)).eval()
    gate = block(x).detach() / x
    torch.testing.assert_close(watched(block, x), expected(x, gate), rtol=1e-5, atol=1e-6)


def test_ema_with_one_group_is_its_spatial_map(x):
    block = randomise(create_block("EMA", 8, groups=1)).eval()
    one_channel = (block(x).detach() / x)[:, 3]
    torch.testing.assert_close(watched(block, x), one_channel, rtol=1e-4, atol=1e-6)
    assert one_channel.std() > 0.01


def test_sa_although_it_shuffles(x):
    block = randomise(create_block("SA", 8, groups=2)).eval()
    y = block(x).detach()
    unshuffled = y.reshape(2, 4, 2, 5, 7).transpose(1, 2).reshape(x.shape)  # (N, C, H, W)
    gate = unshuffled / x
    assert (gate > 0).all() and (gate < 1).all()  # otherwise the channels would be in the wrong order
    torch.testing.assert_close(watched(block, x), expected(x, gate), rtol=1e-5, atol=1e-6)


def test_every_block_that_starts_as_half_shows_a_half(x):
    seen = []
    for name in list_blocks():
        block = create_block(name, 128)
        wide = torch.randn(1, 128, 4, 4)
        if not hasattr(block, "zero_gate_"):
            continue
        block.zero_gate_()
        found = watched(block, wide)
        torch.testing.assert_close(found, found.mean().expand_as(found), rtol=1e-5, atol=1e-6, msg=name)
        seen.append(name)
    assert len(seen) >= 7


class Writing(nn.Module):
    """A block that multiplies by 0.25 in its input's own memory."""

    def forward(self, x):
        return x.mul_(0.25)


class Adding(nn.Module):
    """A block that has no gate: x + x."""

    def forward(self, x):
        return x + x


class Halving(nn.Module):
    """A block that changes the size."""

    def forward(self, x):
        return x[..., ::2, ::2]


def test_a_block_that_writes_into_its_input(x):
    torch.testing.assert_close(watched(Writing(), x), torch.full((2, 5, 7), 0.25))


def test_a_block_that_adds(x):
    torch.testing.assert_close(watched(Adding(), x), torch.full((2, 5, 7), 2.0))


def test_a_block_that_changes_the_size_has_no_map(x):
    block = Halving()
    with watched_gates({"it": block}) as maps:
        block(x)
    assert maps == {}


def test_nothing_is_left_on_the_model(x):
    block = create_block("SE", 8, reduction=4)
    before = copy.deepcopy((block._forward_hooks, block._forward_pre_hooks))
    watched(block, x)
    assert (block._forward_hooks, block._forward_pre_hooks) == before
